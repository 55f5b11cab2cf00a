"""The compiled kernels by pointer: the same bits as the entry points for arrays, and refusals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from kernel_cases import KERNEL, Backend, Case, arguments, each
from kernel_errors import errors, outputs
from pointer_backend import PXD, call, declared, passes, wanted

capi = pytest.importorskip("normcore.capi", reason="built without a C compiler")
cython = pytest.importorskip("normcore.kernels.cython", reason="built without a C compiler")

FAMILIES = ("nchw", "nc", "rows")
ARRAYS = Backend("arrays", cython.families)
POINTERS = Backend("pointers", {name: passes(name, cython.families[name]) for name in FAMILIES})

CASES = [
    Case("nchw", (5, 33, 16), "float32", 1e4, threads=2),
    Case("nchw", (4, 16, 2100), "float64", 1e6, "other", "other", threads=2),
    Case("nchw", (3, 12, 49), "float32", weight=None, bias="own", stored="float32"),
    Case("nchw", (1, 24, 49), "float32", d=3, p=6, residual=True, activation="silu"),
    Case("nchw", (2, 5, 70), "bfloat16", activation="relu"),
    Case("nc", (1, 513, 65), "float32", 1e4, threads=2),
    Case("nc", (3, 50, 12), "float64", 1e3, "own", None, d=4),
    Case("nc", (1, 300, 9), "float16", residual=True, activation="gelu"),
    Case("rows", (257, 129), "float32", 1e4, threads=2),
    Case("rows", (64, 768), "float64", 1e6, "other", "own", threads=3),
    Case("rows", (70, 69), "float32", centre=False, bias=None),
    Case("rows", (33, 17), "float16", residual=True, addend=True, activation="relu6"),
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(declared()))
def test_arguments_are_those_of_the_table(name: str) -> None:
    family, _, of = name.partition("_")
    extra = ("dtype", "parameter_dtype", "statistics", "parameters")
    kinds = {word: kind for kind, word in declared()[name]}
    assert [word for word in kinds if word not in extra] == wanted(family, of)
    outputs_ = KERNEL[family, of].outputs
    for word, kind in kinds.items():
        if "*" in kind:
            assert kind.startswith("const") == (word not in outputs_), word


def test_every_declared_function_is_there_and_no_other() -> None:
    assert set(capi.names()) == set(declared())
    missing = {f"{family}_{name}" for family, name in KERNEL if family in FAMILIES}
    assert missing - set(capi.names()) <= {"nchw_renorm", "nc_renorm"}


def test_constants_are_those_of_the_header() -> None:
    text = PXD.read_text()
    for member in (*capi.Status, *capi.Dtype):
        assert f"    NORMCORE_{member.name.upper()} = {member.value}" in text


@each(CASES)
def test_pointers_give_what_arrays_give_to_the_bit(case: Case) -> None:
    expected, found = (outputs(backend, case) for backend in (ARRAYS, POINTERS))
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


@each([CASES[1], CASES[5], CASES[9]])
def test_pointers_stay_within_the_tolerance(case: Case) -> None:
    assert errors(POINTERS, case) == {}


@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 3, 0)], ids=str)
def test_gradients_of_empty_arrays_are_zero(sizes: tuple[int, int, int]) -> None:
    empty, given = np.empty(0, np.float32), np.ones(3)
    dweight, dbias = np.full((2, 3), np.nan, np.float32)
    pointers = [a.ctypes.data for a in (empty, dweight, dbias, empty, empty, given, given)]
    function = capi.ctypes_function("nchw_backward")
    assert function(0, 0, *pointers, None, True, 3, 3, *sizes, 1) == 0
    assert not dweight.any()
    assert not dbias.any()


NAMES = pytest.mark.parametrize("name", sorted(declared()))
BAD = {
    "dtype": (7, "BAD_DTYPE"),
    "parameter_dtype": (2, "BAD_DTYPE"),
    "r": (-1, "BAD_SIZES"),
    "n": (-4, "BAD_SIZES"),
    "b": (-1, "BAD_SIZES"),
    "m": (2**62, "BAD_SIZES"),
    "c": (2**62, "BAD_SIZES"),
    "statistics": (5, "BAD_SIZES"),
    "parameters": (5, "BAD_SIZES"),
    "activation": (6, "BAD_ACTIVATION"),
    "threads": (0, "BAD_THREADS"),
}
OPTIONAL = ("weight", "bias", "residual", "addend")


@NAMES
def test_what_is_wrong_is_told_and_nothing_is_written(name: str) -> None:
    family, _, of = name.partition("_")
    case = Case(family, {"rows": (4, 6), "nchw": (4, 6, 5), "nc": (1, 4, 6)}[family])
    values = arguments(case) | {"dtype": 0, "parameter_dtype": 0, "statistics": 6, "parameters": 6}
    values["m2"] = np.ones(24)
    values["residual"], values["addend"] = None, values["x"].copy()
    if of == "apply":
        values |= {word: np.ones(6, np.float32) for word in ("mean", "var")}
    function = capi.ctypes_function(name)

    def status(**bad: Any) -> str:
        given = values | bad
        pointers = [given[word] for _, word in declared()[name]]
        return capi.Status(
            function(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in pointers))
        ).name

    kinds = {word: kind for kind, word in declared()[name]}
    before = {key: a.copy() for key, a in values.items() if isinstance(a, np.ndarray)}
    for word, (bad, expected) in BAD.items():
        if word in kinds:
            assert status(**{word: bad}) == expected, word
    for word, kind in kinds.items():
        needed = word not in OPTIONAL and (family, word) != ("rows", "mean")
        if "*" in kind and (needed or (of, word) == ("add_forward", "addend")):
            assert status(**{word: None}) == "NULL_POINTER", word
    for key, array in before.items():
        np.testing.assert_array_equal(values[key], array)


def test_unknown_name_is_refused() -> None:
    for get in (capi.address, capi.ctypes_function, capi.numba_function):
        with pytest.raises(ValueError, match=r"name: expected one of .*rows_forward.*'rows'"):
            get("rows")


def test_many_threads_may_call_at_once() -> None:
    case = Case("rows", (4096, 512), threads=2)
    names = KERNEL["rows", "forward"].arguments

    def work(_: int) -> Any:
        values = arguments(case)
        assert call("rows", "forward", *(values[word] for word in names)) == 0
        return values["y"]

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(work, range(8))
    assert np.isfinite(first).all()
    assert all(np.array_equal(first, other) for other in others)
