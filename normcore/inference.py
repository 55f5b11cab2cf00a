"""`compile_inference`: a layer's evaluation as a prepared call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backend, check
from .fused import FusedLayer
from .groupnorm import GroupNorm
from .instancenorm import InstanceNorm
from .layernorm import LayerNorm, RMSNorm
from .plain import Calls
from .running import RunningLayer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

Array = np.ndarray[Any, Any]
Plain = Callable[[Array, Any, Any], Array | None]


class PreparedInference:
    """What `compile_inference` returns: call it with x, and `out` and `residual` if you like.

    x must have exactly `shape` and `dtype`; any memory layout will do, and C-contiguous is fast.
    Any number of threads may call it at once.
    """

    __slots__ = ("_chosen", "_layer", "_plain", "dtype", "shape")

    def __init__(self, layer: FusedLayer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self._layer = layer
        self._chosen = backend.current()
        self._plain = _plain(self._chosen.calls, layer, shape)

    def __call__(
        self, x: ArrayLike, out: Array | None = None, residual: ArrayLike | None = None
    ) -> Array:
        """Normalize x as the layer did in evaluation when it was compiled.

        Parameters
        ----------
        x : array_like
            Of the shape and dtype that were prepared.
        out : ndarray, optional
            Receives y. May be x.
        residual : array_like, optional
            Added before the activation; shape and dtype of x.

        Returns
        -------
        y : ndarray
            Shape, dtype and memory layout of x; `out` if that is given.

        Raises
        ------
        TypeError, ValueError
            For another shape or dtype, and as the layer does.
        """
        if type(x) is np.ndarray and x.shape == self.shape and x.dtype is self.dtype:
            y = self._plain(x, out, residual)
            if y is not None:
                return y
        x = check.array("x", x)
        if x.shape != self.shape:
            raise ValueError(f"x: expected the prepared shape {self.shape}, got {x.shape}")
        if x.dtype.type is not self.dtype.type:
            raise TypeError(f"x: expected the prepared dtype {self.dtype}, got {x.dtype}")
        with backend.using(self._chosen):
            return self._layer.forward(x, out, residual=residual)

    def __repr__(self) -> str:
        return f"PreparedInference({self._layer!r}, shape={self.shape}, dtype={self.dtype})"


def compile_inference(
    layer: FusedLayer, shape: Sequence[int], dtype: DTypeLike | None = None
) -> PreparedInference:
    """Prepare the evaluation of a layer for one shape: `op(x, out)` with everything resolved.

    The call takes a copy of the layer's parameters and running statistics as they are now, and the
    backend that is in force now: what is done to the layer afterwards (training steps,
    `load_state_dict`, `freeze`), and `set_backend`, does not reach it; compile again. The number
    of threads is that of the moment of each call. Nothing is folded into one factor and one
    summand: y has the bits of ``layer.eval()(x)``, with its accuracy at a large mean.

    Parameters
    ----------
    layer : layer of normcore
        In either mode; it stays as it is.
    shape : sequence of int
        The shape of x.
    dtype : dtype, optional
        Of x: float32, float64, float16 or bfloat16; None for that of the layer's parameters.

    Returns
    -------
    PreparedInference
        Call it as ``op(x)``, ``op(x, out)`` or ``op(x, out, residual)``.

    Raises
    ------
    TypeError
        For what is no such layer, shape or dtype.
    ValueError
        If the layer cannot normalize arrays of this shape.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> bn = nc.BatchNorm1d(3)
    >>> op = nc.compile_inference(bn, (2, 3))
    >>> x = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)
    >>> y = np.empty_like(x)
    >>> op(x, y) is y, bool(np.array_equal(y, bn.eval()(x)))
    (True, True)
    >>> op(x[:1])
    Traceback (most recent call last):
        ...
    ValueError: x: expected the prepared shape (2, 3), got (1, 3)
    """
    if not isinstance(layer, FusedLayer):
        raise TypeError(f"layer: expected a layer of normcore, got {type(layer).__name__}")
    lengths = _shape(shape)
    own = copy.deepcopy(layer).eval()
    # The type's own dtype object, native: the calls compare by identity.
    kind = layer.dtype if dtype is None else np.dtype(dtype)
    example = check.array("dtype", np.zeros(lengths, np.dtype(kind.type)))
    # A first call finds what is wrong with the shape, and compiles what has to be compiled.
    own.forward(example)
    return PreparedInference(own, lengths, example.dtype)


def _shape(value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"shape: expected a sequence of int, got {value!r}")
    for n in value:
        if isinstance(n, bool) or not isinstance(n, int | np.integer):
            raise TypeError(f"shape: expected a sequence of int, got {value!r}")
        if n < 0:
            raise ValueError(f"shape: expected no negative length, got {value!r}")
    return tuple(int(n) for n in value)


# The arguments of plain calls as variables of a function, which cost a tenth of attributes.


def _plain(calls: Calls, layer: FusedLayer, shape: tuple[int, ...]) -> Plain:
    """The plain call of a layer in evaluation, which may always answer None."""
    if isinstance(layer, RunningLayer):
        # One sample without the samples' axis is not plain, nor may be a class of somebody else.
        known = type(layer).forward in (RunningLayer.forward, InstanceNorm.forward)
        if known and len(shape) in layer.ranks:
            if layer.running_mean is not None:
                return _by_running(calls, layer)
            if isinstance(layer, InstanceNorm):
                return _by_group(calls, layer, None)
    if type(layer) in (LayerNorm, RMSNorm) and layer.axis is None:
        return _by_last_axes(calls, layer)
    if type(layer) is GroupNorm:
        return _by_group(calls, layer, layer.num_groups)
    return lambda x, out, residual: None


def _by_running(calls: Calls, layer: Any) -> Plain:
    apply, mean, var = calls.batch_apply, layer.running_mean, layer.running_var
    weight, bias, eps, axis = layer.weight, layer.bias, layer.eps, layer.axis
    activation = layer.activation

    def call(x: Array, out: Any, residual: Any) -> Array | None:
        return apply(x, mean, var, weight, bias, eps, axis, out, residual, activation)

    return call


def _by_group(calls: Calls, layer: Any, num_groups: int | None) -> Plain:
    apply, weight, bias = calls.group_apply, layer.weight, layer.bias
    eps, axis, activation = layer.eps, layer.axis, layer.activation

    def call(x: Array, out: Any, residual: Any) -> Array | None:
        return apply(x, num_groups, weight, bias, eps, axis, out, residual, activation)

    return call


def _by_last_axes(calls: Calls, layer: Any) -> Plain:
    apply, lengths = calls.layer_apply, layer.normalized_shape
    weight, bias, eps = layer.weight, layer.bias, layer.eps
    activation, centre = layer.activation, layer.centre

    def call(x: Array, out: Any, residual: Any) -> Array | None:
        return apply(x, lengths, weight, bias, eps, out, residual, activation, centre)

    return call
