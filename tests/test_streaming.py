"""Outputs that bypass the caches: large ones, and small ones where the environment says so."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import FAMILY_SIZES, Case, arguments, backends
from kernel_truth import TOLERANCE, error
from normcore.kernels.schedule import STREAM_BYTES

ORACLE, *COMPILED = backends()
CYTHON = pytest.mark.skipif(
    not any(backend.name.startswith("cython") for backend in COMPILED),
    reason="built without a C compiler",
)

# Odd runs, rows that are whole lines, rows that are not; each a little above the border.
LARGE = [
    ("nchw", (7, 9, 100003)),
    ("nchw", (33, 1000, 201)),  # neighbours share lines
    ("nc", (1, 98400, 64)),
    ("nc", (1, 70001, 90)),
    ("rows", (9001, 701)),
    ("rows", (3, 2100001)),
    ("cols", (4, 17, 100003)),
    ("cols", (3, 700, 3001)),
]

SMALL = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from kernel_cases import HALVES, LAYERS, Case, arguments, backends
from kernel_errors import outputs

found = hashlib.sha256()
family = sys.argv[2]
for sizes in {"nchw": ((3, 5, 1031), (2, 3, 7), (3, 33, 49), (4, 23, 201), (2, 9, 515),
                       (8, 3, 5003), (8, 9, 2053)),
              "nc": ((1, 517, 64), (2, 33, 71), (1, 999, 3)),
              "rows": ((33, 71), (3, 5003), (65, 128)),
              "cols": ((2, 33, 71), (1, 517, 64), (3, 5, 1031), (2, 3, 2080))}[family]:
    for dtype in ("float32", "float64", *HALVES):
        for fused in (False, True):
            case = Case(family, sizes, dtype, threads=2, residual=fused,
                        addend=fused and family in LAYERS, mask="random" if fused else None,
                        activation="relu" if fused else None)
            given = arguments(case)
            # No two arrays begin at the same place of a cache line.
            given = {name: np.concatenate([given[name][:gap], given[name]])[gap:]
                     for gap, name in enumerate(("y", "x", "dy", "dx", "g", "total", "residual"), 1)
                     if given[name] is not None}
            if family in ("nchw", "rows") and dtype != "float16":
                # Computed in float64, between others that leave their neighbours part of a line.
                x = given["x"].reshape(sizes)
                (x[:, 1::7] if family == "nchw" else x[1::7])[...] *= 1e33
            for backend in backends():
                if backend.name.startswith("cython"):
                    for name, values in sorted(outputs(backend, case, **given).items()):
                        found.update(values.tobytes())
print(found.hexdigest())
"""


def _run(family: str, border: str | None) -> subprocess.CompletedProcess[str]:
    # Threads that spin while they wait for each other take 33 ms a call on a busy machine.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    environment.pop("NORMCORE_STREAM_BYTES", None)
    if border is not None:
        environment["NORMCORE_STREAM_BYTES"] = border
    command = [sys.executable, "-c", SMALL, str(Path(__file__).parent), family]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@CYTHON
@pytest.mark.parametrize("family", FAMILY_SIZES)
def test_streaming_changes_no_bit(family: str) -> None:
    normal, streamed = _run(family, None), _run(family, "0")
    assert normal.returncode == 0, normal.stderr
    assert len(normal.stdout.strip()) == 64
    assert streamed.stdout == normal.stdout, streamed.stderr


@CYTHON
def test_a_border_that_is_no_number_is_named() -> None:
    failed = _run("nchw", "24MB")
    assert failed.returncode != 0
    assert "NORMCORE_STREAM_BYTES: expected a number of bytes, got '24MB'" in failed.stderr


@pytest.mark.parametrize(("family", "sizes"), LARGE)
def test_large_outputs_match_the_oracle(family: str, sizes: tuple[int, ...]) -> None:
    case = Case(family, sizes, offset=1e3, threads=2)
    exact = arguments(case)
    assert exact["x"].nbytes >= STREAM_BYTES
    passes = {"forward": "y", "backward": "dx", "apply": "y", "apply_grads": "dx"}
    passes = {name: output for name, output in passes.items() if name in case.passes}
    ORACLE.run(family, "forward", exact)
    if "reduce_grads" in case.passes:
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
