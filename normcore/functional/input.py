"""x as the kernels read it, with its view and mask; and other arrays laid out like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from .. import backend, check
from ..view import conform, flat
from .activation import View

Array = np.ndarray[Any, Any]
AnyView = TypeVar("AnyView", bound=View)


@dataclass(slots=True)
class Input(Generic[AnyView]):
    """What `prepare` of a kind of layer makes of x, its axes and its mask."""

    x: Array
    view: AnyView
    passes: Any
    """The kernels of the view's family."""
    kept: Array | None
    """The mask with all axes of x, of length 1 where it is broadcast."""
    counted: Array | None
    """The mask as the kernels take it."""

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
