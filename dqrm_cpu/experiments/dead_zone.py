"""The dead zone: rows whose weights stay under half a step are exactly zero, and what widening the step does.

A table's scale is its largest weight over the largest code. Rows of rare ids, which are what gets memorized, stay under
half of that: they contribute nothing and need not be stored. How much of a table lies there depends on its size and on
the skew of its ids, so in small tables the paper's step leaves almost nothing out.
"""

from dqrm_cpu.experiments.experiment import Experiment, Show, Variant
from dqrm_cpu.experiments.model_tables import BASELINE, FP32_MLP, method

_ADAGRAD = {"train.optimizer": "rowwise-adagrad", "train.learning_rate": "0.02"}
_SMALL_TABLES = "tables / 10"


def _width(bits: int, width: float) -> Variant:
    settings = method("dqrm", embedding_bits=str(bits), step_width=str(width)) | FP32_MLP
    return Variant(f"INT{bits}, width {width:g}", settings)


def _adagrad(variant: Variant) -> Variant:
    return Variant(f"{variant.name}, Adagrad", {**variant.settings, **_ADAGRAD}, against=f"{BASELINE}, Adagrad")


def _small(variant: Variant) -> Variant:
    name, against = f"{variant.name}, {_SMALL_TABLES}", f"{BASELINE}, {_SMALL_TABLES}"
    return Variant(name, variant.settings, tables_divided_by=10, against=against)


_FP32 = Variant(BASELINE, method("none"))
_ALIVE = Variant("INT4, 5% of rows alive", method("dqrm", target_alive="0.05") | FP32_MLP)

DEAD_ZONE = Experiment(
    "deadzone",
    "The dead zone: step width x bits x optimizer x table size",
    "Ours, not the paper's. Width 1 is the paper's step. Look for a width whose best AUC is FP32's or better, whose "
    "last epoch has not fallen, and whose live rows are few: the row-sparse file holds only those. Rows that training "
    "never updated are as they were drawn; that they are zero says nothing about the quantizer, so that the last "
    "figure leaves them out of FP32 and file alike. Under Adagrad rare rows move as far as "
    "common ones, and in small tables every id is seen often: there, expect less.",
    (
        _FP32,
        *(_width(4, width) for width in (1, 2, 3, 4)),
        _ALIVE,
        _width(8, 1),
        _width(8, 48),
        _width(2, 1),
        *map(_adagrad, (_FP32, _width(4, 1), _width(4, 3))),
        *map(_small, (_FP32, _width(4, 1), _width(4, 3))),
    ),
    BASELINE,
    shows=(
        Show.UPDATED_ROWS,
        Show.LIVE_ROWS,
        Show.LIVE_UPDATED_ROWS,
        Show.SPARSE_SIZE,
        Show.UPDATED_SPARSE_SIZE,
        Show.LOSS,
    ),
)
