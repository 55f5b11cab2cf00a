"""Outputs that bypass the caches: large ones, and small ones where the environment says so."""

import os
import subprocess
import sys

import numpy as np
import pytest
from kernel_cases import TOLERANCE, Case, arguments, backends, error
from normcore.kernels.schedule import STREAM_BYTES

ORACLE, *COMPILED = backends()

# Odd runs, rows that are whole lines, rows that are not; each a little above the border.
LARGE = [("nchw", (7, 9, 100003)), ("nc", (1, 98400, 64)), ("nc", (1, 70001, 90))]

SMALL = """
import hashlib, sys
import numpy as np
from normcore.kernels import cython
random = np.random.default_rng(5)
found = hashlib.sha256()
for family, sizes in (("nchw", (3, 5, 1031)), ("nchw", (2, 3, 7)), ("nc", (1, 517, 64)),
                      ("nc", (2, 33, 71)), ("nc", (1, 999, 3))):
    statistics = sizes[1] if family == "nchw" else sizes[0] * sizes[2]
    channels = sizes[1] if family == "nchw" else sizes[2]
    for dtype in ("float32", "float64"):
        x, dy, gap = (random.normal(9, 2, int(np.prod(sizes)) + 5).astype(dtype) for _ in "xyz")
        x, dy = x[3:-2], dy[1:-4]  # no two arrays begin at the same place of a cache line
        y, mean, var, rstd = gap[5:], *(np.empty(statistics) for _ in range(3))
        weight, bias = random.normal(size=(2, channels))
        for isa in cython.available():
            kernels = cython.modules(isa)[family]
            kernels.forward(y, mean, var, rstd, x, weight, bias, 1e-5, *sizes, 2)
            found.update(y.tobytes())
            kernels.apply(y, x, mean, var, weight, bias, 1e-5, *sizes, 2)
            found.update(y.tobytes())
            for training in (True, False):
                kernels.backward(y, weight.copy(), bias.copy(), dy, x, mean, rstd, weight,
                                 training, *sizes, 2)
                found.update(y.tobytes())
print(found.hexdigest())
"""


def _run(border: str | None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    environment.pop("NORMCORE_STREAM_BYTES", None)
    if border is not None:
        environment["NORMCORE_STREAM_BYTES"] = border
    command = [sys.executable, "-c", SMALL]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(len(backends()) < 3, reason="built without a C compiler")
def test_streaming_changes_no_bit() -> None:
    normal, streamed = _run(None), _run("0")
    assert normal.returncode == 0, normal.stderr
    assert len(normal.stdout.strip()) == 64
    assert streamed.stdout == normal.stdout, streamed.stderr


@pytest.mark.skipif(len(backends()) < 3, reason="built without a C compiler")
def test_a_border_that_is_no_number_is_named() -> None:
    failed = _run("24MB")
    assert failed.returncode != 0
    assert "NORMCORE_STREAM_BYTES: expected a number of bytes, got '24MB'" in failed.stderr


@pytest.mark.parametrize(("family", "sizes"), LARGE)
def test_large_outputs_match_the_oracle(family: str, sizes: tuple[int, int, int]) -> None:
    case = Case(family, sizes, offset=1e3, threads=2)
    exact = arguments(case)
    assert exact["x"].nbytes >= STREAM_BYTES
    passes = {"forward": "y", "apply": "y", "backward": "dx", "apply_grads": "dx"}
    ORACLE.run(family, "forward", exact)
    ORACLE.run(family, "reduce_grads", exact)
    want = {}
    for name, output in passes.items():
        values = {**exact, output: np.empty_like(exact["x"], np.float64)}
        ORACLE.run(family, name, values)
        want[name] = values[output]
    for backend in COMPILED:
        for name, output in passes.items():
            values = {**exact, output: np.full_like(exact["x"], np.nan)}
            backend.run(family, name, values)
            found = error(values[output], want[name], np.maximum(1, abs(want[name])))
            assert found <= TOLERANCE["elementwise"]["float32"], (backend.name, name)
