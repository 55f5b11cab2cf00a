"""What a perceptron needs besides its normalization, in NumPy: layers, loss, SGD.

Every layer has `forward`, `backward` and `parameters`. A forward keeps what its backward needs. No
framework: no graph, no broadcasting rules, no registry. `Norm` is the joint to normcore.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from normcore.fused import FusedLayer

Array = np.ndarray[Any, Any]
MOMENTUM = 0.9
"""Of SGD, in every experiment."""
PARAMETERS = (("weight", "dweight"), ("bias", "dbias"))


@dataclass(slots=True)
class Parameter:
    """An array that training changes in place."""

    value: Array
    grad: Array
    """Of the last backward; 0 for what is frozen."""

    @classmethod
    def of(cls, value: Array) -> Parameter:
        return cls(value, np.zeros_like(value))


class Layer(Protocol):
    """What `Network` asks of its layers."""

    parameters: list[Parameter]

    def forward(self, x: Array, training: bool) -> Array: ...

    def backward(self, dy: Array) -> Array: ...


class Linear:
    """y = x weight^T + bias; x (n, inputs), weight (outputs, inputs), as in PyTorch.

    Weights are He's (standard deviation sqrt(2 / inputs)) times `scale`, biases 0.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        draw: np.random.Generator,
        scale: float = 1.0,
        dtype: Any = np.float32,
    ) -> None:
        weight = draw.standard_normal((outputs, inputs)) * (scale * np.sqrt(2 / inputs))
        self.weight = Parameter.of(weight.astype(dtype))
        self.bias = Parameter.of(np.zeros(outputs, dtype))
        self.parameters = [self.weight, self.bias]

    def forward(self, x: Array, training: bool) -> Array:
        self._x = x
        return x @ self.weight.value.T + self.bias.value

    def backward(self, dy: Array) -> Array:
        np.matmul(dy.T, self._x, out=self.weight.grad)
        np.sum(dy, axis=0, out=self.bias.grad)
        return dy @ self.weight.value


class ReLU:
    """y = max(x, 0)."""

    def __init__(self) -> None:
        self.parameters: list[Parameter] = []

    def forward(self, x: Array, training: bool) -> Array:
        self._positive = x > 0
        return x * self._positive

    def backward(self, dy: Array) -> Array:
        return dy * self._positive


class Dropout:
    """In training y = x * kept / (1 - rate), where each of kept is 0 with probability `rate`."""

    def __init__(self, rate: float, draw: np.random.Generator) -> None:
        self.parameters: list[Parameter] = []
        self._rate, self._draw = rate, draw

    def forward(self, x: Array, training: bool) -> Array:
        if not training:
            self._kept = np.ones((), x.dtype)
            return x
        kept: Array = np.greater_equal(self._draw.random(x.shape, np.float32), self._rate)
        self._kept = kept.astype(x.dtype) / x.dtype.type(1 - self._rate)
        return x * self._kept

    def backward(self, dy: Array) -> Array:
        return dy * self._kept


class Norm:
    """A layer of normcore. Where it needs positions, features (n, f) are seen as (n, channels, l).

    Its own `freeze` is respected: gradients of what is frozen stay 0.
    """

    def __init__(self, layer: FusedLayer, channels: int | None = None) -> None:
        self.layer = layer
        self._channels = channels
        self._of = {
            gradient: Parameter.of(value)
            for name, gradient in PARAMETERS
            if (value := getattr(layer, name)) is not None
        }
        self.parameters = list(self._of.values())

    def forward(self, x: Array, training: bool) -> Array:
        if self.layer.training != training:
            self.layer.train(training)
        # Only an evaluation-mode forward leaves its input to us; x is kept for its backward.
        self._x = self._seen(x)
        y: Array = self.layer(self._x)
        return y.reshape(x.shape)

    def backward(self, dy: Array) -> Array:
        x = None if self.layer.training else self._x
        found = self.layer.backward(self._seen(dy), x)
        for name, parameter in self._of.items():
            gradient = getattr(found, name)
            parameter.grad[...] = 0 if gradient is None else gradient
        dx: Array = found.dx
        return dx.reshape(dy.shape)

    def _seen(self, values: Array) -> Array:
        return values if self._channels is None else values.reshape(len(values), self._channels, -1)


class Network:
    """Layers in a row."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)

    @property
    def parameters(self) -> list[Parameter]:
        return [parameter for layer in self.layers for parameter in layer.parameters]

    def forward(self, x: Array, training: bool) -> Array:
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dy: Array) -> Array:
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy


class Loss(NamedTuple):
    """Mean cross-entropy, and its gradient with respect to the logits."""

    value: float
    gradient: Array


def cross_entropy(logits: Array, labels: Array) -> Loss:
    """Mean of -log softmax(logits)[label]; logits (n, classes), labels (n,) integers.

    The sum is in float64: losses are compared with PyTorch's to 1e-5.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    sums = powers.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    losses = np.log(sums[:, 0]) - shifted[rows, labels]
    gradient = powers / sums
    gradient[rows, labels] -= 1
    return Loss(float(losses.mean(dtype=np.float64)), gradient / logits.dtype.type(len(labels)))


class SGD:
    """velocity = momentum velocity + gradient; value -= rate velocity, as in PyTorch."""

    def __init__(self, parameters: Sequence[Parameter], momentum: float = MOMENTUM) -> None:
        self._parameters = list(parameters)
        self._velocities = [np.zeros_like(parameter.value) for parameter in parameters]
        self._momentum = momentum

    def step(self, rate: float) -> None:
        for parameter, velocity in zip(self._parameters, self._velocities, strict=True):
            velocity *= self._momentum
            velocity += parameter.grad
            parameter.value -= rate * velocity


def decayed(rate: float, factor: float, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: rate * factor^epoch."""
    return rate * factor**epoch
