"""What a backward returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Gradients(NamedTuple):
    """What a backward returns."""

    dx: Array
    """Gradient of the loss with respect to x; shape and dtype of x."""
    dweight: Array
    """Gradient with respect to weight, in its shape."""
    dbias: Array
    """Gradient with respect to bias, in its shape."""


class RMSGradients(NamedTuple):
    """What the backward of a norm without bias returns."""

    dx: Array
    """Gradient of the loss with respect to x; shape and dtype of x."""
    dweight: Array
    """Gradient with respect to weight, in its shape."""
