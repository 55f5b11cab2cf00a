"""What all layers have in common: mode, freezing, parameters and buffers, the state dict.

The names and the order of the state are PyTorch's, so that state dicts go both ways.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from . import check
from .reference import assign

Array = np.ndarray[Any, Any]
Self = TypeVar("Self", bound="Layer")


class LoadResult(NamedTuple):
    """What `Layer.load_state_dict` found; both are empty if it was strict."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class LayerGradients(NamedTuple):
    """What a layer's `backward` returns."""

    dx: Array
    """Gradient of the loss with respect to x; shape and dtype of x."""
    dweight: Array | None
    """Gradient with respect to weight; None if there is none, or it is frozen."""
    dbias: Array | None
    """Gradient with respect to bias; None likewise."""


class ResidualGradients(NamedTuple):
    """What a layer's `backward_residual` returns."""

    dx: Array
    """Gradient of the loss with respect to x; shape and dtype of x."""
    dweight: Array | None
    """Gradient with respect to weight; None if there is none, or it is frozen."""
    dbias: Array | None
    """Gradient with respect to bias; None likewise."""
    dresidual: Array
    """Gradient with respect to residual; dy itself where there is neither activation nor mask."""


class Saved(NamedTuple):
    """What a training-mode forward keeps for its backward."""

    x: Array | None
    """None if the forward wrote y over x."""
    mean: Array
    rstd: Array
    batch_statistics: bool
    """Are mean and rstd those of the batch, not constants?"""
    mask: Any = None
    residual: Array | None = None
    """Kept only for an activation, whose slope depends on it."""
    residual_lost: bool = False
    """Did the forward write y over a residual that the backward needs?"""
    r: Array | None = None
    """Factor and shift of a batch renormalization."""
    d: Array | None = None


