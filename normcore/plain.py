"""The plain calls of a backend that has none: NumPy, and Numba where Cython was not built.

A compiled backend takes whole calls of plain arrays from Python to the kernel at once
(`kernels/calls_cy.pyx`, which says what is plain). Whoever asks for one gets the result, or None,
and then goes the general way, which also finds the error where there is one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Calls:
    """Every call goes the general way. Arguments are those of the compiled methods."""

    def batch_apply(self, *arguments: Any) -> Array | None:
        """y of batch normalization by running statistics."""
        return None

    def batch_train(self, *arguments: Any) -> Array | None:
        """y of batch normalization in training."""
        return None

    def batch_forward(self, *arguments: Any) -> tuple[Array, Array, Array] | None:
        """(y, mean, rstd) of the same."""
        return None

    def batch_backward(self, *arguments: Any) -> tuple[Array, Array, Array] | None:
        """(dx, dweight, dbias) of the same."""
        return None

    def layer_apply(self, *arguments: Any) -> Array | None:
        """y of layer or RMS normalization of the last axes."""
        return None

    def layer_forward(self, *arguments: Any) -> tuple[Array, Array | None, Array] | None:
        """(y, mean, rstd) of the same; mean is None without `centre`."""
        return None

    def layer_backward(self, *arguments: Any) -> tuple[Array, Array, Array] | None:
        """(dx, dweight, dbias) of the same."""
        return None

    def group_apply(self, *arguments: Any) -> Array | None:
        """y of group or instance normalization."""
        return None

    def group_forward(self, *arguments: Any) -> tuple[Array, Array, Array] | None:
        """(y, mean, rstd) of the same."""
        return None

    def group_backward(self, *arguments: Any) -> tuple[Array, Array, Array] | None:
        """(dx, dweight, dbias) of the same."""
        return None
