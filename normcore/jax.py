"""Normalization of JAX arrays on the CPU, for `jax.jit`, `jax.grad` and `jax.vmap`.

The functions are those of `normcore.functional` with what JAX does not have left out: ``out``, and
arrays that are updated in place. A compiled program calls normcore, once forward and once backward
(`jax.custom_vjp`), however many axes `jax.vmap` adds, and nothing is copied: normcore reads and
writes where XLA has its arrays (`normcore.jax_ffi`; if a JAX does not offer that, there is a
warning, and `jax.pure_callback`, which copies).

x is float32, bfloat16 or float16, or float64 with ``jax_enable_x64``. Parameters that are bfloat16
or float16 are converted to float32, for the kernels only. Statistics stay float64 between forward
and backward in any case. Second derivatives and forward mode do not exist, which JAX says
(ValueError). Shapes and dtypes are checked while JAX traces.

XLA calls from threads of its own: `normcore.set_backend` and `normcore.set_num_threads` count
there, their ``with`` forms do not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import check, jax_ffi
from .axes import layer_axes, lengths
from .extras import extra
from .jax_calls import BatchNorm, Call, Norm, call

with extra("jax"):
    import jax
    import jax.numpy as jnp

__all__ = [
    "batch_norm",
    "batch_norm_training",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
]

JaxArray = Any
"""What `jax.Array` is; type checkers need not have JAX."""


class _Program:
    """How compiled programs call: with their own memory, or where XLA has it not, with copies."""

    def __init__(self) -> None:
        self.target = jax_ffi.Target()
        self.by_reference = True
        try:
            jax.ffi.register_ffi_target("normcore", jax.ffi.pycapsule(self.target.handler))
        except Exception as error:  # whatever another version of the interface may raise
            warnings.warn(
                f"normcore.jax copies arrays; this JAX does not call by reference: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            self.by_reference = False

    def run(self, outside: Call, arrays: list[Any]) -> list[Any]:
        """The results of a call, when the program runs."""
        results = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outside.results]
        found: list[Any]
        if self.by_reference:
            arguments = [dtype for _, dtype in outside.arguments]
            self.target.add(
                *(outside.key, outside.write, arguments, [dtype for _, dtype in outside.results])
            )
            target = jax.ffi.ffi_call("normcore", results, vmap_method="expand_dims")
            found = target(*arrays, key=np.int64(outside.key))
        else:
            returned = outside.returned
            found = jax.pure_callback(returned, results, *arrays, vmap_method="expand_dims")
        return found


_program = _Program()


def _call(norm: Norm, half: str, *arrays: Any) -> list[Any]:
    given = tuple(
        None if values is None else (values.shape, np.dtype(values.dtype)) for values in arrays
    )
    there = [values for values in arrays if values is not None]
    return _program.run(call(norm, half, given), there)


def _value(norm: Norm, x: Any, weight: Any, bias: Any, running: tuple[Any, ...]) -> Any:
    y, _, *updated = _call(norm, "forward", x, weight, bias, *running)
    return y, updated


def _forward(norm: Norm, x: Any, weight: Any, bias: Any, running: tuple[Any, ...]) -> Any:
    y, bits, *updated = _call(norm, "forward", x, weight, bias, *running)
    return (y, updated), (x, bits, weight, bias)


def _backward(norm: Norm, saved: Any, cotangents: Any) -> Any:
    x, bits, weight, bias = saved
    dx, *gradients = _call(norm, "backward", cotangents[0], x, bits, weight)
    found = dict(zip(("weight", "bias"), gradients, strict=False))
    dweight = None if weight is None else found["weight"].astype(weight.dtype)
    dbias = None if bias is None else found["bias"].astype(bias.dtype)
    return dx, dweight, dbias, None


_normalize = jax.custom_vjp(_value, nondiff_argnums=(0,))
_normalize.defvjp(_forward, _backward)


def _run(
    norm: Norm, x: Any, weight: Any, bias: Any, running: tuple[Any, ...] = ()
) -> tuple[Any, list[Any]]:
    parameters = (None if values is None else _floats(values) for values in (weight, bias))
    result: tuple[Any, list[Any]] = _normalize(norm, jnp.asarray(x), *parameters, running)
    return result


def _floats(values: Any) -> Any:
    found = jnp.asarray(values)
    return found.astype(jnp.float32) if found.dtype.itemsize == 2 else found


def layer_norm(
    x: JaxArray,
    normalized_shape: int | Sequence[int],
    weight: JaxArray | None = None,
    bias: JaxArray | None = None,
    eps: float = 1e-5,
    *,
    axis: int | Sequence[int] | None = None,
) -> JaxArray:
    """Normalize x over its last axes, or over any others.

    y = (x - mean) / sqrt(var + eps) * weight + bias

    Parameters
    ----------
    x, weight, bias : jax.Array
        As in `normcore.functional.layer_norm`.
    normalized_shape, eps, axis
        Likewise; no JAX arrays.

    Returns
    -------
    y : jax.Array
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.layer_norm`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> layer_norm(jnp.array([[1.0, 3.0], [10.0, 30.0]]), 2).round(3)
    Array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    """
    return _run(Norm("layer", check.eps(eps), _layer(normalized_shape, axis)), x, weight, bias)[0]


def rms_norm(
    x: JaxArray,
    normalized_shape: int | Sequence[int],
    weight: JaxArray | None = None,
    eps: float | None = None,
    *,
    axis: int | Sequence[int] | None = None,
) -> JaxArray:
    """Divide x by its root mean square over its last axes, or over any others.

    y = x / sqrt(mean(x^2) + eps) * weight

    Parameters
    ----------
    x, weight : jax.Array
        As in `normcore.functional.rms_norm`.
    normalized_shape, eps, axis
        Likewise; no JAX arrays. eps None is the machine epsilon of x's dtype (float32's for
        halves).

    Returns
    -------
    y : jax.Array
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.rms_norm`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> jax.jit(lambda x: rms_norm(x, 2))(jnp.array([1.0, 7.0]))
    Array([0.2, 1.4], dtype=float32)
    """
    number = None if eps is None else check.eps(eps)
    return _run(Norm("rms", number, _layer(normalized_shape, axis)), x, weight, None)[0]


def _layer(normalized_shape: Any, axis: Any) -> tuple[tuple[str, Any], ...]:
    shape = lengths(normalized_shape)
    found = None if axis is None else layer_axes(axis, shape)
    return ("normalized_shape", shape), ("axis", found)


def group_norm(
    x: JaxArray,
    num_groups: int,
    weight: JaxArray | None = None,
    bias: JaxArray | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
) -> JaxArray:
    """Normalize groups of channels of each sample.

    Parameters
    ----------
    x, weight, bias : jax.Array
        As in `normcore.functional.group_norm`.
    num_groups, eps, axis
        Likewise; no JAX arrays.

    Returns
    -------
    y : jax.Array
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.group_norm`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), 2).round(3)
    Array([[-1.,  1., -1.,  1.]], dtype=float32)
    """
    options = ("num_groups", check.size("num_groups", num_groups)), ("axis", axis)
    return _run(Norm("group", check.eps(eps), options), x, weight, bias)[0]


def instance_norm(
    x: JaxArray,
    weight: JaxArray | None = None,
    bias: JaxArray | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
) -> JaxArray:
    """Normalize each channel of each sample.

    Parameters
    ----------
    x, weight, bias : jax.Array
        As in `normcore.functional.instance_norm`.
    eps, axis
        Likewise; no JAX arrays.

    Returns
    -------
    y : jax.Array
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.instance_norm`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> instance_norm(jnp.array([[[1.0, 3.0], [10.0, 30.0]]])).round(3)
    Array([[[-1.,  1.],
            [-1.,  1.]]], dtype=float32)
    """
    return _run(Norm("instance", check.eps(eps), (("axis", axis),)), x, weight, bias)[0]


def batch_norm(
    x: JaxArray,
    running_mean: JaxArray,
    running_var: JaxArray,
    weight: JaxArray | None = None,
    bias: JaxArray | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
) -> JaxArray:
    """Normalize each channel by its running statistics, as in evaluation.

    Parameters
    ----------
    x, running_mean, running_var, weight, bias : jax.Array
        As in `normcore.functional.batch_norm`. The running statistics are constants to `jax.grad`.
    eps, axis
        Likewise; no JAX arrays.

    Returns
    -------
    y : jax.Array
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.batch_norm`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> batch_norm(jnp.array([[1.0], [5.0]]), jnp.array([3.0]), jnp.array([4.0])).round(3)
    Array([[-1.],
           [ 1.]], dtype=float32)
    """
    norm = BatchNorm("batch", check.eps(eps), (("axis", axis),), None)
    return _run(norm, x, weight, bias, _running(running_mean, running_var))[0]


def batch_norm_training(
    x: JaxArray,
    running_mean: JaxArray,
    running_var: JaxArray,
    weight: JaxArray | None = None,
    bias: JaxArray | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
) -> tuple[JaxArray, JaxArray, JaxArray]:
    """Normalize each channel by the statistics of the batch, and move the running ones.

    Parameters
    ----------
    x, running_mean, running_var, weight, bias : jax.Array
        As in `normcore.functional.batch_norm`. Under `jax.vmap` each mapped batch has statistics
        of its own.
    momentum, eps, axis
        Likewise; no JAX arrays.

    Returns
    -------
    y : jax.Array
        Shape and dtype of x.
    running_mean, running_var : jax.Array
        The new ones, for the next step. To `jax.grad` they are constants.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.batch_norm`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> x = jnp.array([[1.0], [3.0]])
    >>> batch_norm_training(x, jnp.zeros(1), jnp.ones(1))[1:]
    (Array([0.2], dtype=float32), Array([1.1], dtype=float32))
    """
    norm = BatchNorm("batch", check.eps(eps), (("axis", axis),), check.momentum(momentum))
    y, updated = _run(norm, x, weight, bias, _running(running_mean, running_var))
    return y, updated[0], updated[1]


def _running(*statistics: Any) -> tuple[Any, ...]:
    for name, values in zip(("running_mean", "running_var"), statistics, strict=True):
        if values is None:
            raise ValueError(f"{name}: expected an array, got None")
    return tuple(jnp.asarray(values) for values in statistics)