class Layer:
    """A layer with parameters, running statistics and a training mode.

    Evaluation-mode calls may run in any number of threads at once. Training-mode calls of one
    layer wait for each other.
    """

    state_names: tuple[str, ...] = (
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    )
    """The arrays of the state, in PyTorch's order; None where this layer has none."""

    weight: Array | None
    bias: Array | None
    running_mean: Array | None
    running_var: Array | None
    num_batches_tracked: Array | None
    training: bool

    def __init__(self) -> None:
        self.training = True
        self._frozen = False
        self._frozen_affine = False
        self._saved: Saved | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # A lock cannot be pickled, and activations are not state.
        return {**self.__dict__, "_lock": None, "_saved": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def train(self: Self, mode: bool = True) -> Self:
        """Go to training mode (or to evaluation mode) and forget the last forward; return self."""
        self.training = bool(mode)
        self._saved = None
        return self

    def eval(self: Self) -> Self:
        """Go to evaluation mode; return self."""
        return self.train(False)

    @property
    def frozen(self) -> bool:
        """Are the running statistics frozen?"""
        return self._frozen

    @property
    def frozen_affine(self) -> bool:
        """Are weight and bias frozen?"""
        return self._frozen_affine

    def freeze(self: Self, affine: bool = False, *, statistics: bool = True) -> Self:
        """Hold running statistics, or weight and bias, or both still; return self.

        What is frozen stays so through `train`, `eval`, `load_state_dict` and a later `freeze`
        of the other; `unfreeze` undoes it.

        Parameters
        ----------
        affine : bool, optional
            Freeze weight and bias: backward returns None for their gradients.
        statistics : bool, optional
            Use and never update the running statistics, in training mode too.

        Raises
        ------
        ValueError
            If statistics are to be frozen and the layer has none, or if there is nothing else to
            freeze.

        Examples
        --------
        >>> import normcore as nc
        >>> bn = nc.BatchNorm2d(3).freeze(statistics=False, affine=True)
        >>> bn.frozen, bn.frozen_affine
        (False, True)
        >>> bn.freeze().train().unfreeze(affine=False).frozen_affine
        True
        """
        if statistics and self.running_mean is None:
            raise ValueError(
                f"freeze: {type(self).__name__} has no running statistics to normalize by; "
                "weight and bias alone are frozen by freeze(statistics=False, affine=True)"
            )
        if not statistics and (not affine or (self.weight is None and self.bias is None)):
            raise ValueError(
                f"freeze: nothing to freeze in {type(self).__name__} with statistics={statistics}, "
                f"affine={affine}"
            )
        self._frozen = self._frozen or bool(statistics)
        self._frozen_affine = self._frozen_affine or bool(affine)
        return self

    def unfreeze(self: Self, affine: bool = True, *, statistics: bool = True) -> Self:
        """Undo `freeze`, of both or of what is named; return self."""
        self._frozen = self._frozen and not statistics
        self._frozen_affine = self._frozen_affine and not affine
        return self

    def _returned(self, dx: Array, dweight: Array, dbias: Array) -> LayerGradients:
        """The gradients that a backward returns: of parameters that there are and that move."""
        still = self._frozen_affine
        return LayerGradients(
            dx,
            None if still or self.weight is None else dweight,
            None if still or self.bias is None else dbias,
        )

    def _arrays(self) -> dict[str, Array]:
        found = {name: getattr(self, name) for name in self.state_names}
        return {name: values for name, values in found.items() if values is not None}

    def state_dict(self) -> dict[str, Array]:
        """Copies of parameters and running statistics, by PyTorch's names in PyTorch's order."""
        with self._lock:
            return {name: values.copy() for name, values in self._arrays().items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy parameters and running statistics from a state dict, all or none.

        Parameters
        ----------
        state : mapping of str to array_like
            From `state_dict`, or from a PyTorch module. Floating-point values (bfloat16 too) are
            converted to the dtype of this layer.
        strict : bool, optional
            Insist on exactly this layer's keys.

        Returns
        -------
        LoadResult
            ``(missing_keys, unexpected_keys)``.

        Raises
        ------
        ValueError
            For missing or unexpected keys (if strict) and for wrong shapes.
        TypeError
            For values that are not numbers of the right kind. After an error the layer is as it
            was.
        """
        result, targets, values = self.matched(state, strict)
        with self._lock:
            assign(targets, values)
        return result

    def matched(
        self, state: Mapping[str, Any], strict: bool = True
    ) -> tuple[LoadResult, list[Array], list[Array]]:
        """What `load_state_dict` finds, what it writes to, and what it writes; raises as it does.

        `normcore.weights` checks several layers with it before it changes any.
        """
        own = self._arrays()
        result = LoadResult(
            [name for name in own if name not in state],
            [name for name in state if name not in own],
        )
        if strict and (result.missing_keys or result.unexpected_keys):
            raise ValueError(
                f"state: expected the keys {', '.join(own) or '(none)'}; "
                f"missing: {', '.join(result.missing_keys) or 'none'}; "
                f"unexpected: {', '.join(map(str, result.unexpected_keys)) or 'none'}"
            )
        names = [name for name in own if name in state]
        values = [_entry(name, state[name], own[name]) for name in names]
        return result, [own[name] for name in names], values

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running variance to 1 and the count of batches to 0."""
        self._reset("running_mean", "running_var", "num_batches_tracked")

    def reset_parameters(self) -> None:
        """Set weight to 1 and bias to 0, and reset the running statistics."""
        self._reset(*self.state_names)

    def _reset(self, *names: str) -> None:
        own = {name: values for name, values in self._arrays().items() if name in names}
        initial = [np.asarray(name in ("weight", "running_var"), own[name].dtype) for name in own]
        with self._lock:
            assign(list(own.values()), initial)


def _entry(name: str, values: Any, own: Array) -> Array:
    found = check.stored(name, values)
    kind, expected = (
        (np.floating, "floating-point numbers")
        if issubclass(own.dtype.type, np.floating)
        else (np.integer, "integers")
    )
    if not issubclass(found.dtype.type, kind):
        raise TypeError(f"{name}: expected {expected}, got dtype {found.dtype}")
    if found.shape != own.shape:
        raise ValueError(f"{name}: expected shape {own.shape}, got {found.shape}")
    return found.astype(own.dtype)
