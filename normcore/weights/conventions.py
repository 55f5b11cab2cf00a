"""Where the conventions of other systems differ from normcore's (PyTorch's), for all converters."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from ..instancenorm import InstanceNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d

Array = np.ndarray[Any, Any]

BATCH_NORM: dict[int, type[BatchNorm]] = {
    2: BatchNorm1d,
    3: BatchNorm1d,
    4: BatchNorm2d,
    5: BatchNorm3d,
}
"""The layer for arrays of that many axes."""
INSTANCE_NORM: dict[int, type[InstanceNorm]] = {
    3: InstanceNorm1d,
    4: InstanceNorm2d,
    5: InstanceNorm3d,
}


def complement(momentum: float) -> float:
    """The weight of the new batch from that of the old statistics, or the other way round.

    To nine digits, so that ONNX's float32 0.9 is what was meant.

    >>> complement(0.99), complement(float(np.float32(0.9)))
    (0.01, 0.1)
    """
    return round(1 - momentum, 7)
