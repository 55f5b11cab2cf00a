"""The README's examples run as they stand."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import normcore as nc

README = Path(__file__).parents[1] / "README.md"


def _blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def test_python_blocks_run_in_order(capsys: Any) -> None:
    blocks = _blocks(README.read_text("utf-8").partition("\n## In a PyTorch model\n")[0])
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    before = nc.get_num_threads()
    try:
        exec(compile(blocks[0], str(README), "exec"), names)
        assert names["dx"].shape == names["x"].shape
        assert np.isfinite(names["y"]).all()
        # Compiling for both dtypes has a test of its own.
        exec(compile(blocks[1].replace("nc.warmup()", ""), str(README), "exec"), names)
    finally:
        nc.set_num_threads(before)
        nc.set_backend("auto")
    assert "instruction set" in capsys.readouterr().out


def test_the_pytorch_model_runs() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    section = README.read_text("utf-8").partition("\n## In a PyTorch model\n")[2]
    (block,) = _blocks(section.partition("\n## ")[0])
    assert block.count("\n") < 15
    names: dict[str, Any] = {}
    exec(compile(block, str(README), "exec"), names)
    assert names["model"][1].weight.grad is not None
    assert type(names["model"][1]).__module__.startswith("torch.nn")
    assert names["y"].min() == 0


def test_the_architecture_names_every_file() -> None:
    tree = README.read_text("utf-8")
    for folder in ("normcore", "normcore/torch", "kernels"):
        for path in (README.parent / folder).iterdir():
            if path.suffix in (".py", ".pyx", ".pxi", ".h", ".pyi") and path.name != "__init__.py":
                assert path.name in tree, path
