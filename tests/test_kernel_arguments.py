"""Wrong arguments to a Cython kernel raise, and leave every output as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from kernel_cases import FULL, HALVES, KERNEL, Backend, Case, arguments, backends
from normcore.kernels.table import PASSES, SIZES

CYTHON = [backend for backend in backends() if backend.name.startswith("cython")]
pytestmark = pytest.mark.skipif(not CYTHON, reason="built without a C compiler")
BACKENDS = pytest.mark.parametrize("backend", CYTHON, ids=str)
CALLS = pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, id=f"{family}_{name}")
        for family, passes in PASSES.items()
        for name in passes
    ],
)
OPTIONAL = ("weight", "bias", "residual", "addend", "mask")


def _shorter(a: Any) -> Any:
    return a[:-1].copy()


def _longer(a: Any) -> Any:
    return np.concatenate([a, a, a[:1]])


def _strided(a: Any) -> Any:
    return np.repeat(a, 2)[::2]


def _reversed(a: Any) -> Any:
    return a[::-1]


def _integer(a: Any) -> Any:
    return np.zeros(a.shape, np.int64)


def _complex(a: Any) -> Any:
    return np.zeros(a.shape, np.complex128)


def _half(a: Any) -> Any:
    return np.zeros(a.shape, np.float16)


def _swapped(a: Any) -> Any:
    return a.astype(a.dtype.newbyteorder("S"))


def _unaligned(a: Any) -> Any:
    memory = np.zeros(a.nbytes + 1, np.uint8)[1:]
    return memory.view(a.dtype)


def _list(a: Any) -> Any:
    return a.tolist()


def _buffer(a: Any) -> Any:
    return memoryview(a)


ARRAY_FAULTS = [
    *(_shorter, _longer, _strided, _reversed, _integer, _complex, _half, _swapped, _unaligned),
    *(_list, _buffer),
]


def case_of(family: str, name: str, dtype: str = "float32") -> Case:
    """A case with every optional argument that the pass has."""
    sizes = (5, 21) if family == "rows" else (3, 5, 7)
    mask = "all" if "mask" in KERNEL[family, name].arguments else None
    return Case(family, sizes, dtype, residual=True, addend=True, mask=mask)


def _inputs(case: Case, name: str) -> dict[str, Any]:
    values = arguments(case, mean=np.zeros(case.statistics), var=np.ones(case.statistics))
    values.update(rstd=np.ones(case.statistics), sum_dy=np.zeros(case.statistics))
    values.update(sum_dy_xmu=np.zeros(case.statistics))
    if name == "moments":
        values.update(mean=np.zeros(case.cells), m2=np.zeros(case.cells))
    return values


def _refused(backend: Backend, case: Case, name: str, values: dict[str, Any]) -> bool:
    outputs = KERNEL[case.family, name].outputs
    before = {key: np.array(values[key]) for key in outputs}
    try:
        backend.run(case.family, name, values)
    except (ValueError, TypeError):
        return all(
            values[key] is None or _same(np.array(values[key]), before[key]) for key in outputs
        )
    return False


def _same(found: Any, before: Any) -> bool:
    return bool(found.tobytes() == before.tobytes())


@BACKENDS
@CALLS
def test_right_arguments_are_taken(backend: Backend, family: str, name: str) -> None:
    # Else what follows would show nothing.
    for dtype in ("float32", "float64", *HALVES):
        case = case_of(family, name, dtype)
        values = _inputs(case, name)
        assert not _refused(backend, case, name, values)
        for key in KERNEL[family, name].outputs:
            assert np.isfinite(values[key].astype(np.float64)).all(), (dtype, key)


@BACKENDS
@CALLS
@pytest.mark.parametrize("fault", ARRAY_FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_wrong_array_is_refused(
    backend: Backend, family: str, name: str, fault: Callable[[Any], Any]
) -> None:
    case = case_of(family, name)
    accepted = []
    for key in KERNEL[family, name].arguments:
        values = _inputs(case, name)
        if not isinstance(values[key], np.ndarray):
            continue
        if key == "mask" and fault in (_swapped, _unaligned):
            continue  # single bytes
        if fault is _half and (name, key) == ("moments", "x"):
            continue  # no other array says which dtype it should have
        values[key] = fault(values[key])
        if not _refused(backend, case, name, values):
            accepted.append(key)
    assert accepted == []


@BACKENDS
@CALLS
def test_wrong_array_is_named(backend: Backend, family: str, name: str) -> None:
    case = case_of(family, name)
    for key in KERNEL[family, name].arguments:
        values = _inputs(case, name)
        if isinstance(values[key], np.ndarray) and key != "mask":
            values[key] = _integer(values[key])
            # Arrays of x's size are held against the dtype of one of them.
            named = "|".join(FULL) if key in FULL else key
            with pytest.raises((ValueError, TypeError), match=rf"^({named})\b"):
                backend.run(family, name, values)


@BACKENDS
@CALLS
def test_none_is_refused_where_it_means_nothing(backend: Backend, family: str, name: str) -> None:
    case = case_of(family, name)
    for key in KERNEL[family, name].arguments:
        meaning = key in OPTIONAL and not (name == "add_forward" and key == "addend")
        meaning |= name == "activation_backward" and key == "g"
        meaning |= key == "training" or (key == "mean" and family in ("rows", "cols"))
        values = _inputs(case, name)
        if not meaning:
            with pytest.raises((ValueError, TypeError)):
                backend.run(family, name, {**values, key: None})
        else:
            backend.run(family, name, {**values, key: None})


@BACKENDS
@CALLS
def test_read_only_output_is_refused(backend: Backend, family: str, name: str) -> None:
    case = case_of(family, name)
    for key in KERNEL[family, name].outputs:
        values = _inputs(case, name)
        values[key].flags.writeable = False
        assert _refused(backend, case, name, values), key


@BACKENDS
@CALLS
@pytest.mark.parametrize("dtype", ["float32", "float64", *HALVES])
def test_arrays_of_two_dtypes_are_refused(
    backend: Backend, family: str, name: str, dtype: str
) -> None:
    case = case_of(family, name, dtype)
    given = [key for key in KERNEL[family, name].arguments if key in FULL]
    others = dict.fromkeys(given, HALVES) if len(given) > 1 else {}
    wrong = [(key, other) for key in others for other in ("float32", "float64", *HALVES)]
    if name not in ("apply", "activation_grads"):  # which take running statistics too
        wrong.append(("mean", "float32"))
    for key, other in wrong:
        if other != dtype:
            values = _inputs(case, name)
            values[key] = values[key].astype(HALVES.get(other, other))
            assert _refused(backend, case, name, values), (key, other)


@BACKENDS
@CALLS
@pytest.mark.parametrize(("key", "wrong"), [("threads", 0), ("threads", -1), ("activation", 6),
                                           ("activation", -1), ("activation", 1000)])  # fmt: skip
def test_number_out_of_range_is_refused(
    backend: Backend, family: str, name: str, key: str, wrong: int
) -> None:
    case = case_of(family, name)
    if key in KERNEL[family, name].arguments:
        with pytest.raises(ValueError, match=f"^{key}\\b"):
            backend.run(family, name, _inputs(case, name) | {key: wrong})
        assert _refused(backend, case, name, _inputs(case, name) | {key: wrong})


@BACKENDS
@CALLS
def test_sizes_that_do_not_fit_the_arrays_are_refused(
    backend: Backend, family: str, name: str
) -> None:
    case = replace(case_of(family, name), mask=None)
    # Two negative sizes have a positive product; the last two products leave 64 bits, and the
    # very last is 105 again when it does.
    wrong: list[tuple[int, ...]] = [
        (3, 5, 8), (-3, -5, 7), (-3, 5, -7), (3, -5, -7), (5, 3, 7), (3, 7, 5), (0, 5, 7),
        (105, 2**32 + 1, 2**32), (13, 5, 8513881880173639209),
    ]  # fmt: skip
    if family == "rows":
        wrong = [(5, 22), (-5, -21), (21, 5), (7, 15), (0, 21), (2**32 + 1, 2**32),
                 (3, 6148914691236517240)]  # fmt: skip
    for sizes in wrong:
        values = _inputs(case, name)
        values.update(zip(SIZES[family], sizes, strict=True))
        if prod(sizes) == 105 and min(sizes) > 0 and _still_fits(case, name, sizes):
            continue
        assert _refused(backend, case, name, values), sizes


def _still_fits(case: Case, name: str, sizes: tuple[int, ...]) -> bool:
    """Do the lengths of all arrays have a meaning for other sizes with the same product?"""
    if case.family in ("rows", "cols"):
        return False
    if name == "moments":
        return Case(case.family, sizes).cells == case.cells
    outer, channels = (1, sizes[1]) if case.family == "nchw" else (sizes[0], sizes[2])
    takes = KERNEL[case.family, name].arguments
    statistics = case.statistics if name not in ("reduce_grads", "apply_grads") else -1
    d, rest = divmod(outer * channels, case.statistics)
    fits = not rest and channels % d == 0 and (statistics > 0 or d == 1)
    if "weight" in takes:
        period = channels % case.parameters == 0
        fits &= period if case.family == "nchw" else case.parameters == channels
    return fits


@BACKENDS
@pytest.mark.parametrize(
    ("family", "sizes", "statistics", "parameters"),
    [
        ("nchw", (1, 12, 5), 5, 12),
        ("nchw", (1, 12, 5), 24, 12),
        ("nchw", (1, 12, 5), 12, 5),
        ("nchw", (1, 12, 5), 12, 24),
        ("nchw", (1, 12, 5), 0, 12),
        ("nchw", (1, 12, 5), 12, 0),
        ("nchw", (3, 12, 5), 36, 12),
        ("nc", (3, 4, 12), 5, 12),
        ("nc", (3, 4, 12), 12, 5),
        ("nc", (3, 4, 12), 12, 6),
        ("nc", (3, 4, 12), 9, 4),
        ("nc", (3, 4, 12), 1, 12),
        ("nc", (3, 4, 12), 0, 12),
        ("nc", (3, 4, 12), 72, 12),
    ],
)
def test_lengths_that_no_grouping_has_are_refused(
    backend: Backend, family: str, sizes: tuple[int, ...], statistics: int, parameters: int
) -> None:
    case = Case(family, sizes)
    for name in ("forward", "backward", "apply", "renorm", "activation_grads"):
        values = _inputs(case, name)
        for key in ("mean", "var", "rstd", "r", "d", "running_mean", "running_var"):
            values[key] = np.ones(statistics)
        for key in ("weight", "bias", "dweight", "dbias"):
            values[key] = np.ones(parameters, np.float32)
        assert _refused(backend, case, name, values), name


@BACKENDS
@CALLS
def test_mask_of_no_meaning_is_refused(backend: Backend, family: str, name: str) -> None:
    if "mask" not in KERNEL[family, name].arguments:
        return
    case = case_of(family, name)
    size = _inputs(case, name)["mask"].size
    # rows: 105 elements in rows of 21.
    lengths = (0, 1, 2, 3, 10, 20, 25, 104, 106, 210) if family == "rows" else (
        0, 1, size - 1, size + 1, 2 * size, 105,
    )  # fmt: skip
    for length in lengths:
        values = _inputs(case, name) | {"mask": np.ones(length, np.uint8)}
        assert _refused(backend, case, name, values), length
    for dtype in (np.int8, np.int32, np.float32):
        values = _inputs(case, name) | {"mask": np.ones(size, dtype)}
        assert _refused(backend, case, name, values), dtype


@BACKENDS
@CALLS
def test_arrays_of_any_rank_are_taken(backend: Backend, family: str, name: str) -> None:
    case = case_of(family, name)
    flat, shaped = _inputs(case, name), _inputs(case, name)
    for key in FULL:
        shaped[key] = shaped[key].reshape(3, 5, 7, 1)
    backend.run(family, name, flat)
    backend.run(family, name, shaped)
    for key in KERNEL[family, name].outputs:
        assert np.array_equal(flat[key], shaped[key].reshape(-1)), key
        assert np.isfinite(flat[key]).all()


@BACKENDS
@pytest.mark.parametrize("key", ["running_mean", "running_var", "mean", "var"])
@pytest.mark.parametrize("fault", ARRAY_FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_wrong_running_statistics_are_refused(
    backend: Backend, key: str, fault: Callable[[Any], Any]
) -> None:
    values = {name: np.ones(6) for name in ("running_mean", "running_var", "mean", "var")}
    values |= {"num_batches_tracked": np.array(0), "momentum": 0.1, "count": 9}
    values |= {"skip_nonfinite": False, key: fault(values[key])}
    before = {name: np.array(given) for name, given in values.items()}
    with pytest.raises((ValueError, TypeError)):
        backend.run("running", "update", values)
    for name, old in before.items():
        assert np.array_equal(np.array(values[name]), old)
