"""The normalizations as autograd needs them: forward, backward, and a twin made of PyTorch's own.

A rule is one normalization with its options. Forward and backward are in terms of NumPy arrays,
and are those of `normcore.functional`. The twin computes y from tensors by PyTorch's functions; it
is only asked for when a gradient is to be differentiated again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backend, functional
from ..functional import layer_passes
from ..functional.batch import train as train_batch
from ..functional.batch_backward import backward as batch_backward
from ..functional.batch_renorm import train_renorm
from ..functional.instance_norm import train as train_instance

Array = np.ndarray[Any, Any]
Statistics = Any
"""A tuple of arrays, as many as the rule says."""


class Rule:
    """One normalization with its options."""

    __slots__ = ("activation",)

    activation: str | None

    def forward(self, x: Array, weight: Any, bias: Any, residual: Any) -> tuple[Array, Statistics]:
        """(y, what `backward` needs beside the arguments); updates running statistics."""
        raise NotImplementedError

    def infer(self, x: Array, weight: Any, bias: Any, residual: Any) -> Array:
        """y alone; updates running statistics too."""
        return self.forward(x, weight, bias, residual)[0]

    def gradients(
        self, dy: Array, x: Array, statistics: Statistics, weight: Any, **through: Any
    ) -> tuple[Array, Array, Array | None]:
        """(dx, dweight, dbias); `through` is what the functions take for an activation."""
        raise NotImplementedError

    def twin(self, x: Tensor, weight: Any, bias: Any, statistics: Statistics) -> Tensor:
        """The normalization by PyTorch, before residual and activation."""
        raise NotImplementedError


class Batch(Rule):
    """Batch normalization by the statistics of the batch."""

    __slots__ = ("count", "eps", "momentum", "running_mean", "running_var")

    def __init__(
        self,
        running_mean: Array | None,
        running_var: Array | None,
        count: Array | None,
        momentum: float,
        eps: float,
        activation: str | None,
    ) -> None:
        self.running_mean = running_mean
        self.running_var = running_var
        self.count = count
        self.momentum = momentum
        self.eps = eps
        self.activation = activation

    def forward(self, x: Array, weight: Any, bias: Any, residual: Any) -> tuple[Array, Statistics]:
        y, mean, rstd = train_batch(
            x,
            weight,
            bias,
            self.running_mean,
            self.running_var,
            self.count,
            self.momentum,
            self.eps,
            1,
            None,
            False,
            None,
            residual,
            self.activation,
        )
        return y, (mean, rstd)

    def gradients(
        self, dy: Array, x: Array, statistics: Statistics, weight: Any, **through: Any
    ) -> tuple[Array, Array, Array | None]:
        mean, rstd = statistics
        if not through:
            # `batch_backward` would do the same; in the midst of a backward it costs 2 us to get
            # there.
            done = backend.current().calls.batch_backward(
                dy, x, mean, rstd, weight, None, True, 1, None
            )
            if done is not None:
                return done
        return batch_backward(dy, x, mean, rstd, weight, True, 1, None, None, **through)

    def twin(self, x: Tensor, weight: Any, bias: Any, statistics: Statistics) -> Tensor:
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, self.eps)


class Evaluation(Batch):
    """Batch normalization by constants."""

    __slots__ = ()

    def forward(self, x: Array, weight: Any, bias: Any, residual: Any) -> tuple[Array, Statistics]:
        y = self.infer(x, weight, bias, residual)
        # Copies: what a later training step makes of the running statistics is not y's concern.
        mean = np.array(self.running_mean, np.float64)
        return y, (mean, 1 / np.sqrt(np.array(self.running_var, np.float64) + self.eps))

    def infer(self, x: Array, weight: Any, bias: Any, residual: Any) -> Array:
        return functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            weight,
            bias,
            False,
            0.0,
            self.eps,
            residual=residual,
            activation=self.activation,
        )

    def gradients(
        self, dy: Array, x: Array, statistics: Statistics, weight: Any, **through: Any
    ) -> tuple[Array, Array, Array | None]:
        mean, rstd = statistics
        return batch_backward(dy, x, mean, rstd, weight, False, 1, None, None, **through)

    def twin(self, x: Tensor, weight: Any, bias: Any, statistics: Statistics) -> Tensor:
        mean, rstd = (_spread(values, x) for values in statistics)
        return _affine((x - mean) * rstd, weight, bias)


class Renorm(Batch):
    """Batch renormalization by the statistics of the batch and the running ones."""

    __slots__ = ("limits",)

    def __init__(
        self,
        running_mean: Array | None,
        running_var: Array | None,
        count: Array | None,
        momentum: float,
        eps: float,
        activation: str | None,
        limits: tuple[float, float],
    ) -> None:
        super().__init__(running_mean, running_var, count, momentum, eps, activation)
        self.limits = limits

    def forward(self, x: Array, weight: Any, bias: Any, residual: Any) -> tuple[Array, Statistics]:
        y, *statistics = train_renorm(
            x,
            weight,
            bias,
            self.running_mean,
            self.running_var,
            self.count,
            *self.limits,
            self.momentum,
            self.eps,
            1,
            None,
            False,
            None,
            residual,
            self.activation,
            True,
        )
        return y, statistics

    def gradients(
        self, dy: Array, x: Array, statistics: Statistics, weight: Any, **through: Any
    ) -> tuple[Array, Array, Array | None]:
        mean, rstd, r, d = statistics
        return functional.batch_renorm_backward(dy, x, mean, rstd, r, d, weight, **through)

    def twin(self, x: Tensor, weight: Any, bias: Any, statistics: Statistics) -> Tensor:
        r, d = (_spread(values, x) for values in statistics[2:])
        return _affine(super().twin(x, None, None, statistics) * r + d, weight, bias)


class Layer(Rule):
    """Layer normalization over the last axes or over axis 1; RMS normalization."""

    __slots__ = ("axis", "centre", "eps", "shape")

    def __init__(
        self,
        shape: tuple[int, ...],
        eps: float | None,
        centre: bool,
        axis: int | None,
        activation: str | None,
    ) -> None:
        self.shape = shape
        self.eps = eps
        self.centre = centre
        self.axis = axis
        self.activation = activation

    def forward(self, x: Array, weight: Any, bias: Any, residual: Any) -> tuple[Array, Statistics]:
        y, mean, rstd = layer_passes.forward(
            x,
            self.shape,
            weight,
            bias,
            self.eps,
            self.axis,
            None,
            None,
            residual,
            self.activation,
            self.centre,
        )
        return y, (mean, rstd)

    def gradients(
        self, dy: Array, x: Array, statistics: Statistics, weight: Any, **through: Any
    ) -> tuple[Array, Array, Array | None]:
        mean, rstd = statistics
        return layer_passes.backward(
            dy,
            x,
            mean,
            rstd,
            self.shape,
            weight,
            self.axis,
            None,
            None,
            None,
            self.centre,
            **through,
        )

    def twin(self, x: Tensor, weight: Any, bias: Any, statistics: Statistics) -> Tensor:
        if self.axis is not None:
            x = x.movedim(self.axis, -1)
        if self.centre:
            y = F.layer_norm(x, self.shape, weight, bias, float(self.eps or 0))
        else:
            y = F.rms_norm(x, self.shape, weight, self.eps)
        return y if self.axis is None else y.movedim(-1, self.axis)


class Group(Rule):
    """Group normalization."""

    __slots__ = ("eps", "groups")

    def __init__(self, groups: int, eps: float, activation: str | None) -> None:
        self.groups = groups
        self.eps = eps
        self.activation = activation

    def forward(self, x: Array, weight: Any, bias: Any, residual: Any) -> tuple[Array, Statistics]:
        y, mean, rstd = functional.group_norm_forward(
            *(x, self.groups, weight, bias, self.eps), residual=residual, activation=self.activation
        )
        return y, (mean, rstd)

    def gradients(
        self, dy: Array, x: Array, statistics: Statistics, weight: Any, **through: Any
    ) -> tuple[Array, Array, Array | None]:
        mean, rstd = statistics
        return functional.group_norm_backward(dy, x, mean, rstd, self.groups, weight, **through)

    def twin(self, x: Tensor, weight: Any, bias: Any, statistics: Statistics) -> Tensor:
        return F.group_norm(x, self.groups, weight, bias, self.eps)


class Instance(Batch):
    """Instance normalization by the statistics of each sample."""

    __slots__ = ()

    def forward(self, x: Array, weight: Any, bias: Any, residual: Any) -> tuple[Array, Statistics]:
        y, mean, rstd = train_instance(
            *(x, weight, bias, self.running_mean, self.running_var, self.count, self.momentum),
            *(self.eps, 1, None, False, None, residual, self.activation),
        )
        return y, (mean, rstd)

    def gradients(
        self, dy: Array, x: Array, statistics: Statistics, weight: Any, **through: Any
    ) -> tuple[Array, Array, Array | None]:
        mean, rstd = statistics
        return functional.instance_norm_backward(dy, x, mean, rstd, weight, **through)

    def twin(self, x: Tensor, weight: Any, bias: Any, statistics: Statistics) -> Tensor:
        return F.instance_norm(x, None, None, weight, bias, True, 0.0, self.eps)


def _spread(values: Array | Tensor, x: Tensor) -> Tensor:
    """(C,) values against the channels of x."""
    return torch.as_tensor(values, dtype=x.dtype).view(-1, *[1] * (x.dim() - 2))


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        y = y * _spread(weight, y)
    return y if bias is None else y + _spread(bias, y)
