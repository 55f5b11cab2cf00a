"""Cases of the smallest sizes for the tests of the benchmark: one of each kind."""

from dataclasses import replace
from types import SimpleNamespace

from bench import engines, tasks
from bench.cases import Case
from bench.data import crops, table
from bench.sweeps import Series
from normcore.reference_kernels import FAMILIES, NCHW

TINY = (
    Case("tiny", (2, 3, 8, 9), 1, crops, every=True),
    Case("tiny-last", (2, 8, 9, 3), 3, crops, every=True),
    Case("tiny-nc", (40, 5), 1, table, every=True),
)
FAMILY = (
    Case("ln", (6, 5, 64), 2, table, "layer"),
    Case("ln-channels", (3, 6, 5, 7), 1, crops, "layer"),
    Case("rms", (6, 5, 64), 2, table, "rms"),
    Case("gn", (3, 6, 8, 9), 1, crops, "group", 2),
    Case("gn-last", (3, 8, 9, 6), 3, crops, "group", 2),
    Case("in", (3, 6, 8, 9), 1, crops, "instance"),
    Case("in-last", (3, 8, 9, 6), 3, crops, "instance"),
)
HALVES = (
    Case("bn-bf16", (2, 3, 8, 9), 1, crops, dtype="bfloat16"),
    Case("ln-bf16", (6, 5, 64), 2, table, "layer", dtype="bfloat16"),
)
DOUBLES = (TINY[0].of_dtype("float64"), FAMILY[0].of_dtype("float64"))
FUSED = (
    Case("bn-relu", (3, 6, 8, 9), 1, crops, residual=True, activation="relu"),
    Case("ln-gelu", (6, 5, 64), 2, table, "layer", activation="gelu"),
    Case("add-ln", (6, 5, 64), 2, table, "layer", addend=True),
)
ALL = (*TINY, *FAMILY, *HALVES, *DOUBLES, *FUSED)


# One of each, with engines that need no compiler.
TINY_SERIES = (
    Series("sizes", (TINY[0], TINY[2]), ("numpy", "textbook"), ("forward",)),
    Series("threads", (TINY[0],), ("numpy", "textbook"), ("forward",), every_count=True),
    Series(
        "offset",
        (replace(TINY[0], name="tiny + 1e4 std", offset=1e4),),
        ("numpy", "textbook"),
        ("forward",),
    ),
)


def engine_with(**wrong):
    """The NumPy backend with some passes of nchw replaced."""
    names = [*tasks.BATCH_PASSES, "activation_grads"]
    passes = {name: wrong.get(name, getattr(NCHW, name)) for name in names}
    return engines.Normcore(
        "broken", SimpleNamespace(**{**FAMILIES, "nchw": SimpleNamespace(**passes)})
    )


def slightly_off(y, *rest):
    NCHW.forward(y, *rest)
    y *= 1 + 1e-5
