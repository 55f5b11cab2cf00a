"""Every way to call layer, RMS, group and instance norm, with the oracle's answers.

A `Norm` is a function of `normcore.functional` with a shape and axes: tests of what they all
promise run over `NORMS`.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from normcore.kernels.table import ACTIVATIONS
from numpy.random import default_rng

import normcore.functional as F
from normcore import reference

EPS = 1e-5


@dataclass(frozen=True)
class Norm:
    """One way to call one of the functions."""

    kind: str
    shape: tuple
    axis: int | tuple | None = None
    groups: int | None = None
    """Of group norm."""

    def __str__(self):
        return f"{self.kind}-{self.shape}-{self.axis}" + (f"-{self.groups}" if self.groups else "")

    @property
    def by_channel(self):
        return self.kind in ("group", "instance")

    @property
    def centre(self):
        return self.kind != "rms"

    @property
    def axes(self):
        """The normalized axes, or the channel axis, not negative."""
        given = (self.axis,) if isinstance(self.axis, int) else self.axis
        return tuple(i % len(self.shape) for i in given or (-1,))

    @property
    def parameters(self):
        """Shape of weight and bias."""
        return tuple(self.shape[i] for i in self.axes)

    @property
    def statistics(self):
        if self.by_channel:
            return self.shape[0], self.groups or self.parameters[0]
        return tuple(n for i, n in enumerate(self.shape) if i not in self.axes)

    @property
    def positions(self):
        """Shape of a mask that keeps or leaves whole positions."""
        return tuple(n for i, n in enumerate(self.shape) if i not in self.axes)

    # The oracle's axes: (statistics, d channels, s) or (statistics, normalized).

    @property
    def order(self):
        others = [i for i in range(len(self.shape)) if i not in self.axes]
        if self.by_channel:
            return (0, *self.axes, *others[1:])
        return (*others, *self.axes)

    def canonical(self, values):
        values = np.broadcast_to(values, self.shape).transpose(self.order)
        if self.by_channel:
            n, groups = self.statistics
            return values.reshape(n, groups, self.parameters[0] // groups, -1)
        return values.reshape(-1, int(np.prod(self.parameters)))

    def back(self, values):
        shape = [self.shape[i] for i in self.order]
        return values.reshape(shape).transpose(np.argsort(self.order))

    @property
    def over(self):
        return (2, 3) if self.by_channel else (1,)

    def spread(self, values):
        if values is None:
            return None
        wide = np.asarray(values, np.float64)
        return (
            wide.reshape(1, self.statistics[1], -1, 1) if self.by_channel else wide.reshape(1, -1)
        )

    def by_parameter(self, values):
        return values.sum((0, 3) if self.by_channel else 0).reshape(self.parameters)

    def full(self, mask):
        """A mask with the shape of x."""
        if mask.shape == self.positions:
            mask = np.expand_dims(mask, self.axes)
        return np.broadcast_to(mask, self.shape)

    # The functions.

    @property
    def _where(self):
        return {} if self.axis is None else {"axis": self.axis}

    @property
    def _middle(self):
        """Positional arguments between the arrays and weight."""
        return {"group": [self.groups], "instance": []}.get(self.kind, [self.parameters])

    def _function(self, half):
        return getattr(F, f"{self.kind}_norm{half}")

    def forward(self, x, weight=None, bias=None, eps=EPS, **options):
        """(y, saved)."""
        parameters = [weight, bias] if self.centre else [weight]
        y, *saved = self._function("_forward")(
            x, *self._middle, *parameters, eps, **self._where, **options
        )
        return y, saved

    def call(self, x, weight=None, bias=None, eps=EPS, **options):
        if self.kind == "instance":
            return F.instance_norm(x, None, None, weight, bias, eps=eps, **self._where, **options)
        parameters = [weight, bias] if self.centre else [weight]
        return self._function("")(x, *self._middle, *parameters, eps, **self._where, **options)

    def backward(self, dy, x, saved, weight=None, **options):
        return self._function("_backward")(
            dy, x, *saved, *self._middle, weight, **self._where, **options
        )

    def before(self, dy, x, saved, weight=None, bias=None, **options):
        parameters = [weight, bias] if self.centre else [weight]
        return self._function("_activation_backward")(
            dy, x, *saved, *self._middle, *parameters, **self._where, **options
        )


NORMS = [
    Norm("layer", (6, 5)),
    Norm("layer", (3, 4, 5, 7), (-2, -1)),
    Norm("layer", (3, 6, 5, 4), 1),
    Norm("layer", (3, 6, 5, 4), (3, 1)),
    Norm("layer", (4, 3, 5), (0, 1, 2)),
    Norm("rms", (4, 33)),
    Norm("rms", (3, 6, 5, 4), (1, 2)),
    Norm("group", (5, 6), 1, 3),
    Norm("group", (3, 6, 5, 4), 1, 2),
    Norm("group", (3, 5, 4, 6), -1, 3),
    Norm("group", (3, 5, 6, 4), 2, 2),
    Norm("instance", (3, 4, 7), 1),
    Norm("instance", (3, 5, 4, 6), -1),
    Norm("instance", (2, 3, 2, 5, 4), 1),
]
LARGE = [
    Norm("layer", (64, 9, 130)),
    Norm("layer", (2, 130, 9, 33), 1),
    Norm("rms", (70, 1030)),
    Norm("group", (4, 32, 24, 24), 1, 8),
    Norm("instance", (4, 20, 20, 33), -1),
]


def problem(norm, dtype=np.float32, offset=0.0, seed=0):
    """Random x, dy, residual, weight and bias."""
    rng = default_rng(seed)
    real = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    return SimpleNamespace(
        x=(rng.standard_normal(norm.shape) * 2 + offset).astype(dtype),
        dy=rng.standard_normal(norm.shape).astype(dtype),
        residual=rng.standard_normal(norm.shape).astype(dtype),
        weight=rng.uniform(0.5, 1.5, norm.parameters).astype(real),
        bias=rng.standard_normal(norm.parameters).astype(real) if norm.centre else None,
    )


def truth(norm, x, dy, weight=None, bias=None, eps=EPS, mask=None, residual=None, activation=None):
    """What must come out, in float64; `mask` has the shape of x."""
    number = ACTIVATIONS[activation]
    wide, gradient = (norm.canonical(a).astype(np.float64) for a in (x, dy))
    kept = None if mask is None else norm.canonical(mask)
    found = reference.moments(wide, norm.over, mask=kept, centre=norm.centre)
    rstd = reference.inverse_deviation(found.var, eps)
    if kept is not None:
        rstd = np.where(kept.any(norm.over, keepdims=True), rstd, 0)
    scale = norm.spread(weight)
    z = reference.normalize(found.deviation, rstd, scale, norm.spread(bias))
    if residual is not None:
        z = z + norm.canonical(residual).astype(np.float64)
    g = gradient * reference.SLOPE[number](z)
    deviation = found.deviation
    if kept is not None:
        g, deviation = np.where(kept, g, 0), np.where(kept, deviation, 0)
    x_hat = deviation * rstd
    dx = reference.input_gradient(
        g if scale is None else g * scale, deviation, rstd, norm.over, mask=kept, centre=norm.centre
    )
    return SimpleNamespace(
        y=norm.back(reference.ACTIVATION[number](z)),
        mean=found.mean.reshape(norm.statistics),
        rstd=rstd.reshape(norm.statistics),
        g=norm.back(g),
        dx=norm.back(dx if kept is None else np.where(kept, dx, 0)),
        dweight=norm.by_parameter(g * x_hat),
        dbias=norm.by_parameter(g),
        summands=np.sqrt(norm.by_parameter((g * x_hat) ** 2)),
    )
