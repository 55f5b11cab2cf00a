"""Numba's kernels called past its dispatcher: the bits of the way through Python, and what is left
to it."""

import ctypes
import re
from pathlib import Path
from sys import getrefcount

import numpy as np
import pytest
from half_families import HALF_OF
from kernel_cases import KERNEL, Case, arguments

from normcore import numba_calls, numba_kernels
from normcore.numba_code import is_possible

pytestmark = pytest.mark.skipif(not is_possible(), reason="objects have another head here")

SIZES = {"nchw": (3, 4, 50), "nc": (2, 40, 19), "rows": (40, 19), "cols": (2, 40, 19)}
CASES = [
    Case(family, sizes, dtype, weight=weight, bias=bias, mask=mask, threads=threads)
    for family, sizes in SIZES.items()
    for dtype, weight, bias, mask, threads in (
        ("float32", "own", None, None, 1),
        ("float32", None, "other", "random", 2),
        ("float64", "other", "own", None, 2),
        (HALF_OF[family].name, "own", "own", None, 1),
    )
]


def given_to(case, name):
    kernel = KERNEL[case.family, name]
    values = arguments(case)
    for statistic in ("mean", "var", "rstd"):
        if values.get(statistic) is not None:
            values[statistic].fill(1.5)
    return [values[argument] for argument in kernel.arguments], kernel


def written(kernel, given):
    return {
        name: values
        for name, values in zip(kernel.arguments, given, strict=True)
        if name in kernel.outputs and values is not None
    }


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (case, name)
        for case in CASES
        for name in ("apply", "forward", "backward")
        if (case.family, name) in KERNEL
    ],
    ids=str,
)
def test_an_entry_gives_the_bits_of_the_way_through_python(case, name):
    call = numba_kernels._kernels[case.family, name]
    given, kernel = given_to(case, name)
    call(*given)
    call(*given)  # the threading layer is known by now
    compiled = len(call.parallel.signatures), len(call.serial.signatures)
    outputs = written(kernel, given)
    call._convert(tuple(given))
    expected = {name: values.copy() for name, values in outputs.items()}
    for values in outputs.values():
        values.fill(7)
    assert [entry(*given) for entry in call.entries].count(True) == 1
    for name, values in outputs.items():
        assert values.tobytes() == expected[name].tobytes(), name
    assert compiled == (len(call.parallel.signatures), len(call.serial.signatures))


def replaced(given, kernel, name, value):
    given = list(given)
    given[kernel.arguments.index(name)] = value
    return given


REFUSED = {
    "strided x": ("x", lambda x: np.repeat(x, 2)[::2]),
    "x of another dtype": ("x", lambda x: x.astype(np.float64)),
    "swapped x": ("x", lambda x: x.astype(">f4")),
    "list": ("weight", lambda weight: weight.tolist()),
    "half weight": ("weight", lambda weight: weight.astype(np.float16)),
    "subclass": ("weight", lambda weight: weight.view(np.ma.MaskedArray)),
    "int eps": ("eps", lambda eps: 1),
    "negative size": ("m", lambda m: -1),
    "huge size": ("m", lambda m: 2**70),
    "float size": ("m", float),
    "bool size": ("c", lambda c: True),
    "no y": ("y", lambda y: "y"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_not_plain_is_refused_before_anything_is_written(why):
    call = numba_kernels._kernels["nc", "forward"]
    given, kernel = given_to(Case("nc", (2, 40, 19)), "forward")
    call(*given)
    outputs = written(kernel, given)
    for values in outputs.values():
        values.fill(7)
    name, make = REFUSED[why]
    bad = replaced(given, kernel, name, make(given[kernel.arguments.index(name)]))
    assert not any(entry(*bad) for entry in call.entries)
    assert not any(entry(*given[1:]) for entry in call.entries)
    assert all((values == 7).all() for values in outputs.values())


def test_inputs_may_be_read_only():
    call = numba_kernels._kernels["nc", "forward"]
    given, kernel = given_to(Case("nc", (2, 40, 19)), "forward")
    call(*given)
    expected = given[0].copy()
    given[0].fill(7)
    given[kernel.arguments.index("x")].flags.writeable = False
    assert any(entry(*given) for entry in call.entries)
    np.testing.assert_array_equal(given[0], expected)


def test_an_entry_keeps_no_reference():
    call = numba_kernels._kernels["nc", "apply"]
    given, _ = given_to(Case("nc", (2, 40, 19)), "apply")
    call(*given)
    before = [getrefcount(value) for value in given if isinstance(value, np.ndarray)]
    for _ in range(10):
        call(*given)
    assert before == [getrefcount(value) for value in given if isinstance(value, np.ndarray)]


def test_a_call_is_laid_out_as_in_the_header():
    # Code reads it by offset: a field that stands in one of the two alone shifts those behind it.
    header = Path(__file__).parents[1] / "kernels" / "calls.h"
    text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
    body = text[: text.index("} Call;")].rpartition("{")[2]
    sizes = {"int": 4, "double": 8, "ptrdiff_t": 8, "Parameter": 16, "WritableParameter": 16}
    fields = []
    for line in filter(None, map(str.strip, body.split(";"))):
        kind, names = re.fullmatch(r"(?:const )?(\w+) (.*)", line).groups()
        for name, count in re.findall(r"(\*?\w+)(?:\[(\d)\])?", names):
            size = 8 if name.startswith("*") else sizes[kind]
            fields.append((name.lstrip("*"), size * int(count or 1)))
    assert fields == [(name, ctypes.sizeof(kind)) for name, kind in numba_calls.Call._fields_]
