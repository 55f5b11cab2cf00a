"""Pick the Cython modules that were compiled for the instruction set of this CPU.

The same source is built for the x86-64 baseline, AVX2+FMA and AVX-512 (elsewhere: once). The
choice is made at import; ``NORMCORE_ISA`` (baseline, avx2, avx512) overrides it, and an
instruction set that this CPU or this build does not have is an ImportError.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from . import running_cy as running
from .calls_cy import Calls
from .table import PASSES

__all__ = ["Calls", "available", "families", "isa", "modules", "running"]


def available() -> tuple[str, ...]:
    """Instruction sets, best first, that are both built and executable here."""
    return tuple(
        name
        for name in running.instruction_sets()
        if find_spec(f"{__package__}.nchw_cy{_suffix(name)}") is not None
    )


def _suffix(name: str) -> str:
    return "" if name == "baseline" else f"_{name}"


def modules(name: str) -> dict[str, ModuleType]:
    """Family -> Cython module built for the instruction set `name`; also "running"."""
    if name not in available():
        raise ImportError(
            f"instruction set {name!r} (NORMCORE_ISA) is not one of those that this build has and "
            f"this CPU executes: {', '.join(available()) or 'none'}"
        )
    suffix = _suffix(name)
    found = {family: import_module(f"{__package__}.{family}_cy{suffix}") for family in PASSES}
    return {**found, "running": running}


isa = os.environ.get("NORMCORE_ISA") or next(iter(available()), "baseline")
families = {family: module for family, module in modules(isa).items() if family in PASSES}
