"""The experiments, in the order of the report; one file each."""

from __future__ import annotations

from bench.training.experiment import Experiment
from bench.training.experiments.with_and_without import WithAndWithout

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment for experiment in (WithAndWithout(),)
}
