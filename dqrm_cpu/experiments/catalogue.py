"""Every experiment by the name that the command takes."""

from collections.abc import Mapping
from types import MappingProxyType

from dqrm_cpu.experiments.curve_figures import FIGURE_3, FIGURE_4, FIGURE_5, FIGURE_6_7, FIGURE_8
from dqrm_cpu.experiments.dead_zone import DEAD_ZONE
from dqrm_cpu.experiments.exchange_tables import TABLE_6, TABLE_10
from dqrm_cpu.experiments.experiment import Experiment
from dqrm_cpu.experiments.model_tables import TABLE_2, TABLE_3A, TABLE_3B, TABLE_7, TABLE_8, TABLE_9
from dqrm_cpu.experiments.options import OPTIONS
from dqrm_cpu.experiments.timing_tables import FIGURE_1C, FIGURE_10, TABLE_4, TABLE_5
from dqrm_cpu.experiments.tuning import TUNING

EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {
        experiment.name: experiment
        for experiment in (
            TABLE_3A,
            TABLE_2,
            FIGURE_3,
            FIGURE_5,
            FIGURE_8,
            TABLE_7,
            TABLE_8,
            TABLE_9,
            FIGURE_6_7,
            DEAD_ZONE,
            TUNING,
            OPTIONS,
            FIGURE_4,
            TABLE_6,
            TABLE_10,
            FIGURE_1C,
            FIGURE_10,
            TABLE_4,
            TABLE_5,
            TABLE_3B,
        )
    }
)
"""In the order in which `all` runs them: what matters most comes first."""

ALL = "all"
