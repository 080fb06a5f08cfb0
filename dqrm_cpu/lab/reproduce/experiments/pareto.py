"""AUC against written bytes: what a reviewer asks for first, each tuned on validation, and what four bits can buy.

A row is added by a line in TUNED_MODELS.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from dqrm_cpu.config.setting import Value
from dqrm_cpu.lab.reproduce.experiments.definition import (
    FP32,
    Compression,
    Experiment,
    Outside,
    Plot,
    Settings,
    Variant,
    method,
)

_ONE_EPOCH: Settings = {"train.optimizer": "rowwise-adagrad", "train.epochs": 1}
_RATES = (0.01, 0.02)  # FP32's best is the higher one, INT4's the lower one, at one epoch of some 60,000 rows
_MORE_RATES = (0.005, 0.04)

SINGLE = "FP32, tuned"
"""The row that all others are compared with."""

PTQ, FILTERED, INT4, ENSEMBLES, SMALL, OUTSIDE = (
    "FP32 and after training",
    "FP32, frequency filter",
    "one quantized model",
    "ensembles of INT4",
    "small models in INT4",
    "not ours",
)
"""The series of the plot."""


@dataclass(frozen=True)
class TunedModel:
    """A model of the table: a row for each count of categories and each number of models.

    Every row tries two learning rates with each of `tried`, which are settings of what else there is to tune;
    validation chooses. That may be as many runs as the FP32 model has that all are compared with, and no more.
    """

    name: str
    settings: Settings  # over those of one epoch of row-wise Adagrad
    series: str
    counts: tuple[int, ...] = (1,)  # data.min_count
    members: tuple[int, ...] = (1,)  # models whose mean is scored; several of INT4 are a series of their own
    tried: tuple[Settings, ...] = ({},)
    compression: Compression | None = None  # after training
    outside: Outside | None = None  # a model that is not ours, and that tunes itself

    def __post_init__(self) -> None:
        assert len(_RATES) * len(self.tried) <= len(_ALL_FP32), self.name

    def variants(self) -> Iterator[Variant]:
        """Yields each row, and after it the runs of which it is the best."""
        for count in self.counts:
            for members in self.members:
                filtered = f", min-count {count}" if count > 1 else ""
                several = f", {members} models" if members > 1 else ""
                yield from _row(f"{self.name}{filtered}{several}", self._runs(count, members, filtered + several))

    def _runs(self, count: int, members: int, suffix: str) -> tuple[Variant, ...]:
        series = ENSEMBLES if members > 1 and self.series == INT4 else self.series
        common: Settings = {**_ONE_EPOCH, **self.settings, **({"data.min_count": count} if count > 1 else {})}
        tuned: dict[str, Settings] = {"tuned": {}}
        if self.outside is None:
            tuned = {
                f"rate {rate:g}{_named(tried)}": {"train.learning_rate": rate, **tried}
                for tried in self.tried
                for rate in _RATES
            }
        return tuple(
            Variant(
                f"{self.name}{suffix}, {name}",
                {**common, **settings},
                compression=self.compression,
                members=members,
                outside=self.outside,
                series=series,
                small_tables=count > 1,
            )
            for name, settings in tuned.items()
        )


def _named(settings: Settings) -> str:
    return "".join(f", {key.rpartition('.')[2].replace('_', '-')} {value}" for key, value in settings.items())


def _row(name: str, tried: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Makes a row of the table, which is the best of what was tried, and that."""
    return Variant(name, best_of=tuple(variant.name for variant in tried), series=tried[0].series), *tried


def _side_by_side(values: int) -> dict[str, Value]:
    """Returns the settings of a small model that reads what it looks up side by side, so many values a row."""
    sizes: dict[str, Value] = {"model.bottom_mlp": (32, values), "model.top_mlp": (64, 32, 1)}
    return {**_INT4, "model.interaction": "cat", "model.embedding_dim": values, **sizes}


def _plain(name: str, rates: tuple[float, ...], **train: Value) -> tuple[Variant, ...]:
    """Returns one epoch of row-wise Adagrad in FP32 at each rate."""
    settings = {**FP32, **_ONE_EPOCH, **{f"train.{key}": value for key, value in train.items()}}
    rated = ({**settings, "train.learning_rate": rate} for rate in rates)
    return tuple(Variant(f"{name}, rate {rate:g}", one, series=PTQ) for rate, one in zip(rates, rated, strict=True))


