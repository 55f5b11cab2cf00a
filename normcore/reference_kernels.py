"""The formulas of `normcore.reference` as the kernels of `normcore.kernels.table`.

This is the ``numpy`` backend, and what tests and benchmark hold every other backend against. A
family differs from another only in how its flat arrays become arrays with axes (`_Layout`): one
set of passes serves the channel families, one the layer families.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from . import reference as formulas

Array = np.ndarray[Any, Any]


def _wide(values: Array | None) -> Array | None:
    return None if values is None else values.astype(np.float64)


def _put(out: Array, values: Array) -> None:
    out[...] = values.reshape(out.shape)


class _Layout(Protocol):
    """Axes for the flat arrays of a channel family."""

    axes: tuple[int, ...]
    """Those that a statistic covers."""
    cell: tuple[int, ...]
    """Those of one cell of `moments`."""
    channel: tuple[int, ...]
    """Those of one channel of one sample."""
    shape: tuple[int, ...]

    def __init__(self, *sizes: int) -> None:
        """From the sizes of the family and, if not all channels have one, how many statistics."""

    def statistic(self, values: Array) -> Array: ...
    def parameter(self, values: Array | None) -> Array | None: ...
    def mask(self, values: Array | None) -> Array | None: ...


class _Nchw(_Layout):
    """(n, statistics, d, s)."""

    axes = (0, 2, 3)
    cell = (3,)
    channel = (0, 3)

    def __init__(self, *sizes: int) -> None:
        n, self.c, s = sizes[:3]
        groups = (*sizes, self.c)[3]
        self.shape = (n, groups, self.c // groups, s)

    def statistic(self, values: Array) -> Array:
        return values.reshape(1, -1, 1, 1)

    def parameter(self, values: Array | None) -> Array | None:
        if values is None:
            return None
        each: Array = np.resize(values.astype(np.float64), self.c)
        return each.reshape(1, *self.shape[1:3], 1)

    def mask(self, values: Array | None) -> Array | None:
        if values is None:
            return None
        n, groups, d, s = self.shape
        planes: Array = values.reshape(-1, s) != 0
        if n > 1:
            return planes.reshape(n, 1, 1, s)
        return np.repeat(planes, self.c // len(planes), axis=0).reshape(1, groups, d, s)


class _Nc(_Layout):
    """(b, m, statistics of one b, d)."""

    axes = (1, 3)
    cell = channel = (1,)

    def __init__(self, *sizes: int) -> None:
        b, m, c = sizes[:3]
        groups = (*sizes, b * c)[3] // b
        self.shape = (b, m, groups, c // groups)

    def statistic(self, values: Array) -> Array:
        return values.reshape(self.shape[0], 1, -1, 1)

    def parameter(self, values: Array | None) -> Array | None:
        return None if values is None else values.astype(np.float64).reshape(self.shape[2:])

    def mask(self, values: Array | None) -> Array | None:
        if values is None:
            return None
        rows: Array = values.reshape(*self.shape[:2], 1, 1) != 0
        return rows


def _by_parameter(cells: Array, size: int) -> Array:
    found: Array = cells.reshape(-1, size).sum(0)
    return found


class _Channels:
    """The passes of nchw and nc."""

    def __init__(self, layout: type[_Layout]) -> None:
        self.layout = layout

    def masked(self, mask: Array, statistics: int, *sizes: int) -> Any:
        """Axes for a flat array, and for its mask."""
        view = self.layout(*sizes, statistics)
        return view.shape, view.mask(mask)

    def moments(self, mean: Array, m2: Array, x: Array, *sizes: int) -> None:
        *lengths, _threads = sizes
        view = self.layout(*lengths)
        found = formulas.moments(x.reshape(view.shape), view.cell)
        _put(mean, found.mean)
        _put(m2, formulas.total(found.deviation**2, view.cell))

    def apply(
        self, y: Array, x: Array, residual: Array | None, mean: Array, var: Array,
        weight: Array | None, bias: Array | None, eps: float, activation: int, *sizes: int,
    ) -> None:  # fmt: skip
        *lengths, _threads = sizes
        view = self.layout(*lengths, mean.size)
        rstd = formulas.inverse_deviation(var.astype(np.float64), eps)
        z = self._before_activation(view, x, residual, mean, rstd, weight, bias)
        _put(y, formulas.ACTIVATION[activation](z))

    def forward(
        self, y: Array, mean: Array, var: Array, rstd: Array, x: Array, residual: Array | None,
        mask: Array | None, weight: Array | None, bias: Array | None, eps: float, activation: int,
        *sizes: int,
    ) -> None:  # fmt: skip
        *lengths, _threads = sizes
        view = self.layout(*lengths, mean.size)
        found = self._statistics(view, mean, var, rstd, x, mask, eps)
        z = formulas.normalize(
            found.deviation, view.statistic(rstd), view.parameter(weight), view.parameter(bias)
        )
        _put(y, formulas.ACTIVATION[activation](_add(z, residual)))

    def renorm(
        self, y: Array, mean: Array, var: Array, rstd: Array, r: Array, d: Array, x: Array,
        residual: Array | None, mask: Array | None, running_mean: Array, running_var: Array,
        r_max: float, d_max: float, weight: Array | None, bias: Array | None, eps: float,
        activation: int, *sizes: int,
    ) -> None:  # fmt: skip
        *lengths, _threads = sizes
        view = self.layout(*lengths, mean.size)
        found = self._statistics(view, mean, var, rstd, x, mask, eps)
        r[...], d[...] = formulas.renorm_correction(
            mean, var, running_mean.astype(np.float64), running_var.astype(np.float64),
            r_max, d_max, eps,
        )  # fmt: skip
        empty = rstd == 0
        r[empty], d[empty] = 1, 0
        x_hat = formulas.normalize(found.deviation, view.statistic(rstd))
        z = x_hat * view.statistic(r) + view.statistic(d)
        scale, shift = view.parameter(weight), view.parameter(bias)
        z = z if scale is None else z * scale
        z = z if shift is None else z + shift
        _put(y, formulas.ACTIVATION[activation](_add(z, residual)))

    def activation_grads(
        self, g: Array, dy: Array, x: Array, residual: Array | None, mean: Array, rstd: Array,
        weight: Array | None, bias: Array | None, activation: int, *sizes: int,
    ) -> None:  # fmt: skip
        *lengths, _threads = sizes
        view = self.layout(*lengths, mean.size)
        z = self._before_activation(view, x, residual, mean, rstd, weight, bias)
        _put(g, dy.reshape(z.shape).astype(np.float64) * formulas.SLOPE[activation](z))

    def reduce_grads(
        self, sum_dy: Array, sum_dy_xmu: Array, dy: Array, x: Array, mean: Array, *sizes: int
    ) -> None:
        *lengths, _threads = sizes
        view = self.layout(*lengths)
        gradient = dy.reshape(view.shape).astype(np.float64)
        deviation = x.reshape(view.shape) - view.statistic(mean)
        _put(sum_dy, formulas.total(gradient, view.axes))
        _put(sum_dy_xmu, formulas.total(gradient * deviation, view.axes))

    def apply_grads(
        self, dx: Array, dy: Array, x: Array, mean: Array, rstd: Array, weight: Array | None,
        sum_dy: Array, sum_dy_xmu: Array, count: float, *sizes: int,
    ) -> None:  # fmt: skip
        *lengths, _threads = sizes
        view = self.layout(*lengths)
        mean, rstd, sum_dy, sum_dy_xmu = (
            view.statistic(values) for values in (mean, rstd, sum_dy, sum_dy_xmu)
        )
        x_hat = (x.reshape(view.shape) - mean) * rstd
        found = rstd * (
            dy.reshape(view.shape) - sum_dy / count - x_hat * (sum_dy_xmu * rstd / count)
        )
        scale = view.parameter(weight)
        _put(dx, found if scale is None else found * scale)

    def backward(
        self, dx: Array, dweight: Array, dbias: Array, dy: Array, x: Array, mask: Array | None,
        mean: Array, rstd: Array, weight: Array | None, training: bool, *sizes: int,
    ) -> None:  # fmt: skip
        *lengths, _threads = sizes
        view = self.layout(*lengths, mean.size)
        gradient = dy.reshape(view.shape).astype(np.float64)
        deviation = x.reshape(view.shape) - view.statistic(mean)
        kept = view.mask(mask)
        inverse = view.statistic(rstd)
        if kept is not None:
            gradient, deviation = np.where(kept, gradient, 0), np.where(kept, deviation, 0)
        if training:
            # As in `moments`: what a rounded mean leaves in the deviations comes off again.
            deviation = deviation - formulas.average(deviation, view.axes, kept)
        scale = view.parameter(weight)
        scaled = gradient if scale is None else gradient * scale
        found = scaled * inverse
        if training:
            found = formulas.input_gradient(scaled, deviation, inverse, view.axes, mask=kept)
        _put(dx, found if kept is None else np.where(kept, found, 0))
        x_hat = deviation * inverse
        if kept is not None:
            x_hat = np.where(kept, x_hat, 0)
        _put(dweight, _by_parameter(formulas.total(gradient * x_hat, view.channel), dweight.size))
        _put(dbias, _by_parameter(formulas.total(gradient, view.channel), dbias.size))

    def activation_backward(
        self, dx: Array, dweight: Array, dbias: Array, g: Array | None, dy: Array, x: Array,
        residual: Array | None, mask: Array | None, mean: Array, rstd: Array,
        weight: Array | None, bias: Array | None, activation: int, training: bool, *sizes: int,
    ) -> None:  # fmt: skip
        *lengths, _threads = sizes
        view = self.layout(*lengths, mean.size)
        before = np.empty(x.shape)
        self.activation_grads(before, dy, x, residual, mean, rstd, weight, bias, activation, *sizes)
        if g is not None:
            kept = view.mask(mask)
            _put(g, before if kept is None else np.where(kept, before.reshape(view.shape), 0))
        self.backward(dx, dweight, dbias, before, x, mask, mean, rstd, weight, training, *sizes)

    def _statistics(
        self, view: _Layout, mean: Array, var: Array, rstd: Array, x: Array,
        mask: Array | None, eps: float,
    ) -> formulas.Moments:  # fmt: skip
        kept = view.mask(mask)
        found = formulas.moments(x.reshape(view.shape), view.axes, mask=kept)
        _put(mean, found.mean)
        _put(var, found.var)
        rstd[...] = formulas.inverse_deviation(var, eps)
        if kept is not None:
            _put(rstd, _none_where_empty(view.statistic(rstd), kept, view.shape, view.axes))
        return found

    def _before_activation(
        self, view: _Layout, x: Array, residual: Array | None, mean: Array, rstd: Array,
        weight: Array | None, bias: Array | None,
    ) -> Array:  # fmt: skip
        deviation = x.reshape(view.shape) - view.statistic(mean.astype(np.float64))
        z = formulas.normalize(
            deviation, view.statistic(rstd), view.parameter(weight), view.parameter(bias)
        )
        return _add(z, residual)


def _add(z: Array, residual: Array | None) -> Array:
    return z if residual is None else z + residual.reshape(z.shape)


def _none_where_empty(rstd: Array, kept: Array, shape: Any, axes: Any) -> Array:
    """Rstd, 0 for statistics of which nothing counts."""
    found: Array = np.where(np.any(np.broadcast_to(kept, shape), axes, keepdims=True), rstd, 0)
    return found


class _Layers:
    """The passes of rows and cols. x becomes (b, m, c); rows are b = r, c = 1."""

    axes = (1,)

    def __init__(self, rows: bool) -> None:
        self.rows = rows

    def masked(self, mask: Array, statistics: int, *sizes: int) -> Any:
        """As of `_Channels`."""
        shape = self._shape([*sizes])
        return shape, self._mask(mask, shape)

    def _shape(self, sizes: list[int]) -> tuple[int, ...]:
        return (*sizes, 1) if self.rows else tuple(sizes)

    def _mask(self, mask: Array | None, shape: tuple[int, ...]) -> Array | None:
        if mask is None:
            return None
        if not self.rows:
            columns: Array = mask.reshape(shape[0], 1, shape[2]) != 0
            return columns
        kept: Array = np.repeat(mask != 0, shape[0] * shape[1] // mask.size).reshape(shape)
        return kept

    def _parameter(self, values: Array | None) -> Array | None:
        return None if values is None else values.astype(np.float64).reshape(1, -1, 1)

    def _statistic(self, values: Array, shape: tuple[int, ...]) -> Array:
        return values.reshape(shape[0], 1, shape[2])

    def forward(
        self, y: Array, mean: Array | None, rstd: Array, x: Array, residual: Array | None,
        mask: Array | None, weight: Array | None, bias: Array | None, eps: float, activation: int,
        *sizes: int,
    ) -> None:  # fmt: skip
        *lengths, _threads = sizes
        shape = self._shape(lengths)
        kept = self._mask(mask, shape)
        found = formulas.moments(x.reshape(shape), self.axes, mask=kept, centre=mean is not None)
        inverse = formulas.inverse_deviation(found.var, eps)
        if kept is not None:
            inverse = _none_where_empty(inverse, kept, shape, self.axes)
        if mean is not None:
            _put(mean, found.mean)
        _put(rstd, inverse)
        z = formulas.normalize(
            found.deviation, inverse, self._parameter(weight), self._parameter(bias)
        )
        _put(y, formulas.ACTIVATION[activation](_add(z, residual)))

    def add_forward(
        self, y: Array, total: Array, mean: Array | None, rstd: Array, x: Array, addend: Array,
        weight: Array | None, bias: Array | None, eps: float, *sizes: int,
    ) -> None:  # fmt: skip
        total[...] = x.astype(np.float64) + addend.astype(np.float64)
        self.forward(y, mean, rstd, total, None, None, weight, bias, eps, 0, *sizes)

    def activation_grads(
        self, g: Array, dy: Array, x: Array, residual: Array | None, mean: Array | None,
        rstd: Array, weight: Array | None, bias: Array | None, activation: int, *sizes: int,
    ) -> None:  # fmt: skip
        *lengths, _threads = sizes
        shape = self._shape(lengths)
        deviation = x.reshape(shape).astype(np.float64)
        if mean is not None:
            deviation = deviation - self._statistic(mean, shape)
        z = formulas.normalize(
            deviation, self._statistic(rstd, shape), self._parameter(weight), self._parameter(bias)
        )
        slope = formulas.SLOPE[activation](_add(z, residual))
        _put(g, dy.reshape(shape).astype(np.float64) * slope)

    def backward(
        self, dx: Array, dweight: Array, dbias: Array, dy: Array, x: Array, addend: Array | None,
        mask: Array | None, mean: Array | None, rstd: Array, weight: Array | None, *sizes: int,
    ) -> None:  # fmt: skip
        *lengths, _threads = sizes
        shape = self._shape(lengths)
        kept = self._mask(mask, shape)
        gradient = dy.reshape(shape).astype(np.float64)
        deviation = x.reshape(shape).astype(np.float64)
        if kept is not None:
            gradient, deviation = np.where(kept, gradient, 0), np.where(kept, deviation, 0)
        if mean is not None:
            deviation = deviation - self._statistic(mean, shape)
            deviation = deviation - formulas.average(deviation, self.axes, kept)
        inverse = self._statistic(rstd, shape)
        scale = self._parameter(weight)
        scaled = gradient if scale is None else gradient * scale
        found = formulas.input_gradient(
            scaled, deviation, inverse, self.axes, mask=kept, centre=mean is not None
        )
        x_hat = deviation * inverse
        if kept is not None:
            found, x_hat = np.where(kept, found, 0), np.where(kept, x_hat, 0)
        _put(dx, _add(found, addend))
        _put(dweight, formulas.total(gradient * x_hat, (0, 2)))
        _put(dbias, formulas.total(gradient, (0, 2)))

    def activation_backward(
        self, dx: Array, dweight: Array, dbias: Array, g: Array | None, dy: Array, x: Array,
        residual: Array | None, mask: Array | None, mean: Array | None, rstd: Array,
        weight: Array | None, bias: Array | None, activation: int, *sizes: int,
    ) -> None:  # fmt: skip
        *lengths, _threads = sizes
        shape = self._shape(lengths)
        before = np.empty(x.shape)
        self.activation_grads(before, dy, x, residual, mean, rstd, weight, bias, activation, *sizes)
        if g is not None:
            kept = self._mask(mask, shape)
            _put(g, before if kept is None else np.where(kept, before.reshape(shape), 0))
        self.backward(dx, dweight, dbias, before, x, None, mask, mean, rstd, weight, *sizes)


NCHW = _Channels(_Nchw)
NC = _Channels(_Nc)
ROWS = _Layers(rows=True)
COLS = _Layers(rows=False)
RUNNING = SimpleNamespace(update=formulas.update)
FAMILIES: dict[str, Any] = {"nchw": NCHW, "nc": NC, "rows": ROWS, "cols": COLS}
