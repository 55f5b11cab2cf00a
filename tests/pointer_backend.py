"""The functions of capi.pxd as a backend, called by ctypes with the arguments of the table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from kernel_cases import KERNEL

import normcore

PXD = Path(normcore.__file__).with_name("capi.pxd")
PARAMETERS = ("weight", "bias", "dweight", "dbias")


@cache
def declared() -> dict[str, list[tuple[str, str]]]:
    """Name of a function in capi.pxd -> (C type, name) of its arguments."""
    found = re.findall(r"^cdef int (\w+)\(\n(.*?)\) noexcept nogil$", PXD.read_text(), re.M | re.S)
    return {
        name: [
            (" ".join(kind.split()), word)
            for kind, word in re.findall(r"([\w ]+? \*?)(\w+)(?:,|$)", " ".join(text.split()))
        ]
        for name, text in found
    }


def wanted(family: str, name: str) -> list[str]:
    """The arguments of a kernel that a function by pointer has."""
    return [word for word in KERNEL[family, name].arguments if word != "mask"]


def call(family: str, name: str, *given: Any) -> int:
    """A kernel by pointer; its status."""
    from normcore import capi

    values = dict(zip(KERNEL[family, name].arguments, given, strict=True))
    assert values.get("mask") is None
    typed = [*PARAMETERS, *(("mean", "var") if name == "apply" else ())]
    held = {word: values[word] for word in typed if values.get(word) is not None}
    wide = any(array.dtype == np.float64 for array in held.values())
    parameter = capi.Dtype.float64 if wide else capi.Dtype.float32
    # One dtype for all parameters: float64 where one of them is.
    cast = {word: array.astype(parameter.name) for word, array in held.items()}
    values |= cast
    values |= {"dtype": capi.Dtype[values["x"].dtype.name], "parameter_dtype": parameter}
    if family != "rows":
        values["statistics"] = values["mean"].size if "mean" in values else values["c"]
        values["parameters"] = _parameters(values)
    arguments = [
        a.ctypes.data if isinstance(a, np.ndarray) else a
        for a in (values[word] for _, word in declared()[f"{family}_{name}"])
    ]
    status: int = capi.ctypes_function(f"{family}_{name}")(*arguments)
    for word in ("dweight", "dbias"):
        if word in held:
            held[word][...] = cast[word]
    return status


def _parameters(values: Mapping[str, Any]) -> int:
    given = (values.get(word) for word in ("weight", "bias", "dweight"))
    return next((array.size for array in given if array is not None), values["c"])


def _must(family: str, name: str, *given: Any) -> None:
    assert call(family, name, *given) == 0


def passes(family: str, others: Any) -> Any:
    """The passes of a family by pointer; those of `others` where there is none."""
    own = {
        name: partial(_must, family, name)
        for of, name in KERNEL
        if of == family and f"{family}_{name}" in declared()
    }
    return SimpleNamespace(
        **{name: getattr(others, name) for of, name in KERNEL if of == family} | own
    )
