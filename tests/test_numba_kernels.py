"""What is particular to the Numba kernels: the serial twin, flags, imports, cache."""

import os
import subprocess
import sys

import numpy as np
import pytest
from kernel_cases import KERNEL, Case, arguments, backends, layout
from kernel_errors import outputs

from normcore.kernels import cols, nc, nchw, rows, running, table
from normcore.numba_kernels import COMPOSED

MODULES = {"nchw": nchw, "nc": nc, "rows": rows, "cols": cols, "running": running}


@pytest.mark.parametrize(
    "kernel",
    [kernel for kernel in table.KERNELS if kernel.name not in COMPOSED],
    ids=lambda kernel: f"{kernel.family}-{kernel.name}",
)
def test_arguments_and_twins_follow_the_table(kernel):
    found = getattr(MODULES[kernel.family], kernel.name)
    for twin in (found, found.serial):
        code = twin.py_func.__code__
        assert code.co_varnames[: code.co_argcount] == kernel.arguments
        assert twin.targetoptions["nogil"]
        assert not twin.targetoptions["fastmath"]
    assert "parallel" not in found.serial.targetoptions


FEW = [("nchw", (4, 3, 50)), ("nc", (2, 40, 19)), ("rows", (40, 19)), ("cols", (2, 40, 19))]


@pytest.mark.parametrize(("family", "sizes"), FEW)
def test_serial_twin_and_thread_counts_give_the_same_bits(family, sizes):
    # As `normcore.numba_kernels` calls them: flat arrays, float64 parameters.
    forward = MODULES[family].forward
    case = Case(family, sizes, offset=1e4)
    results = []
    for kernel, threads in ((forward, 1), (forward, 2), (forward, 5), (forward.serial, 2)):
        values = arguments(case, threads=threads)
        values |= {name: values[name].astype(np.float64) for name in ("weight", "bias")}
        kernel(*(values[name] for name in KERNEL[family, "forward"].arguments))
        results.append([values[name].tobytes() for name in KERNEL[family, "forward"].outputs])
    assert results[0] == results[1] == results[2] == results[3]


@pytest.mark.parametrize(("family", "sizes"), FEW)
def test_a_wide_channel_does_not_change_its_neighbours(family, sizes):
    case = Case(family, sizes, weight=None, bias=None, threads=2)
    [numba] = [backend for backend in backends() if backend.name == "numba"]
    hit = layout(case).statistic == 1
    x = arguments(case)["x"]
    loud = np.where(hit, x * np.float32(3e37), x)
    quiet, found = (outputs(numba, case, x=array)["forward y"] for array in (x, loud))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[hit], quiet[hit], atol=3e-5)
    np.testing.assert_array_equal(found[~hit], quiet[~hit])


def _run(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_import_compiles_nothing():
    code = (
        "from normcore.kernels import cols, nc, nchw, rows, running\n"
        "print(sum(len(k.signatures) + len(k.serial.signatures)\n"
        "          for m in (nchw, nc, rows, cols) for k in (m.forward, m.backward)),\n"
        "      len(running.update.signatures))"
    )
    assert _run(code).split() == ["0", "0"]


def test_runs_without_a_place_for_the_cache():
    # What Numba does in a read-only install without HOME: no locator, RuntimeError.
    code = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import numpy as np\n"
        "from normcore.kernels import running\n"
        "mean, var = np.zeros(2), np.ones(2)\n"
        "running.update(mean, var, None, np.full(2, 2.0), np.full(2, 4.0), 0.5, 2, False)\n"
        "print(mean[0], var[0])"
    )
    assert _run(code).split() == ["1.0", "4.5"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_update_skips_channels_that_are_not_finite(dtype):
    mean, var, tracked = np.zeros(3, dtype), np.ones(3, dtype), np.zeros(1, np.int64)
    new = np.array([1.0, np.nan, 2.0])
    running.update(mean, var, tracked, new, np.array([1.0, 1.0, np.inf]), 0.25, 5, True)
    np.testing.assert_array_equal(mean, [0.25, 0, 0])
    np.testing.assert_array_equal(var, np.array([0.75 + 0.25 * 1.25, 1, 1], dtype))
    assert tracked[0] == 1
