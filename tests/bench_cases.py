"""Cases of the smallest sizes for the tests of the benchmark: one of each kind."""

from types import SimpleNamespace

from bench import engines, tasks
from bench.cases import Case, crops, table
from normcore.reference_kernels import FAMILIES, NCHW

TINY = (
    Case("tiny", (2, 3, 8, 9), 1, crops),
    Case("tiny-last", (2, 8, 9, 3), 3, crops),
    Case("tiny-nc", (40, 5), 1, table),
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
FUSED = (
    Case("bn-relu", (3, 6, 8, 9), 1, crops, residual=True, activation="relu"),
    Case("ln-gelu", (6, 5, 64), 2, table, "layer", activation="gelu"),
    Case("add-ln", (6, 5, 64), 2, table, "layer", addend=True),
)
ALL = (*TINY, *FAMILY, *HALVES, *FUSED)


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
