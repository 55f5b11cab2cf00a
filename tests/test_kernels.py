"""Every kernel of the table, in every backend and instruction set, against the oracle."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernel_cases import (
    BACKENDS,
    CHANNELS,
    DTYPES,
    FAMILY_SIZES,
    HALVES,
    KERNEL,
    LAYERS,
    NO_WIDER_FLOAT,
    Backend,
    Case,
    arguments,
    cases,
    each,
)
from kernel_errors import errors, outputs
from normcore.kernels.table import KERNELS

FAMILIES = pytest.mark.parametrize("family", FAMILY_SIZES)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
EACH_STORED = pytest.mark.parametrize("dtype", [*DTYPES, *HALVES])


@BACKENDS
@each(cases((*CHANNELS, *LAYERS)))
def test_every_pass_stays_within_its_tolerance(backend: Backend, case: Case) -> None:
    assert errors(backend, case) == {}


@BACKENDS
@EACH_DTYPE
@FAMILIES
@NO_WIDER_FLOAT
def test_every_length_up_to_70(backend: Backend, family: str, dtype: str) -> None:
    # The tails of vector loops: each remainder of every vector and unrolling width.
    swept: dict[str, list[Any]] = {
        "nchw": [lambda k: (2, 3, k)],
        "nc": [lambda k: (1, 5, k), lambda k: (1, k, 3)],
        "rows": [lambda k: (5, k)],
        "cols": [lambda k: (2, 5, k), lambda k: (1, k, 3)],
    }
    wrong = {}
    for sizes in swept[family]:
        for k in range(1, 71):
            centre = family in CHANNELS or k % 3 > 0
            case = Case(family, sizes(k), dtype, 1e3, centre=centre)
            found = errors(backend, case)
            wrong |= {(str(case), name): size for name, size in found.items()}
    assert wrong == {}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{kernel.family}_{kernel.name}")
@BACKENDS
def test_signature_is_the_tables(backend: Backend, kernel: Any) -> None:
    function = getattr(backend.families[kernel.family], kernel.name)
    function = getattr(function, "parallel", function)  # what Numba compiles
    function = getattr(function, "py_func", function)
    found = tuple(inspect.signature(function).parameters)
    if found[-1] == "sizes":  # the oracle takes all sizes and threads as *sizes
        assert backend.name == "numpy"
        found = found[:-1] + kernel.arguments[len(found) - 1 :]
    assert found == kernel.arguments
    assert kernel.family == "running" or found[-1] == "threads"


THREADED = {
    "nchw": [(5, 7, 49), (64, 9, 900), (1, 2, 100003)],
    "nc": [(1, 37, 5), (1, 20011, 33), (1, 200003, 2), (3, 4099, 17)],
    "rows": [(37, 5), (3001, 65), (5, 40009), (2, 100003)],
    "cols": [(1, 37, 5), (3, 517, 129), (1, 20011, 9), (1, 5, 40009)],
}


@BACKENDS
@EACH_STORED
@FAMILIES
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_any_thread_count_gives_the_same_bits(
    backend: Backend, family: str, dtype: str, fused: bool
) -> None:
    for sizes in THREADED[family]:
        case = Case(family, sizes, dtype, 0.0 if fused or dtype in HALVES else 1e6)
        if fused:
            case = replace(case, residual=True, mask="random", activation="silu")
            case = replace(case, addend=family in LAYERS)
        runs = [outputs(backend, case, threads=threads) for threads in (1, 2, 3)]
        for run in runs[1:]:
            for name, values in runs[0].items():
                assert np.array_equal(values, run[name]), (sizes, name)


IN_PLACE = {
    "forward": ("y", ("x",)),
    "apply": ("y", ("x",)),
    "renorm": ("y", ("x",)),
    "activation_grads": ("g", ("dy",)),
    "apply_grads": ("dx", ("dy", "x")),
    "backward": ("dx", ("dy", "x")),
    "add_forward": ("total", ("x",)),
}


@BACKENDS
@EACH_STORED
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("nchw", (3, 5, 49)),
        ("nchw", (9, 6, 4096)),
        ("nc", (1, 4099, 33)),
        ("rows", (70, 129)),
        ("rows", (3, 20011)),
        ("cols", (2, 65, 33)),
        ("cols", (1, 1025, 129)),
    ],
    ids=str,
)
def test_in_place_gives_the_same_bits(
    backend: Backend, dtype: str, family: str, sizes: tuple[int, ...], fused: bool
) -> None:
    case = Case(family, sizes, dtype, 1e3, addend=family in LAYERS)
    if fused:
        case = replace(case, residual=True, mask="random", activation="gelu")
    apart = outputs(backend, case)
    names = ("mean", "var", "rstd", "sum_dy", "sum_dy_xmu")
    saved = {name: apart[key] for name in names for key in apart if key.endswith(f"d {name}")}
    saved |= {name: apart[key] for name in names for key in apart if key.endswith(f"grads {name}")}
    tried = set()
    for name in case.passes:
        output, inputs = IN_PLACE.get(name, ("", ()))
        for shared in inputs:
            values = arguments(case, **saved)
            values[output] = values[shared] = values[shared].copy()
            backend.run(family, name, values)
            assert np.array_equal(values[output], apart[f"{name} {output}"]), (name, shared)
            tried.add(name)
    assert {"forward", "backward", "activation_grads"} <= tried


@BACKENDS
@pytest.mark.parametrize("read_only", [False, True])
@FAMILIES
def test_inputs_are_not_written(backend: Backend, read_only: bool, family: str) -> None:
    sizes = (4, 9, 65) if family != "rows" else (36, 65)
    case = Case(family, sizes, "float32", 1e3, threads=2, residual=True, mask="random")
    case = replace(case, activation="relu", addend=True)
    names = ("x", "dy", "weight", "bias", "residual", "addend", "mask")
    given = {name: arguments(case)[name] for name in names}
    before = {name: values.copy() for name, values in given.items()}
    for values in given.values():
        values.flags.writeable = not read_only
    outputs(backend, case, **given)
    for name, values in before.items():
        assert np.array_equal(values, given[name]), name


def test_every_kernel_is_tested_on_many_sizes() -> None:
    for family, sizes in FAMILY_SIZES.items():
        assert len(sizes) >= 20
        case = Case(family, sizes[5], residual=True, addend=True)
        oracle = BACKENDS.args[1][0]
        run = {name.split()[0] for name in outputs(oracle, case)} - {"evaluation"}
        assert run == {name for of, name in KERNEL if of == family}
