"""ONNX's normalization operators for `onnx.reference.ReferenceEvaluator`.

Each class maps the inputs and attributes of its operator to a function of `normcore.functional`,
and what that returns to the outputs. What ONNX does and normcore refuses is done here: statistics
of one value, for which y is bias, and parameters in half precision.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.reference.op_run import OpRun

from .. import functional as F

Array = np.ndarray[Any, Any]


def operators() -> list[type[OpRun]]:
    """The operators that normcore computes, for ``ReferenceEvaluator(model, new_ops=...)``.

    BatchNormalization (opset 6 to 15, training too), LayerNormalization, InstanceNormalization,
    GroupNormalization (opset 18 and 21), RMSNormalization and MeanVarianceNormalization. x may be
    float32, float64, float16 or bfloat16, and lie in memory in any way; statistics are float64.

    Returns
    -------
    list of type
        A new one for each call: ``ReferenceEvaluator`` appends operators of its own to it.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx import parser, reference
    >>> import normcore.onnx
    >>> model = parser.parse_model('''
    ...     <ir_version: 10, opset_import: ["" : 21]>
    ...     agraph (float[1, 4] x, float[4] scale, float[4] bias) => (float[1, 4] y)
    ...     { y = GroupNormalization <num_groups = 2, epsilon = 1e-12> (x, scale, bias) }
    ... ''')
    >>> run = reference.ReferenceEvaluator(model, new_ops=normcore.onnx.operators()).run
    >>> x = np.array([[1, 3, 10, 30]], np.float32)
    >>> run(None, {"x": x, "scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)})
    [array([[-1.,  1., -1.,  1.]], dtype=float32)]
    """
    return [
        BatchNormalization,
        LayerNormalization,
        InstanceNormalization,
        GroupNormalization,
        RMSNormalization,
        MeanVarianceNormalization,
    ]


def _wide(values: Array) -> Array:
    """A parameter as normcore takes it: half precision becomes float32."""
    return values if values.dtype.itemsize >= 4 else values.astype(np.float32)


def _lone(x: Array, bias: Array | float = 0.0) -> Array:
    """The normalization of statistics of one value: bias, and NaN where x is not finite."""
    if isinstance(bias, np.ndarray):
        bias = bias.reshape(-1, *(1,) * (x.ndim - 2))
    y: Array = (x - x + bias).astype(x.dtype)
    return y


def trains(opset: int, outputs: int, training_mode: int, is_test: int) -> bool:
    """Is a BatchNormalization node with so many outputs and these attributes one for training?"""
    if opset < 7:
        return not is_test
    return outputs > 1 if opset < 14 else bool(training_mode)


def _opset(node: OpRun) -> int:
    return int(node.run_params["opsets"][node.domain])


class BatchNormalization(OpRun):
    """Batch normalization: by the statistics given, or in training by those of the batch.

    From opset 14 on ``training_mode`` says which, before 7 ``is_test``; in between a node with more
    than one output is for training. ``momentum`` is the weight of the old running statistics, and
    the running variance is made of population variances.
    """

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        mean: Array,
        var: Array,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        training_mode: int = 0,
        is_test: int = 0,
        spatial: int = 1,
        consumed_inputs: Any = None,
    ) -> tuple[Array, ...]:
        del consumed_inputs  # of opset 1: memory that may be written over
        if spatial != 1:
            raise ValueError(f"spatial: expected 1 (statistics per channel), got {spatial}")
        opset = _opset(self)
        scale, bias = _wide(scale), _wide(bias)
        if not trains(opset, len(self.output), training_mode, is_test):
            mean, var = _wide(mean), _wide(var)
            return (F.batch_norm(x, mean, var, scale, bias, False, 0.0, float(epsilon)),)
        given = (x, scale, bias, mean, var, float(epsilon))
        outputs = _train(*given, 1 - float(momentum))
        if opset >= 14:
            return outputs
        # Mean and variance of the batch, which training frameworks once kept for the backward.
        return (*outputs, *_train(*given, 1.0)[1:])


def _train(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, eps: float, momentum: float
) -> tuple[Array, Array, Array]:
    """(y, running mean, running variance), of which the last is made of population variances."""
    count = x.size // scale.size if x.size else 0
    if count == 0:  # has no statistics, and changes none
        return F.batch_norm(x, _wide(mean), _wide(var), scale, bias), mean, var
    if count == 1:
        lone = x.reshape(scale.shape)
        moved = (1 - momentum) * mean + momentum * lone.astype(mean.dtype)
        return _lone(x, bias), moved, (1 - momentum) * var
    # normcore's running variance is the unbiased one, n / (n - 1) times that of the population.
    unbias = count / (count - 1)
    new_mean = mean.astype(np.float64)
    new_var = var.astype(np.float64)
    new_var *= unbias
    y = F.batch_norm(x, new_mean, new_var, scale, bias, True, momentum, eps)
    new_var /= unbias
    return y, new_mean.astype(mean.dtype), new_var.astype(var.dtype)


class LayerNormalization(OpRun):
    """Layer normalization of the axes from ``axis`` on, with Mean and InvStdDev if asked for."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array | None = None,
        axis: int = -1,
        epsilon: float = 1e-5,
        stash_type: int = 1,
    ) -> tuple[Array, ...]:
        shape = _behind(x, axis)
        weight = _spread("Scale", scale, shape)
        bias = None if bias is None else _spread("B", bias, shape)
        if len(self.output) == 1:
            return (F.layer_norm(x, shape, weight, bias, float(epsilon)),)
        y, *statistics = F.layer_norm_forward(x, shape, weight, bias, float(epsilon))
        kept = (*x.shape[: x.ndim - len(shape)], *(1,) * len(shape))
        dtype = tensor_dtype_to_np_dtype(stash_type)
        return (y, *(values.reshape(kept).astype(dtype) for values in statistics))


class RMSNormalization(OpRun):
    """RMS normalization of the axes from ``axis`` on."""

    def _run(
        self, x: Array, scale: Array, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
    ) -> tuple[Array]:
        del stash_type  # statistics are float64 whatever it says
        shape = _behind(x, axis)
        return (F.rms_norm(x, shape, _spread("scale", scale, shape), float(epsilon)),)


def _behind(x: Array, axis: int) -> tuple[int, ...]:
    """Lengths of the axes of x from `axis` on."""
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: expected an axis of X of shape {x.shape}, got {axis}")
    lengths: tuple[int, ...] = x.shape[axis:]
    return lengths


def _spread(name: str, values: Array, shape: tuple[int, ...]) -> Array:
    """A parameter that broadcasts to the normalized axes, as normcore takes it."""
    values = _wide(values)
    if values.shape == shape:
        return values
    try:
        # Leading axes of length 1 are the batch's.
        if values.ndim > len(shape) and prod(values.shape[: -len(shape)]) == 1:
            values = values.reshape(values.shape[-len(shape) :])
        return np.ascontiguousarray(np.broadcast_to(values, shape))
    except ValueError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to the normalized axes {shape}, "
            f"got {values.shape}"
        ) from None


