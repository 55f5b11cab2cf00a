"""Batch normalization folded into the convolution or linear layer beside it, for inference.

In evaluation batch normalization is ``scale * x + shift`` for each channel, with
``scale = weight / sqrt(running_var + eps)`` and ``shift = bias - running_mean * scale``. Behind a
linear map that is another weight and bias of the map, and so it is before one, where no padding
comes between. Computed in float64 and rounded once.

`fuse_conv_bn_weights` and `fuse_linear_bn_weights` have the names and arguments of
``torch.nn.utils.fusion``; `fuse_bn_conv_weights` and `fuse_bn_linear_weights` are for a batch norm
that comes first. What is folded has the digits of the map: the offset of a channel is added to its
bias, and where it is large, they cancel; `normcore.functional.batch_norm` has not that error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import check

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def fuse_conv_bn_weights(
    conv_w: ArrayLike,
    conv_b: ArrayLike | None,
    bn_rm: ArrayLike,
    bn_rv: ArrayLike,
    bn_eps: float,
    bn_w: ArrayLike | None,
    bn_b: ArrayLike | None,
    transpose: bool = False,
    *,
    groups: int = 1,
) -> tuple[Array, Array]:
    """Weight and bias of a convolution with the batch normalization that follows it.

    ``W' = W * scale`` along the output channels, ``b' = (b - bn_rm) * scale + bn_b``, with
    ``scale = bn_w / sqrt(bn_rv + bn_eps)``.

    Parameters
    ----------
    conv_w : array_like
        (C_out, C_in / groups, *kernel); of a transposed convolution (C_in, C_out / groups,
        *kernel). float32, float64, float16 or bfloat16 (of ml_dtypes).
    conv_b : array_like or None
        (C_out,), 0 if None.
    bn_rm, bn_rv : array_like
        Running mean and variance, (C_out,), float32 or float64.
    bn_eps : float
        Positive.
    bn_w, bn_b : array_like or None
        Weight and bias of the normalization, (C_out,); 1 and 0 if None.
    transpose : bool, optional
        Is it a transposed convolution?
    groups : int, optional
        Of a transposed convolution, whose weight does not tell. A convolution's do not matter.

    Returns
    -------
    weight, bias : ndarray
        In the dtypes of conv_w and conv_b (if that is None: of conv_w).

    Raises
    ------
    TypeError, ValueError
        For wrong dtypes and shapes, and for bn_eps that is not positive.

    References
    ----------
    ``torch.nn.utils.fusion.fuse_conv_bn_weights``, which has no `groups`.

    Examples
    --------
    >>> import numpy as np
    >>> from normcore.folding import fuse_conv_bn_weights
    >>> w = np.ones((2, 1, 1, 1), np.float32)
    >>> w, b = fuse_conv_bn_weights(w, None, [1.0, 2.0], [3.0, 8.0], 1.0, None, [0.0, 1.0])
    >>> w.ravel(), b.round(3)
    (array([0.5       , 0.33333334], dtype=float32), array([-0.5  ,  0.333], dtype=float32))
    """
    weight = _map("conv_w", conv_w, 3)
    groups = check.size("groups", groups)
    if transpose:
        _divides("conv_w", weight, groups)
        # One row for each output channel: those of a group lie together.
        split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        outputs = groups * weight.shape[1]
        scale, shift = _affine(outputs, bn_rm, bn_rv, bn_eps, bn_w, bn_b)
        each = scale.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))
        fused = (split * each).reshape(weight.shape)
    else:
        outputs = weight.shape[0]
        scale, shift = _affine(outputs, bn_rm, bn_rv, bn_eps, bn_w, bn_b)
        fused = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return _fused("conv", conv_w, conv_b, fused, outputs, scale, shift)


def fuse_linear_bn_weights(
    linear_w: ArrayLike,
    linear_b: ArrayLike | None,
    bn_rm: ArrayLike,
    bn_rv: ArrayLike,
    bn_eps: float,
    bn_w: ArrayLike | None,
    bn_b: ArrayLike | None,
) -> tuple[Array, Array]:
    """Weight and bias of a linear layer with the batch normalization that follows it.

    Parameters
    ----------
    linear_w : array_like
        (out, in); y = x @ linear_w.T + linear_b.
    linear_b : array_like or None
        (out,), 0 if None.
    bn_rm, bn_rv, bn_eps, bn_w, bn_b
        As in `fuse_conv_bn_weights`, of length out.

    Returns
    -------
    weight, bias : ndarray
        In the dtypes of linear_w and linear_b (if that is None: of linear_w).

    Raises
    ------
    TypeError, ValueError
        As in `fuse_conv_bn_weights`.

    References
    ----------
    ``torch.nn.utils.fusion.fuse_linear_bn_weights``.

    Examples
    --------
    >>> import numpy as np
    >>> from normcore.folding import fuse_linear_bn_weights
    >>> fuse_linear_bn_weights(np.eye(2), [1.0, 1.0], [1.0, 2.0], [3.0, 8.0], 1.0, None, None)[1]
    array([ 0.        , -0.33333333])
    """
    weight = _map("linear_w", linear_w, 2, 2)
    scale, shift = _affine(weight.shape[0], bn_rm, bn_rv, bn_eps, bn_w, bn_b)
    fused = weight * scale[:, None]
    return _fused("linear", linear_w, linear_b, fused, weight.shape[0], scale, shift)


def fuse_bn_conv_weights(
    bn_rm: ArrayLike,
    bn_rv: ArrayLike,
    bn_eps: float,
    bn_w: ArrayLike | None,
    bn_b: ArrayLike | None,
    conv_w: ArrayLike,
    conv_b: ArrayLike | None,
    transpose: bool = False,
    *,
    groups: int = 1,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    padding_mode: str = "zeros",
    dilation: int | Sequence[int] = 1,
    output_padding: int | Sequence[int] = 0,
) -> tuple[Array, Array]:
    """Weight and bias of a convolution with the batch normalization before it.

    ``W' = W * scale`` along the input channels, ``b' = b + sum(W * shift)`` over the input
    channels and the kernel. A zero that pads the normalized input is not 0 before the
    normalization, so that no convolution with another bias does the same: unless every channel's
    shift is 0, that is an error.

    Parameters
    ----------
    bn_rm, bn_rv, bn_eps, bn_w, bn_b
        As in `fuse_conv_bn_weights`, of length C_in.
    conv_w : array_like
        (C_out, C_in / groups, *kernel); of a transposed convolution (C_in, C_out / groups,
        *kernel).
    conv_b : array_like or None
        (C_out,), 0 if None.
    transpose : bool, optional
        Is it a transposed convolution?
    groups : int, optional
        Of the convolution.
    padding : int, sequence of int, "valid" or "same", optional
        Of the convolution. Zeros must not pad it (see above).
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, optional
        Other modes than "zeros" repeat the input, and pad with whatever they like.
    stride, dilation, output_padding : int or sequence of int, optional
        Of a transposed convolution. It pads by itself: every output sees the whole kernel only
        where the stride is 1 and padding is dilation * (kernel - 1).

    Returns
    -------
    weight, bias : ndarray
        In the dtypes of conv_w and conv_b (if that is None: of conv_w).

    Raises
    ------
    TypeError, ValueError
        As in `fuse_conv_bn_weights`, and ValueError for a padding that does not allow it.

    Examples
    --------
    >>> import numpy as np
    >>> from normcore.folding import fuse_bn_conv_weights
    >>> w = np.ones((1, 2, 3))
    >>> fuse_bn_conv_weights([1.0, 2.0], [3.0, 8.0], 1.0, None, [1.0, 1.0], w, None)[1]
    array([2.5])
    >>> fuse_bn_conv_weights(  # doctest: +ELLIPSIS
    ...     [1.0, 2.0], [3.0, 8.0], 1.0, None, None, w, None, padding=1
    ... )
    Traceback (most recent call last):
        ...
    ValueError: padding: expected none for a batch norm before the convolution, because a zero ...
    """
    weight = _map("conv_w", conv_w, 3)
    groups = check.size("groups", groups)
    kernel = weight.shape[2:]
    _divides("conv_w", weight, groups)
    inputs = weight.shape[0] if transpose else groups * weight.shape[1]
    scale, shift = _affine(inputs, bn_rm, bn_rv, bn_eps, bn_w, bn_b)
    spread = _per_axis("dilation", dilation, kernel)
    whole = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
    if transpose:
        steps = _per_axis("stride", stride, kernel)
        cropped = _per_axis("padding", padding, kernel)
        more = _per_axis("output_padding", output_padding, kernel)
        uniform = cropped == whole and not any(more) and all(step == 1 for step in steps)
        reason = (
            "padding: expected dilation * (kernel - 1) with stride 1 and no output_padding for a "
            "batch norm before a transposed convolution, because other outputs see only a part of "
            f"the kernel and so of the shift; got padding {padding!r}, stride {stride!r}, "
            f"dilation {dilation!r}, output_padding {output_padding!r} and a kernel of {kernel}"
        )
    else:
        uniform = not _zeros_pad(padding, padding_mode, whole, kernel)
        reason = (
            "padding: expected none for a batch norm before the convolution, because a zero that "
            f"pads the normalized input is not 0 before the normalization; got {padding!r}"
        )
    if not uniform and np.any(shift != 0):
        raise ValueError(reason)
    # (groups, outputs of a group, inputs of a group, kernel), whatever is transposed.
    if transpose:
        split = weight.reshape(groups, inputs // groups, *weight.shape[1:]).swapaxes(1, 2)
    else:
        split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    ones = (1,) * len(kernel)
    each = (groups, 1, inputs // groups, *ones)
    fused = split * scale.reshape(each)
    added = (split * shift.reshape(each)).sum(tuple(range(2, split.ndim))).ravel()
    if transpose:
        fused = fused.swapaxes(1, 2)
    outputs = added.size
    return _fused(
        "conv", conv_w, conv_b, fused.reshape(weight.shape), outputs, np.ones(outputs), added
    )


def fuse_bn_linear_weights(
    bn_rm: ArrayLike,
    bn_rv: ArrayLike,
    bn_eps: float,
    bn_w: ArrayLike | None,
    bn_b: ArrayLike | None,
    linear_w: ArrayLike,
    linear_b: ArrayLike | None,
) -> tuple[Array, Array]:
    """Weight and bias of a linear layer with the batch normalization before it.

    ``W' = W * scale`` along the inputs, ``b' = b + W @ shift``.

    Parameters
    ----------
    bn_rm, bn_rv, bn_eps, bn_w, bn_b
        As in `fuse_conv_bn_weights`, of length in.
    linear_w, linear_b
        As in `fuse_linear_bn_weights`.

    Returns
    -------
    weight, bias : ndarray
        In the dtypes of linear_w and linear_b (if that is None: of linear_w).

    Raises
    ------
    TypeError, ValueError
        As in `fuse_conv_bn_weights`.

    Examples
    --------
    >>> import numpy as np
    >>> from normcore.folding import fuse_bn_linear_weights
    >>> fuse_bn_linear_weights([1.0, 2.0], [3.0, 8.0], 1.0, None, None, np.ones((1, 2)), None)[1]
    array([-1.16666667])
    """
    weight = _map("linear_w", linear_w, 2, 2)
    scale, shift = _affine(weight.shape[1], bn_rm, bn_rv, bn_eps, bn_w, bn_b)
    outputs = weight.shape[0]
    return _fused(
        *("linear", linear_w, linear_b, weight * scale, outputs, np.ones(outputs)), weight @ shift
    )


def _map(name: str, values: Any, least: int, most: int = 5) -> Array:
    """The weight of a convolution or linear layer in float64."""
    found = check.array(name, values)
    if not least <= found.ndim <= most:
        ranks = f"{least}" if least == most else f"{least} to {most}"
        raise ValueError(f"{name}: expected {ranks} dimensions, got shape {found.shape}")
    return found.astype(np.float64)


def _divides(name: str, weight: Array, groups: int) -> None:
    if weight.shape[0] % groups:
        raise ValueError(
            f"groups: expected a divisor of the first axis of {name}, got {groups} for shape "
            f"{weight.shape}"
        )


def _affine(
    channels: int, mean: Any, var: Any, eps: Any, weight: Any, bias: Any
) -> tuple[Array, Array]:
    """(scale, shift) of a batch normalization in evaluation, in float64."""
    shape = (channels,)
    mean = check.saved("bn_rm", mean, shape)
    var = check.saved("bn_rv", var, shape)
    found = check.number("bn_eps", eps)
    if not 0.0 < found < np.inf:
        raise ValueError(f"bn_eps: expected a positive finite number, got {eps!r}")
    scale = 1 / np.sqrt(var + found)
    if weight is not None:
        scale = scale * check.saved("bn_w", weight, shape)
    shift = -mean * scale
    if bias is not None:
        shift = shift + check.saved("bn_b", bias, shape)
    return scale, shift


def _fused(
    kind: str, given: Any, bias: Any, weight: Array, outputs: int, scale: Array, shift: Array
) -> tuple[Array, Array]:
    """The weight, and bias * scale + shift, rounded to the dtypes that were given."""
    dtype = check.array(f"{kind}_w", given).dtype
    if bias is None:
        return weight.astype(dtype), shift.astype(dtype)
    found = check.array(f"{kind}_b", bias)
    if found.shape != (outputs,):
        raise ValueError(f"{kind}_b: expected shape {(outputs,)}, got {found.shape}")
    wide = found.astype(np.float64)
    return weight.astype(dtype), (wide * scale + shift).astype(found.dtype)


def _per_axis(name: str, value: Any, kernel: tuple[int, ...]) -> list[int]:
    """One int for each axis of the kernel."""
    found = [value] * len(kernel) if isinstance(value, int | np.integer) else value
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise TypeError(f"{name}: expected an int or a sequence of int, got {value!r}")
    if len(found) != len(kernel):
        raise ValueError(
            f"{name}: expected {len(kernel)} numbers for a kernel of {kernel}, got {value!r}"
        )
    for n in found:
        if isinstance(n, bool) or not isinstance(n, int | np.integer):
            raise TypeError(f"{name}: expected an int or a sequence of int, got {value!r}")
        if n < 0:
            raise ValueError(f"{name}: expected no negative number, got {value!r}")
    return [int(n) for n in found]


def _zeros_pad(padding: Any, mode: str, whole: list[int], kernel: tuple[int, ...]) -> bool:
    """Does a convolution see zeros around its input?"""
    modes = ("zeros", "reflect", "replicate", "circular")
    if mode not in modes:
        raise ValueError(f"padding_mode: expected one of {', '.join(modes)}, got {mode!r}")
    if padding == "valid":
        around = [0]
    elif padding == "same":
        around = whole
    elif isinstance(padding, str):
        raise ValueError(f"padding: expected numbers, 'valid' or 'same', got {padding!r}")
    else:
        around = _per_axis("padding", padding, kernel)
    return mode == "zeros" and any(around)
