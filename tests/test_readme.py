"""The README's examples run as they stand."""

from typing import Any

import numpy as np
import pytest
from readme import README, blocks

import normcore as nc


def test_python_blocks_run_in_order(capsys: Any) -> None:
    [layers], [settings] = blocks("Five lines"), blocks("Settings")
    names: dict[str, Any] = {}
    before = nc.get_num_threads()
    try:
        exec(compile(layers, str(README), "exec"), names)
        assert names["dx"].shape == names["x"].shape
        assert np.isfinite(names["y"]).all()
        # Compiling for both dtypes has a test of its own.
        exec(compile(settings.replace("nc.warmup()", ""), str(README), "exec"), names)
    finally:
        nc.set_num_threads(before)
        nc.set_backend("auto")
    assert "instruction set" in capsys.readouterr().out


def test_the_pytorch_model_runs() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    [block] = blocks("In a PyTorch model")
    names: dict[str, Any] = {}
    exec(compile(block, str(README), "exec"), names)
    assert names["model"][1].weight.grad is not None
    assert type(names["model"][1]).__module__.startswith("torch.nn")
    assert names["y"].min() == 0


def test_the_architecture_names_every_file() -> None:
    tree = README.read_text("utf-8")
    for folder in ("normcore", "normcore/torch", "kernels"):
        for path in (README.parent / folder).iterdir():
            suffixes = (".py", ".pyx", ".pxi", ".pxd", ".h", ".pyi")
            if path.suffix in suffixes and path.name != "__init__.py":
                assert path.name in tree, path
