"""What an experiment is: variants of one configuration, the paper's figures beside them, what is shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from typing import TypeAlias

from dqrm_cpu.config.setting import Value

Settings: TypeAlias = Mapping[str, Value]
"""Dotted keys, as in quant.method, to their values."""

BASELINE = "FP32"
FP32: dict[str, Value] = {"quant.method": "none"}
FP32_MLP: dict[str, Value] = {"quant.mlp_bits": 32}


def method(name: str, **quant: Value) -> dict[str, Value]:
    """Returns the settings of a quantization method."""
    return {"quant.method": name, **{f"quant.{key}": value for key, value in quant.items()}}


class Compression(Enum):
    """The way in which a model is compressed after training in FP32."""

    PER_TABLE = "per-table"  # the paper's "vanilla PTQ": one scale a table, MLPs by output row
    ROW_WISE = "row-wise"  # production's: scale and bias in FP16 for each row, their range found by a greedy search


class Outside(Enum):
    """A model that is not ours, on the same rows."""

    LOGISTIC = "logistic-regression"  # over ids and bins of numbers
    BOOSTED_TREES = "lightgbm"  # over numbers and target-encoded ids; of the extra `baselines`

    @property
    def missing(self) -> str:
        """Says how to get the library that it needs; empty where it needs none, or has it."""
        if self is Outside.BOOSTED_TREES and find_spec("lightgbm") is None:
            return "LightGBM is not installed, pip install 'dqrm-cpu[baselines]' adds it"
        return ""


@dataclass(frozen=True)
class Paper:
    """The paper's figures of one row; None where it reports nothing."""

    accuracy: float | None = None  # percent
    auc: float | None = None
    loss: float | None = None  # training
    ms_per_step: float | None = None
    size_gb: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Variant:
    """One row of a table, or one line of a figure. `epochs` and `pretrain_epochs` are the paper's; presets map them."""

    name: str
    settings: Settings = field(default_factory=dict)
    paper: Paper = Paper()
    epochs: int = 5
    pretrain_epochs: int = 0
    compression: Compression | None = None
    tables_divided_by: int = 1  # smaller tables; generated data only, since prepared ids need theirs
    family: "Family | None" = None  # where it is not the experiment's
    processes: int = 1  # real ranks on this machine, over gloo
    small_tables: bool = False  # left out at the paper's scale
    histograms: bool = False  # of the weights at some moments, which takes a checkpoint of every epoch
    against: str = ""  # the variant that it is compared with; empty: the experiment's baseline
    learning_rate_times: float = 1.0  # the preset's
    best_of: tuple[str, ...] = ()  # no run of its own: of these variants, seed by seed, the best one on validation
    members: int = 1  # the first so many of an ensemble, each a run of its own; a score is the mean of theirs
    outside: Outside | None = None  # a model that is not ours
    series: str = ""  # of its dot in a front


class Family(Enum):
    """The model of the paper that an experiment is about."""

    KAGGLE = "kaggle"
    TERABYTE = "terabyte"


class Show(Enum):
    """Columns of a table, beside the figures that every table has."""

    SIZE = "size"
    LOSS = "training loss"
    MS_PER_STEP = "ms per step"
    UPDATED_ROWS = "rows that training updated"
    LIVE_ROWS = "live rows"
    LIVE_UPDATED_ROWS = "live rows among those"
    SPARSE_SIZE = "row-sparse size"
    UPDATED_SPARSE_SIZE = "row-sparse size of updated rows"
    BYTES_SENT = "bytes sent"
    PHASES = "where the time of a step goes"


class Plot(Enum):
    """The kind of drawing of an experiment."""

    TABLE = "test AUC of each row, at the chosen and at the last checkpoint"
    ACCURACY = "validation accuracy by epoch"
    ACCURACY_AND_LOSS = "validation accuracy and training loss by epoch"
    PHASES = "the time of a step, by phase"
    HISTOGRAMS = "weights of one table at chosen moments"
    FRONT = "test AUC against written bytes; the table too is that of a front"


@dataclass(frozen=True)
class Experiment:
    """One table or figure. `reading` says what to look for, and what the paper saw there."""

    name: str
    title: str
    reading: str
    variants: tuple[Variant, ...]
    baseline: str  # name of the variant that the others are compared with
    family: Family = Family.KAGGLE
    shows: tuple[Show, ...] = ()
    plot: Plot = Plot.TABLE
    by_epoch: tuple[int, ...] = ()  # the paper's epochs, where a table follows one run instead of comparing several
    paper_by_epoch: Mapping[int, Paper] = field(default_factory=dict)
    one_seed: bool = False  # where a picture of one run is asked for
    scores: bool = True  # accuracy and AUC; runs that only time or count train too little for them

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        mentioned = {self.compared_with(variant) for variant in self.variants}
        assert mentioned.union(*(variant.best_of for variant in self.variants)) <= set(names), self.name
        assert len(set(names)) == len(names), self.name

    @property
    def keeps_scores(self) -> bool:
        """Whether runs keep the logits of validation and test rows: for means of them, and tests over rows."""
        return self.plot is Plot.FRONT

    def compared_with(self, variant: Variant) -> str:
        """Returns the name of the variant whose figures are subtracted from those of this one."""
        return variant.against or self.baseline
