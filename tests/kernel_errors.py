"""Every pass of a case, held against the truth; and all of them in a row, as layers run them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from kernel_cases import (
    CHANNELS,
    EPS,
    KERNEL,
    Array,
    Backend,
    Case,
    arguments,
    inputs,
    kept,
    layout,
)
from kernel_truth import (
    activation_backward,
    activation_gradient,
    applied,
    backward,
    cells,
    elementwise_scale,
    error,
    forward,
    gradient,
    renormalized,
    saved,
    sums,
    tolerance,
)

from normcore import reference


class Errors:
    """The error of every output of every pass of a case, as a multiple of its tolerance."""

    def __init__(self, backend: Backend, case: Case) -> None:
        self.backend, self.case = backend, case
        self.found: dict[str, float] = {}
        given = inputs(case)
        self.poison: dict[str, Array] = {}
        if case.mask is not None:
            # What does not count may hold anything.
            aside = np.flatnonzero(~kept(case))
            for name in ("x", "dy"):
                self.poison[name] = given[name].copy()
                self.poison[name][aside[::2]], self.poison[name][aside[1::2]] = np.nan, np.inf

    def run(self, name: str, **given: Any) -> dict[str, Any]:
        values = arguments(self.case, **given)
        self.backend.run(self.case.family, name, values)
        return values

    def check(self, name: str, kind: str, got: Array, want: Array, scale: Any) -> None:
        size = error(got, want, scale) / tolerance(kind, self.case, got.dtype)
        self.found[name] = max(size, self.found.get(name, 0))

    def full(self, name: str, got: Array, want: Array, scale: Any = None) -> None:
        scale = elementwise_scale(want) if scale is None else scale
        self.check(name, "elementwise", got, want, scale)

    def moments(self) -> None:
        mean, m2 = cells(self.case)
        empty = {name: np.full(self.case.cells, np.nan) for name in ("mean", "m2")}
        values = self.run("moments", **empty)
        size = np.maximum(np.abs(mean), np.sqrt(m2 * self.case.cells / values["x"].size))
        self.check("moments mean", "mean", values["mean"], mean, size)
        self.check("moments m2", "variance", values["m2"], m2, m2)

    def statistics(self, label: str, values: dict[str, Any]) -> None:
        exact = forward(self.case)
        if self.case.centre:
            size = np.maximum(np.abs(exact["mean"]), np.sqrt(exact["var"]))
            self.check(f"{label} mean", "mean", values["mean"], exact["mean"], size)
        for name in ("var", "rstd"):
            if name in KERNEL[self.case.family, label].arguments:
                self.check(f"{label} {name}", "variance", values[name], exact[name], exact[name])

    def forward(self) -> None:
        exact = forward(self.case)
        for given in self.inputs():
            values = self.run("forward", **given)
            self.statistics("forward", values)
            told = self.told(given)
            self.full("forward y", values["y"][told], exact["y"][told])

    def inputs(self) -> list[dict[str, Array]]:
        """The case's own, and those in which what does not count is no number."""
        return [{}, self.poison] if self.poison else [{}]

    def told(self, given: dict[str, Array]) -> Any:
        """The elements whose y can be told: where nothing of a statistic counts, y is bias."""
        if not given:
            return slice(None)
        return kept(self.case) | (forward(self.case)["rstd"] == 0)[layout(self.case).statistic]

    def renorm(self) -> None:
        for given in self.inputs():
            values = self.run("renorm", **given)
            self.statistics("renorm", values)
            self.correction(values)
            y, told = renormalized(self.case, values["r"], values["d"]), self.told(given)
            self.full("renorm y", values["y"][told], y[told])

    def correction(self, values: dict[str, Any]) -> None:
        exact, given = forward(self.case), inputs(self.case)
        r, d = reference.renorm_correction(
            *(exact["mean"], exact["var"], given["running_mean"].astype(exact["mean"].dtype)),
            *(given["running_var"].astype(exact["var"].dtype), 1.5, 0.5, EPS),
        )
        empty = exact["rstd"] == 0
        r, d = np.where(empty, 1, r), np.where(empty, 0, d)
        self.check("renorm r", "variance", values["r"], r, r)
        # The mean is given out in float64: that is d's rounding.
        sizes = np.abs(exact["mean"]) / np.sqrt(given["running_var"].astype(np.float64) + EPS)
        exact_mean = 0 if self.case.dtype == "float64" else 1e9
        self.full("renorm d", values["d"], d, np.maximum(1, sizes / (1 + exact_mean)))

    def apply(self) -> None:
        exact = forward(self.case)
        stored = {name: exact[name].astype(self.case.stored) for name in ("mean", "var")}
        mean, var = (values.astype(exact["mean"].dtype) for values in stored.values())
        rstd = reference.inverse_deviation(var, EPS)
        self.full("apply y", self.run("apply", **stored)["y"], applied(self.case, mean, rstd)["y"])

    def activation_grads(self) -> None:
        given = saved(self.case)
        want, clear = activation_gradient(self.case, **given)
        got = self.run("activation_grads", **given)["g"]
        self.full("activation_grads g", got[clear], want[clear])

    def reduce_grads(self) -> None:
        exact, values = sums(self.case), self.run("reduce_grads", mean=saved(self.case)["mean"])
        self.sums("reduce_grads", exact, values, ("sum_dy", "sum_dy_xmu"))

    def sums(
        self, label: str, exact: dict[str, Array], values: dict[str, Any], names: tuple[str, ...]
    ) -> None:
        for name in names:
            size = np.maximum(exact[f"size_{name}"], np.abs(exact[name]))
            self.check(f"{label} {name}", "sums", values[name], exact[name], size)

    def apply_grads(self) -> None:
        given = {
            name: sums(self.case)[name].astype(np.float64) for name in ("sum_dy", "sum_dy_xmu")
        }
        given |= saved(self.case)
        want = gradient(self.case, **given)
        scale = np.maximum(backward(replace(self.case, mask=None))["size_dx"], np.abs(want))
        self.full("apply_grads dx", self.run("apply_grads", **given)["dx"], want, scale)

    def backward(self) -> None:
        for training in (True, False) if self.case.family in CHANNELS else (True,):
            exact = backward(self.case, training)
            label = "backward" if training else "backward in evaluation"
            for given in self.inputs():
                values = self.run(
                    "backward", **{**given, **saved(self.case, training), "training": training}
                )
                self.full(f"{label} dx", values["dx"], exact["dx"], exact["size_dx"])
                self.sums(label, exact, values, ("dweight", "dbias"))

    def activation_backward(self) -> None:
        for training in (True, False) if self.case.family in CHANNELS else (True,):
            exact = activation_backward(self.case, training)
            label = "activation_backward" if training else "activation_backward in evaluation"
            clear = exact["clear"]
            # Where rounding may choose another side of a kink, dy is 0 for all that depends on it.
            dy = np.where(clear, inputs(self.case)["dy"], 0).astype(self.case.storage)
            for given in self.inputs():
                values = {**given, **saved(self.case, training), "training": training}
                if "dy" in given:
                    values["dy"] = np.where(clear | ~kept(self.case), given["dy"], 0)
                else:
                    values["dy"] = dy
                for g in ({}, {"g": None}):
                    found = self.run("activation_backward", **values, **g)
                    self.full(f"{label} dx", found["dx"], exact["dx"], exact["size_dx"])
                    self.sums(label, exact, found, ("dweight", "dbias"))
                    if not g:
                        self.full(f"{label} g", found["g"], exact["g"])

    def add_forward(self) -> None:
        case = replace(self.case, addend=True, mask=None, residual=False, activation=None)
        values = arguments(case)
        self.backend.run(case.family, "add_forward", values)
        x, addend = (inputs(case)[name] for name in ("x", "addend"))
        want = x.astype(np.longdouble if case.dtype == "float64" else np.float64) + addend
        self.full("add_forward total", values["total"], want)
        exact = forward(case, values["total"].tobytes())
        if case.centre:
            size = np.maximum(np.abs(exact["mean"]), np.sqrt(exact["var"]))
            self.check("add_forward mean", "mean", values["mean"], exact["mean"], size)
        self.check("add_forward rstd", "variance", values["rstd"], exact["rstd"], exact["rstd"])
        self.full("add_forward y", values["y"], exact["y"])


