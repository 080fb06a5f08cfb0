"""AUC against written bytes: what a reviewer asks for first, each tuned on validation, and what four bits can buy."""

from collections.abc import Iterable, Iterator

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
_COUNTS = (2, 5, 10, 20)

_SMALL_MODEL: Settings = {"model.embedding_dim": 8, "model.bottom_mlp": (64, 8), "model.top_mlp": (64, 32, 1)}
_CROSS: Settings = {"model.interaction": "cross"}

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


def _with_count(settings: Settings, count: int) -> dict[str, Value]:
    return {**settings, **({"data.min_count": count} if count > 1 else {})}


def _tried(name: str, settings: Settings, rates: Iterable[float], members: int, series: str) -> tuple[Variant, ...]:
    """Makes a variant at each learning rate of one epoch of row-wise Adagrad."""
    return tuple(
        Variant(
            f"{name}, rate {rate:g}",
            {**settings, **_ONE_EPOCH, "train.learning_rate": rate},
            members=members,
            series=series,
            small_tables="data.min_count" in settings,
        )
        for rate in rates
    )


def _side_by_side(values: int) -> dict[str, Value]:
    """Returns the settings of a small model that reads what it looks up side by side, so many values a row."""
    sizes: dict[str, Value] = {"model.bottom_mlp": (32, values), "model.top_mlp": (64, 32, 1)}
    return {"model.interaction": "cat", "model.embedding_dim": values, **sizes}


def _row(name: str, tried: tuple[Variant, ...], series: str) -> tuple[Variant, ...]:
    """Makes a row of the table, which is the best of what was tried, and that."""
    return Variant(name, best_of=tuple(variant.name for variant in tried), series=series), *tried


def _tuned(name: str, settings: Settings, series: str, members: tuple[int, ...] = (1,)) -> Iterator[Variant]:
    """Yields rows of a model, and of as many of it: each with the rate that is best on validation."""
    for count in members:
        of_row = name if count == 1 else f"{name}, {count} models"
        yield from _row(of_row, _tried(of_row, settings, _RATES, count, series), series)


def _compressed(name: str, compression: Compression) -> tuple[Variant, ...]:
    tried = tuple(
        Variant(f"{name}, rate {rate:g}", {**FP32, **_ONE_EPOCH, "train.learning_rate": rate}, compression=compression)
        for rate in _RATES
    )
    return _row(name, tried, PTQ)


def _outside(name: str, outside: Outside, count: int = 1) -> tuple[Variant, ...]:
    settings = _with_count({**FP32, **_ONE_EPOCH}, count)
    tried = Variant(f"{name}, tuned", settings, outside=outside, series=OUTSIDE, small_tables=count > 1)
    return _row(name, (tried,), OUTSIDE)


def _named(count: int) -> str:
    return f", min-count {count}" if count > 1 else ""


_PLAIN = _tried("FP32", FP32, sorted((*_RATES, *_MORE_RATES)), 1, PTQ)
_DECAYED = _tried("FP32, weight decay 1e-5", {**FP32, "train.weight_decay": 1e-5}, _RATES, 1, PTQ)
_SGD = (
    Variant("FP32, SGD, best epoch", FP32, series=PTQ),
    Variant("FP32, SGD, best epoch, weight decay 1e-3", {**FP32, "train.weight_decay": 1e-3}, series=PTQ),
)
_ALL_FP32 = (*_PLAIN, *_DECAYED, *_SGD)

PARETO = Experiment(
    "pareto",
    "AUC against written bytes",
    "Every row is what validation chose, seed by seed, from two learning rates of row-wise Adagrad in one epoch; the "
    "row that all are compared with from eight runs: four rates, weight decay, and SGD's best epoch with and without "
    "it. Models in INT4 have tables and MLPs in INT4. A min-count leaves out categories of fewer training rows. Models "
    "side by side (--model.interaction cat) have no dot products, and a top MLP of 64 and 32. The score of several "
    "models is the mean of theirs, as that of train --ensemble.",
    (
        *_row(SINGLE, _ALL_FP32, PTQ),
        *_row("FP32, SGD's best epoch", _SGD, PTQ)[:1],
        *_tuned("FP32", FP32, PTQ, (2, 4)),
        *(
            variant
            for count in _COUNTS
            for variant in _tuned(f"FP32, min-count {count}", _with_count(FP32, count), FILTERED)
        ),
        *_compressed("PTQ INT4", Compression.PER_TABLE),
        *_compressed("row-wise PTQ INT4, MLP in FP32", Compression.ROW_WISE),
        *_tuned("INT8", method("dqrm", embedding_bits=8, mlp_bits=8), INT4),
        *_tuned("INT2, MLP in INT4", method("dqrm", embedding_bits=2), INT4),
        *_tuned("INT4", method("dqrm"), INT4),
        *_tuned("INT4", method("dqrm"), ENSEMBLES, (2, 4)),
        *(
            variant
            for count in _COUNTS
            for series, members in ((INT4, (1,)), (ENSEMBLES, (2, 3, 4) if count == 2 else (2, 4)))
            for variant in _tuned(f"INT4, min-count {count}", _with_count(method("dqrm"), count), series, members)
        ),
        *_tuned("DCNv2 in FP32", {**FP32, **_CROSS}, PTQ),
        *_tuned("DCNv2 in INT4, min-count 5", _with_count({**method("dqrm"), **_CROSS}, 5), INT4),
        *_tuned("FP32, side by side", {**FP32, "model.interaction": "cat"}, PTQ),
        *_tuned("INT4, 8 values a row, min-count 5", _with_count({**method("dqrm"), **_SMALL_MODEL}, 5), SMALL, (1, 2)),
        *(
            variant
            for values, count, members in ((8, 5, (1, 2, 4)), (4, 5, (1, 2, 4)), (4, 10, (1,)), (2, 10, (1, 2)))
            for variant in _tuned(
                f"INT4, {values} values side by side, min-count {count}",
                _with_count({**method("dqrm"), **_side_by_side(values)}, count),
                SMALL,
                members,
            )
        ),
        *(
            variant
            for count in (1, 5, 20)
            for variant in _outside(f"logistic regression{_named(count)}", Outside.LOGISTIC, count)
        ),
        *_outside("LightGBM", Outside.BOOSTED_TREES),
    ),
    SINGLE,
    plot=Plot.FRONT,
)
