"""Fixtures that several test files share."""

import pytest

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
