"""Layer and RMS normalization as layers with state: `LayerNorm`, `RMSNorm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import axes, backend, check
from .functional.layer_norm import (
    layer_norm_backward,
    layer_norm_forward,
)
from .functional.rms_norm import (
    rms_norm_backward,
    rms_norm_forward,
)
from .layer import Saved
from .samplewise import SamplewiseLayer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

Array = np.ndarray[Any, Any]


class _OverAxes(SamplewiseLayer):
    """What `LayerNorm` and `RMSNorm` have in common: which axes they normalize."""

    centre: bool
    """Is the mean subtracted?"""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None,
        elementwise_affine: bool,
        axis: int | Sequence[int] | None,
        dtype: DTypeLike,
        activation: str | None,
    ) -> None:
        super().__init__(activation)
        self.normalized_shape = axes.lengths(normalized_shape)
        for length in self.normalized_shape:
            check.size("normalized_shape", length)
        self.eps = None if eps is None else check.eps(eps)
        self.elementwise_affine = bool(elementwise_affine)
        self.axis = None if axis is None else axes.layer_axes(axis, self.normalized_shape)
        self.dtype = check.layer_dtype(dtype)
        self.weight = np.ones(self.normalized_shape, self.dtype) if elementwise_affine else None
        self.bias = None

    def _plain(self, x: Array, out: Array | None, residual: Any) -> Array | None:
        if self.axis is not None:
            return None
        return backend.current().calls.layer_apply(
            x,
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            out,
            residual,
            self.activation,
            self.centre,
        )

    def __repr__(self) -> str:
        affine = f"elementwise_affine={self.elementwise_affine}"
        return f"{type(self).__name__}({self.normalized_shape}, eps={self.eps}, {affine}"


class LayerNorm(_OverAxes):
    """Layer normalization of the last axes of an array, or of any others.

    y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual),

    with the mean and the population variance over the normalized axes, in training and in
    evaluation.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Lengths of the normalized axes.
    eps : float, optional
        Positive.
    elementwise_affine : bool, optional
        Have ``weight`` (and ``bias``), of shape normalized_shape.
    bias : bool, optional
        Have ``bias``, if the layer has ``weight``.
    axis : int or sequence of int, optional
        The normalized axes, one for each length; None for the last ones. ``axis=1`` normalizes
        over the channel axis of (N, C, H, W) with no transpose.
    dtype : dtype, optional
        Of weight and bias, float32 or float64. x may be another one.
    activation : {None, "relu", "relu6", "leaky_relu", "silu", "gelu"}, optional
        Fused into the same pass over memory; as in `normcore.functional.layer_norm`.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above.

    References
    ----------
    J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", 2016; defaults and names are
    those of ``torch.nn.LayerNorm``.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.random.default_rng(0).normal(5, 2, (8, 3, 4)).astype(np.float32)
    >>> ln = nc.LayerNorm(4)
    >>> y = ln(x)
    >>> bool(abs(y.mean(-1)).max() < 1e-6)
    True
    >>> dx, dweight, dbias = ln.backward(np.ones_like(y))
    >>> dbias
    array([24., 24., 24., 24.], dtype=float32)
    >>> channels_first = nc.LayerNorm(3, axis=1)
    >>> bool(np.allclose(channels_first(x), nc.LayerNorm(3)(x.swapaxes(1, 2)).swapaxes(1, 2)))
    True
    """

    eps: float
    centre = True

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        axis: int | Sequence[int] | None = None,
        dtype: DTypeLike = np.float32,
        activation: str | None = None,
    ) -> None:
        eps = check.eps(eps)
        super().__init__(normalized_shape, eps, elementwise_affine, axis, dtype, activation)
        if elementwise_affine and bias:
            self.bias = np.zeros(self.normalized_shape, self.dtype)

    def _normalized(
        self, x: Array, out: Array | None, residual: Array | None, mask: Any
    ) -> tuple[Array, Array, Array]:
        return layer_norm_forward(
            *(x, self.normalized_shape, self.weight, self.bias, self.eps),
            axis=self.axis,
            out=out,
            mask=mask,
            residual=residual,
            activation=self.activation,
        )

    def _gradients(
        self,
        dy: ArrayLike,
        x: Array,
        saved: Saved,
        out: Array | None,
        dresidual: Array | None,
    ) -> tuple[Array, Array, Array]:
        return layer_norm_backward(
            *(dy, x, saved.mean, saved.rstd, self.normalized_shape, self.weight),
            axis=self.axis,
            out=out,
            mask=saved.mask,
            bias=self.bias,
            activation=self.activation,
            residual=saved.residual,
            dresidual=dresidual,
        )

    def __repr__(self) -> str:
        return f"{super().__repr__()}, bias={self.bias is not None}{self._further(None)})"


class RMSNorm(_OverAxes):
    """RMS normalization of the last axes of an array, or of any others.

    y = activation(x / sqrt(mean(x^2) + eps) * weight + residual),

    with the mean over the normalized axes, in training and in evaluation. There is no bias.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Lengths of the normalized axes.
    eps : float, optional
        Positive; None for the machine epsilon of x's dtype (float32's for halves).
    elementwise_affine : bool, optional
        Have ``weight``, of shape normalized_shape.
    axis : int or sequence of int, optional
        The normalized axes, as in `LayerNorm`.
    dtype : dtype, optional
        Of weight, float32 or float64. x may be another one.
    activation : {None, "relu", "relu6", "leaky_relu", "silu", "gelu"}, optional
        As in `LayerNorm`.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above.

    References
    ----------
    B. Zhang and R. Sennrich, "Root mean square layer normalization", NeurIPS 2019; defaults and
    names are those of ``torch.nn.RMSNorm``.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> rms = nc.RMSNorm(4)
    >>> rms(np.array([[3.0, 4.0, 0.0, 0.0]])).round(3)
    array([[1.2, 1.6, 0. , 0. ]])
    >>> rms.backward(np.ones((1, 4))).dbias is None
    True
    """

    centre = False

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        axis: int | Sequence[int] | None = None,
        dtype: DTypeLike = np.float32,
        activation: str | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, axis, dtype, activation)

    def _normalized(
        self, x: Array, out: Array | None, residual: Array | None, mask: Any
    ) -> tuple[Array, Array, Array]:
        y, rstd = rms_norm_forward(
            *(x, self.normalized_shape, self.weight, self.eps),
            axis=self.axis,
            out=out,
            mask=mask,
            residual=residual,
            activation=self.activation,
        )
        return y, np.zeros(()), rstd

    def _gradients(
        self,
        dy: ArrayLike,
        x: Array,
        saved: Saved,
        out: Array | None,
        dresidual: Array | None,
    ) -> tuple[Array, Array, Array]:
        dx, dweight = rms_norm_backward(
            *(dy, x, saved.rstd, self.normalized_shape, self.weight),
            axis=self.axis,
            out=out,
            mask=saved.mask,
            activation=self.activation,
            residual=saved.residual,
            dresidual=dresidual,
        )
        # The layer has no bias, so that its gradient goes nowhere.
        return dx, dweight, np.zeros(())

    def __repr__(self) -> str:
        return f"{super().__repr__()}{self._further(None)})"