_SGD = (
    Variant("FP32, SGD, best epoch", FP32, series=PTQ),
    Variant("FP32, SGD, best epoch, weight decay 1e-3", {**FP32, "train.weight_decay": 1e-3}, series=PTQ),
)
_ALL_FP32 = (
    *_plain("FP32", tuple(sorted((*_RATES, *_MORE_RATES)))),
    *_plain("FP32, weight decay 1e-5", _RATES, weight_decay=1e-5),
    *_SGD,
)

_INT4 = method("dqrm")
_ANEW: Settings = {"train.epochs": 3, "train.reset_tables": "each-epoch"}  # MEDA
_DECAYS: tuple[Settings, ...] = tuple({"train.interval_decay": decay} for decay in (1e-5, 1e-4, 1e-3))
_AVERAGES: tuple[Settings, ...] = tuple(
    {"train.average_snapshots": 10, "train.average_from": begin} for begin in (0.5, 0.75)
)
_CROSS: Settings = {"model.interaction": "cross"}
_SMALL_MODEL: Settings = {"model.embedding_dim": 8, "model.bottom_mlp": (64, 8), "model.top_mlp": (64, 32, 1)}

TUNED_MODELS = (
    TunedModel("FP32", FP32, PTQ, members=(2, 4)),
    TunedModel("FP32", FP32, FILTERED, counts=(2, 5, 10, 20)),
    TunedModel("PTQ INT4", FP32, PTQ, compression=Compression.PER_TABLE),
    TunedModel("row-wise PTQ INT4, MLP in FP32", FP32, PTQ, compression=Compression.ROW_WISE),
    TunedModel("INT8", method("dqrm", embedding_bits=8, mlp_bits=8), INT4),
    TunedModel("INT2, MLP in INT4", method("dqrm", embedding_bits=2), INT4),
    TunedModel("INT4", _INT4, INT4, members=(1, 2, 4)),
    TunedModel("INT4", _INT4, INT4, counts=(2,), members=(1, 2, 3, 4)),
    TunedModel("INT4", _INT4, INT4, counts=(5, 10, 20), members=(1, 2, 4)),
    TunedModel("FP32, tables anew in three epochs", {**FP32, **_ANEW}, PTQ),
    TunedModel("INT4, tables anew in three epochs", {**_INT4, **_ANEW}, INT4),
    TunedModel("INT4, quantized in the last tenth", {**_INT4, "quant.start_at": 0.9}, INT4),
    TunedModel("FP32, decay by intervals", FP32, PTQ, tried=_DECAYS),
    TunedModel("INT4, decay by intervals", _INT4, INT4, tried=_DECAYS),
    TunedModel("INT4, mean of ten snapshots", _INT4, INT4, tried=_AVERAGES),
    TunedModel("DCNv2 in FP32", {**FP32, **_CROSS}, PTQ),
    TunedModel("DCNv2 in INT4", {**_INT4, **_CROSS}, INT4, counts=(5,)),
    TunedModel("FP32, side by side", {**FP32, "model.interaction": "cat"}, PTQ),
    TunedModel("INT4, 8 values a row", {**_INT4, **_SMALL_MODEL}, SMALL, counts=(5,), members=(1, 2)),
    TunedModel("INT4, 8 values side by side", _side_by_side(8), SMALL, counts=(5,), members=(1, 2, 4)),
    TunedModel("INT4, 4 values side by side", _side_by_side(4), SMALL, counts=(5,), members=(1, 2, 4)),
    TunedModel("INT4, 4 values side by side", _side_by_side(4), SMALL, counts=(10,)),
    TunedModel("INT4, 2 values side by side", _side_by_side(2), SMALL, counts=(10,), members=(1, 2)),
    TunedModel("logistic regression", FP32, OUTSIDE, counts=(1, 5, 20), outside=Outside.LOGISTIC),
    TunedModel("LightGBM", FP32, OUTSIDE, outside=Outside.BOOSTED_TREES),
)
"""What is compared with the tuned FP32 model, in the order of the table; a line here is a row on the page and more."""

PARETO = Experiment(
    "pareto",
    "AUC against written bytes",
    "Every row is what validation chose, seed by seed, from two learning rates of row-wise Adagrad in one epoch; the "
    "row that all are compared with from eight runs: four rates, weight decay, and SGD's best epoch with and without "
    "it. Models in INT4 have tables and MLPs in INT4. A min-count leaves out categories of fewer training rows. Models "
    "side by side (--model.interaction cat) have no dot products, and a top MLP of 64 and 32. The score of several "
    "models is the mean of theirs, as that of train --ensemble.",
    (
        *_row(SINGLE, _ALL_FP32),
        *_row("FP32, SGD's best epoch", _SGD)[:1],
        *(variant for model in TUNED_MODELS for variant in model.variants()),
    ),
    SINGLE,
    plot=Plot.FRONT,
)