def errors(backend: Backend, case: Case, *passes: str) -> dict[str, float]:
    """What is too far from the truth, of some or all passes that know the case."""
    found = Errors(backend, case)
    for name in passes or case.passes:
        if name not in case.passes or (name in ("reduce_grads", "apply_grads") and case.d > 1):
            continue
        getattr(found, name)()
    return {name: size for name, size in found.found.items() if size > 1}


def outputs(backend: Backend, case: Case, **given: Any) -> dict[str, Any]:
    """Every output of every pass, each fed by those before it as in a layer."""
    found: dict[str, Any] = {}
    kept_for_later: dict[str, Any] = {}

    def run(name: str, label: str = "", **more: Any) -> None:
        values = arguments(case, **{**given, **kept_for_later, **more})
        backend.run(case.family, name, values)
        for key in KERNEL[case.family, name].outputs:
            if values[key] is not None:
                found[f"{label or name} {key}"] = values[key].copy()

    run("forward")
    saved_names = [name for name in ("mean", "var", "rstd") if f"forward {name}" in found]
    kept_for_later |= {name: found[f"forward {name}"] for name in saved_names}
    run("activation_grads")
    run("backward")
    run("activation_backward")
    if case.family in CHANNELS:
        run("backward", "evaluation", training=False)
        run("apply")
        run("moments", **{name: np.full(case.cells, np.nan) for name in ("mean", "m2")})
        fresh = {name: np.full(case.statistics, np.nan) for name in saved_names}
        run("renorm", **fresh)
        if case.d == 1:
            run("reduce_grads")
            for name in ("sum_dy", "sum_dy_xmu"):
                kept_for_later[name] = found[f"reduce_grads {name}"]
            run("apply_grads")
    if case.family == "rows":
        fresh = {name: np.full(case.statistics, np.nan) for name in saved_names}
        addend = {} if case.addend or "addend" in given else {"addend": arguments(case)["dy"]}
        run("add_forward", **fresh, **addend)
    return found
