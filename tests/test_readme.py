"""The README's examples run as they stand."""

import re
from pathlib import Path
from typing import Any

import numpy as np

import normcore as nc

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run_in_order(capsys: Any) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)
    assert len(blocks) >= 2
    names: dict[str, Any] = {}
    before = nc.get_num_threads()
    try:
        exec(compile(blocks[0], str(README), "exec"), names)
        assert names["dx"].shape == names["x"].shape
        assert np.isfinite(names["y"]).all()
        # Compiling for both dtypes has a test of its own.
        exec(compile(blocks[1].replace("nc.warmup()", ""), str(README), "exec"), names)
        for block in blocks[2:]:
            exec(compile(block, str(README), "exec"), names)
    finally:
        nc.set_num_threads(before)
        nc.set_backend("auto")
    assert "instruction set" in capsys.readouterr().out


def test_the_architecture_names_every_file() -> None:
    tree = README.read_text("utf-8")
    for folder in ("normcore", "kernels"):
        for path in (README.parent / folder).iterdir():
            if path.suffix in (".py", ".pyx", ".pxi", ".h", ".pyi") and path.name != "__init__.py":
                assert path.name in tree, path
