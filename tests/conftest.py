"""Fixtures that several test files share; which Numba kernels are compiled when."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from half_families import BFLOAT16, FLOAT16, HALF_OF

# Before OpenMP is loaded: threads that spin while they wait take 33 ms a call on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import normcore as nc
from normcore.backend import load


def runnable() -> list[str]:
    """The backends that can run here."""
    names = []
    for name in ("numpy", "numba", "cython"):
        try:
            load(name)
        except ImportError:
            continue
        names.append(name)
    return names


@pytest.fixture(params=runnable())
def backend(request):
    """Run the test on one backend; its name."""
    with nc.use_backend(request.param):
        yield request.param


# Numba's tests run last, and their kernels are compiled meanwhile.

MANY = 50
"""Fewer tests than this compile what they need themselves."""
compilations = pytest.StashKey[list[subprocess.Popen]]()


def _parameters(item):
    return item.callspec.params if hasattr(item, "callspec") else {}


def _is_numba(item):
    chosen = _parameters(item).get("backend")
    name = chosen if isinstance(chosen, str) else getattr(chosen, "name", "")
    return name == "numba" or "numba" in item.nodeid or "warmup" in item.nodeid


def _is_other_half(item):
    given = _parameters(item)
    case = given.get("case")
    family, dtype = (given.get(name, getattr(case, name, None)) for name in ("family", "dtype"))
    if family not in HALF_OF or dtype is None:
        return False
    dtype = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    return dtype in (FLOAT16, BFLOAT16) and dtype != HALF_OF[family]


def pytest_collection_modifyitems(config, items):
    dropped = [item for item in items if _is_numba(item) and _is_other_half(item)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = sorted((item for item in items if item not in set(dropped)), key=_is_numba)


def pytest_collection_finish(session):
    numba = sum(map(_is_numba, session.items))
    if numba >= MANY and not session.config.option.collectonly:
        command = [sys.executable, str(Path(__file__).with_name("compile_numba.py"))]
        session.config.stash[compilations] = [
            subprocess.Popen([*command, part]) for part in ("single", "double", "halves")
        ]
    if numba:
        from compile_numba import only_parallel

        only_parallel()


def pytest_runtest_setup(item):
    if _is_numba(item):
        for process in item.config.stash.get(compilations, ()):
            assert process.wait() == 0


def pytest_unconfigure(config):
    for process in config.stash.get(compilations, ()):
        process.kill()
        process.wait()
