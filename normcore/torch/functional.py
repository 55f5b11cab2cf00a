"""The functions: `torch.nn.functional`'s signatures, with ``residual`` and ``activation``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..functional.batch_renorm import limit
from .autograd import normalize
from .rules import Batch, Evaluation, Group, Instance, Layer, Renorm
from .tensors import parameter, write_back


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`torch.nn.functional.batch_norm` by normcore: `normcore.functional.batch_norm` of tensors.

    y = activation((input - mean) / sqrt(var + eps) * weight + bias + residual)

    Parameters
    ----------
    input : Tensor
        (N, C, *) on the CPU; float32, float64, float16 or bfloat16, in any memory layout.
    running_mean, running_var : Tensor or None
        (C,), updated in place in training.
    weight, bias : Tensor, optional
        (C,).
    training, momentum, eps
        As in `torch.nn.functional.batch_norm`.
    residual : Tensor, optional
        Shape and dtype of input; added before the activation.
    activation : {None, "relu", "relu6", "leaky_relu", "silu", "gelu"}, optional
        Fused into the same pass over memory. leaky_relu has the slope 0.01; gelu is the exact one.

    Returns
    -------
    Tensor
        Shape, dtype and memory layout of input.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.batch_norm`, and for tensors on other devices.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import batch_norm
    >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    >>> batch_norm(x, None, None, training=True, activation="relu").round()
    tensor([[0., 0.],
            [1., 1.]])
    """
    return _by_channel(
        *(Batch if training else Evaluation, input, running_mean, running_var, weight, bias),
        *(residual, momentum, eps, activation),
    )


def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    r_max: float = 3.0,
    d_max: float = 5.0,
    momentum: float = 0.01,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`normcore.functional.batch_renorm` of tensors.

    Parameters
    ----------
    r_max, d_max
        As in `normcore.functional.batch_renorm`.
    input, running_mean, running_var, weight, bias, training, momentum, eps, residual, activation
        As in `batch_norm`.

    Returns
    -------
    Tensor
        Shape, dtype and memory layout of input.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.batch_renorm`, and for tensors on other devices.
    """
    limits = limit("r_max", r_max, 1.0), limit("d_max", d_max, 0.0)
    if not training:
        return batch_norm(
            *(input, running_mean, running_var, weight, bias, False, momentum, eps),
            residual=residual,
            activation=activation,
        )
    return _by_channel(
        *(Renorm, input, running_mean, running_var, weight, bias),
        *(residual, momentum, eps, activation, limits),
    )


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`torch.nn.functional.instance_norm` by normcore.

    Parameters
    ----------
    use_input_stats
        As in `torch.nn.functional.instance_norm`.
    input, running_mean, running_var, weight, bias, momentum, eps, residual, activation
        As in `batch_norm`.

    Returns
    -------
    Tensor
        Shape, dtype and memory layout of input.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.instance_norm`, and for tensors on other devices.
    """
    return _by_channel(
        *(Instance if use_input_stats else Evaluation, input, running_mean, running_var),
        *(weight, bias, residual, momentum, eps, activation),
    )


def _by_channel(
    rule: type[Batch],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    *options: Any,
) -> Tensor:
    arrays = parameter("weight", weight), parameter("bias", bias)
    mean = parameter("running_mean", running_mean)
    var = parameter("running_var", running_var)
    y = normalize(rule(mean, var, None, *options), input, weight, bias, residual, *arrays)
    if rule is not Evaluation:
        write_back(running_mean, mean)
        write_back(running_var, var)
    return y


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`torch.nn.functional.group_norm` by normcore.

    Parameters
    ----------
    num_groups : int
        A divisor of the number of channels.
    input, weight, bias, eps, residual, activation
        As in `batch_norm`.

    Returns
    -------
    Tensor
        Shape, dtype and memory layout of input.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.group_norm`, and for tensors on other devices.
    """
    arrays = parameter("weight", weight), parameter("bias", bias)
    return normalize(Group(num_groups, eps, activation), input, weight, bias, residual, *arrays)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    axis: int | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`torch.nn.functional.layer_norm` by normcore.

    Parameters
    ----------
    normalized_shape : sequence of int
        Lengths of the normalized axes.
    axis : int, optional
        The one axis to normalize over: 1 for the channels of (N, C, H, W), which takes no
        transpose. The last axes if None.
    input, weight, bias, eps, residual, activation
        As in `batch_norm`; weight and bias have shape normalized_shape.

    Returns
    -------
    Tensor
        Shape, dtype and memory layout of input.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.layer_norm`, and for tensors on other devices.
    """
    arrays = parameter("weight", weight), parameter("bias", bias)
    rule = Layer(tuple(normalized_shape), eps, True, axis, activation)
    return normalize(rule, input, weight, bias, residual, *arrays)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    axis: int | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`torch.nn.functional.rms_norm` by normcore.

    Parameters
    ----------
    input, normalized_shape, weight, axis, residual, activation
        As in `layer_norm`.
    eps : float, optional
        The machine epsilon of input's dtype if None; of float32 for halves.

    Returns
    -------
    Tensor
        Shape, dtype and memory layout of input.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.rms_norm`, and for tensors on other devices.
    """
    rule = Layer(tuple(normalized_shape), eps, False, axis, activation)
    return normalize(rule, input, weight, None, residual, parameter("weight", weight), None)
