"""The experiments, in the order of the report; one file each."""

from __future__ import annotations

from bench.training.experiment import Experiment
from bench.training.experiments.batch_size import BatchSize
from bench.training.experiments.convnet import ConvNet
from bench.training.experiments.dropout import WithDropout
from bench.training.experiments.fine_tuning import FineTuning
from bench.training.experiments.initialization import Initialization
from bench.training.experiments.landscape import Landscape
from bench.training.experiments.learning_rate import LearningRate
from bench.training.experiments.placement import Placement
from bench.training.experiments.recurrent import Recurrent
from bench.training.experiments.renorm_schedule import RenormSchedule
from bench.training.experiments.train_eval import TrainEval
from bench.training.experiments.with_and_without import WithAndWithout

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        *(WithAndWithout(), LearningRate(), Initialization(), BatchSize()),
        *(Placement(), WithDropout(), ConvNet(), Recurrent()),
        *(FineTuning(), TrainEval(), Landscape(), RenormSchedule()),
    )
}