class InstanceNormalization(OpRun):
    """Instance normalization."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        epsilon: float = 1e-5,
        consumed_inputs: Any = None,
    ) -> tuple[Array]:
        del consumed_inputs  # of opset 1
        scale, bias = _wide(scale), _wide(bias)
        if x.ndim > 1 and x.size == prod(x.shape[:2]):
            return (_lone(x, bias),)
        return (F.instance_norm(x, None, None, scale, bias, eps=float(epsilon)),)


class GroupNormalization(OpRun):
    """Group normalization; scale and bias are per group in opset 18, per channel from 21 on."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        epsilon: float = 1e-5,
        num_groups: int = 1,
        stash_type: int = 1,
    ) -> tuple[Array]:
        del stash_type  # statistics are float64 whatever it says
        scale, bias = _wide(scale), _wide(bias)
        if _opset(self) < 21:
            scale, bias = (
                per_channel(name, values, num_groups, x.shape[1])
                for name, values in (("scale", scale), ("bias", bias))
            )
        if x.size == num_groups:
            return (_lone(x, bias),)
        return (F.group_norm(x, num_groups, scale, bias, float(epsilon)),)


def per_channel(name: str, values: Array, groups: int, channels: int) -> Array:
    """Values per group, repeated for each channel of the group."""
    if values.shape != (groups,) or channels % groups:
        raise ValueError(
            f"{name}: expected shape ({groups},), one value for each group of {channels} channels, "
            f"got {values.shape}"
        )
    return np.repeat(values, channels // groups)


class MeanVarianceNormalization(OpRun):
    """y = (x - mean) / (std + 1e-9) over the given axes: the 1e-9 stands beside the deviation."""

    def _run(self, x: Array, axes: Any = (0, 2, 3)) -> tuple[Array]:
        if not all(-x.ndim <= axis < x.ndim for axis in axes):
            raise ValueError(f"axes: expected axes of X of shape {x.shape}, got {tuple(axes)}")
        over = tuple(sorted({axis % x.ndim for axis in axes}))
        rest = [axis for axis in range(x.ndim) if axis not in over]
        if x.size == prod(x.shape[axis] for axis in rest):
            return (_lone(x),)
        # Small against the square of 1e-9, and large enough for 1 / sqrt(eps) in float32.
        eps = 1e-30
        if len(rest) == 1:
            y, _, rstd = F.batch_norm_forward(x, eps=eps, axis=rest[0])
        else:
            shape = tuple(x.shape[axis] for axis in over)
            y, _, rstd = F.layer_norm_forward(x, shape, eps=eps, axis=over)
        root = 1 / rstd
        std = np.sqrt(np.maximum(root * root - eps, 0))
        factor = (root / (std + 1e-9)).astype(np.float64 if x.dtype == np.float64 else np.float32)
        # In float32 it is 1 wherever std is above 0.02, which spares the pass over memory.
        if np.any(factor != 1):
            np.multiply(y, np.expand_dims(factor, over), out=y, casting="same_kind")
        return (y,)
