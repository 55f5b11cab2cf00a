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

__all__ = ["available", "isa", "modules", "nc", "nchw", "running"]


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
    """Family -> Cython module built for the instruction set `name`."""
    if name not in available():
        raise ImportError(
            f"instruction set {name!r} (NORMCORE_ISA) is not one of those that this build has and "
            f"this CPU executes: {', '.join(available()) or 'none'}"
        )
    suffix = _suffix(name)
    return {
        "nchw": import_module(f"{__package__}.nchw_cy{suffix}"),
        "nc": import_module(f"{__package__}.nc_cy{suffix}"),
        "running": running,
    }


isa = os.environ.get("NORMCORE_ISA") or next(iter(available()), "baseline")
nchw = modules(isa)["nchw"]
nc = modules(isa)["nc"]
