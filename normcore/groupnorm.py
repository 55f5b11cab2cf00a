"""Group normalization as a layer with state: `GroupNorm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import axes, backend, check
from .functional.gradients import Gradients
from .functional.group_norm import (
    group_norm_backward,
    group_norm_forward,
)
from .layer import Saved
from .samplewise import SamplewiseLayer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

Array = np.ndarray[Any, Any]


class GroupNorm(SamplewiseLayer):
    """Group normalization of (N, C, *) arrays.

    y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual),

    with the mean and the population variance of each sample and group of adjacent channels, in
    training and in evaluation.

    Parameters
    ----------
    num_groups : int
        Divides num_channels.
    num_channels : int
        C, the number of channels.
    eps : float, optional
        Positive.
    affine : bool, optional
        Have ``weight`` and ``bias``, of shape (C,).
    axis : int, optional
        The channel axis: 1 for channels-first, -1 for channels-last; not 0, the samples' axis.
    dtype : dtype, optional
        Of weight and bias, float32 or float64. x may be another one.
    activation : {None, "relu", "relu6", "leaky_relu", "silu", "gelu"}, optional
        Fused into the same pass over memory; as in `normcore.functional.group_norm`.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above.

    References
    ----------
    Y. Wu and K. He, "Group normalization", ECCV 2018; defaults and names are those of
    ``torch.nn.GroupNorm``.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> gn = nc.GroupNorm(2, 4)
    >>> gn(np.array([[1.0, 3.0, 10.0, 30.0]])).round(3)
    array([[-1.,  1., -1.,  1.]])
    >>> gn.backward(np.ones((1, 4))).dbias
    array([1., 1., 1., 1.], dtype=float32)
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        axis: int = 1,
        dtype: DTypeLike = np.float32,
        activation: str | None = None,
    ) -> None:
        super().__init__(activation)
        self.num_channels = check.size("num_channels", num_channels)
        self.num_groups = axes.groups(num_groups, self.num_channels)
        self.eps = check.eps(eps)
        self.affine = bool(affine)
        self.axis = axes.behind_samples(axis)
        self.dtype = check.layer_dtype(dtype)
        self.weight = np.ones(self.num_channels, self.dtype) if affine else None
        self.bias = np.zeros(self.num_channels, self.dtype) if affine else None

    def _input(self, x: Any) -> Array:
        found = super()._input(x)
        axis = axes.group_axis(self.axis, found)
        if found.shape[axis] != self.num_channels:
            raise ValueError(
                f"x: expected {self.num_channels} channels along axis {self.axis}, "
                f"got shape {found.shape}"
            )
        return found

    def _plain(self, x: Array, out: Array | None, residual: Any) -> Array | None:
        shape, axis = x.shape, self.axis
        if not -len(shape) <= axis < len(shape) or shape[axis] != self.num_channels:
            return None
        return backend.current().calls.group_apply(
            x,
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            axis,
            out,
            residual,
            self.activation,
        )

    def _normalized(
        self, x: Array, out: Array | None, residual: Array | None, mask: Any
    ) -> tuple[Array, Array, Array]:
        return group_norm_forward(
            *(x, self.num_groups, self.weight, self.bias, self.eps),
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
    ) -> Gradients:
        return group_norm_backward(
            *(dy, x, saved.mean, saved.rstd, self.num_groups, self.weight),
            axis=self.axis,
            out=out,
            mask=saved.mask,
            bias=self.bias,
            activation=self.activation,
            residual=saved.residual,
            dresidual=dresidual,
        )

    def __repr__(self) -> str:
        return (
            f"GroupNorm({self.num_groups}, {self.num_channels}, eps={self.eps}, "
            f"affine={self.affine}{self._further(1)})"
        )
