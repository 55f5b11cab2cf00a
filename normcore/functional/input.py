"""x as the kernels read it, with its view and mask; and other arrays laid out like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from .. import backend, check
from ..view import Lying, conform, empty, flat

Array = np.ndarray[Any, Any]


class View(Lying, Protocol):
    """What the views of all families say."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that kernels take."""


AnyView = TypeVar("AnyView", bound=View)


@dataclass(slots=True)
class Input(Generic[AnyView]):
    """What `prepare` of a kind of layer makes of x, its axes and its mask."""

    x: Array
    view: AnyView
    passes: Any
    """The kernels of the view's family."""
    mask: Array | None
    """As the kernels take it."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The last arguments of every kernel: sizes and threads."""
        return (*self.view.sizes, backend.threads(self.x.size))

    def alike(self, name: str, values: Any) -> Array:
        """An array of x's shape and dtype that lies in memory like x."""
        return conform(check.same(name, values, self.x), self.view)

    def optional(self, name: str, values: Any) -> Array | None:
        """Such an array or None."""
        return None if values is None else self.alike(name, values)

    def flat(self, values: Array | None) -> Array | None:
        """Such an array as the kernels take it."""
        return None if values is None else flat(values, self.view)

    def before_activation(
        self,
        dy: Any,
        mean: Array | None,
        rstd: Array,
        weight: Array | None,
        bias: Array | None,
        residual: Any,
        activation: str | None,
        out: Array | None,
    ) -> Array:
        """g = dy * activation'(z), z = norm(x) + residual.

        mean, rstd, weight and bias are as the kernels take them.
        """
        x, view = self.x, self.view
        number = check.activation(activation)
        dy = self.alike("dy", dy)
        residual = self.optional("residual", residual)
        g = check.destination(out, x, view, x, dy, residual, mean, rstd, weight, bias)
        if g is out and any(
            read is not None and np.may_share_memory(g, read) for read in (x, residual)
        ):
            # Kernels may write g over dy, and over nothing else.
            g = empty(x.shape, x.dtype, view)
        if x.size:
            self.passes.activation_grads(
                flat(g, view),
                flat(dy, view),
                flat(x, view),
                self.flat(residual),
                mean,
                rstd,
                weight,
                bias,
                number,
                *self.sizes,
            )
        return check.deliver(g, out)
