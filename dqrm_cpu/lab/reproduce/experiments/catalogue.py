"""The catalogue: all experiments, by the names that `dqrm-cpu reproduce` takes."""

from collections.abc import Mapping
from types import MappingProxyType

from dqrm_cpu.lab.reproduce.experiments import accuracy, extras, gradients, pareto, timing
from dqrm_cpu.lab.reproduce.experiments.definition import Experiment

EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {
        experiment.name: experiment
        for experiment in (
            *(accuracy.TABLE_3A, accuracy.TABLE_2, accuracy.FIGURE_3, accuracy.FIGURE_5, accuracy.FIGURE_8),
            *(accuracy.TABLE_7, accuracy.TABLE_8, accuracy.TABLE_9, accuracy.FIGURE_6_7),
            *(extras.BASELINES, extras.DEAD_ZONE, extras.TUNING, extras.OPTIONS, pareto.PARETO),
            *(gradients.FIGURE_4, gradients.TABLE_6, gradients.TABLE_10),
            *(timing.FIGURE_1C, timing.FIGURE_10, timing.TABLE_4, timing.TABLE_5),
            accuracy.TABLE_3B,
        )
    }
)
"""In the order in which `all` runs them: what matters most comes first."""

ALL = "all"
