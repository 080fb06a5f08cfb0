"""LightGBM over the numbers and target-encoded categories of click rows; hides a library that few have installed."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.batch import Batch

Floats = NDArray[np.float64]

_PRIOR_ROWS = 20.0
_FOLDS = 5
_MOST_TREES = 400
_PATIENCE = 30
_LEAVES = (15, 31, 63)


class BoostedTrees(NamedTuple):
    """The log odds of the rows, and the bytes of trees and encoding together."""

    validation: Floats
    test: Floats
    num_bytes: int


class Encoding(NamedTuple):
    """The click rate of each id of a column, drawn to that of all rows where few rows hold it."""

    rates: tuple[NDArray[np.float32], ...]  # f32[R] of each column
    of_all: float

    @classmethod
    def of(cls, ids: NDArray[np.int32], labels: NDArray[np.float32], sizes: tuple[int, ...]) -> "Encoding":
        """Counts clicks of the ids i32[T, n] of these rows alone."""
        of_all = float(labels.mean())
        rates = []
        for column, size in zip(ids, sizes, strict=True):
            rows = np.bincount(column, minlength=size)
            clicks = np.bincount(column, labels, minlength=size)
            rates.append(((clicks + _PRIOR_ROWS * of_all) / (rows + _PRIOR_ROWS)).astype(np.float32))
        return cls(tuple(rates), of_all)

    def features(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Returns f32[n, T]."""
        return np.stack([rates[column] for rates, column in zip(self.rates, ids, strict=True)], axis=1)


def encoded_by_folds(
    ids: NDArray[np.int32], labels: NDArray[np.float32], sizes: tuple[int, ...]
) -> NDArray[np.float32]:
    """Encodes training rows by the others: a row's own click would tell the trees what they are to find."""
    encoded = np.empty((labels.size, len(sizes)), np.float32)
    fold = np.arange(labels.size) % _FOLDS
    for number in range(_FOLDS):
        mine = fold == number
        encoded[mine] = Encoding.of(ids[:, ~mine], labels[~mine], sizes).features(ids[:, mine])
    return encoded


def boosted_trees(train: Batch, validation: Batch, test: Batch) -> BoostedTrees:
    """Fits trees of several sizes, each until validation gets no better, and takes the best of them on validation."""
    import lightgbm

    parts = [part.ids.numpy() for part in (train, validation, test)]
    sizes = tuple(int(max(column.max(initial=0) for column in columns)) + 1 for columns in zip(*parts, strict=True))
    labels = [part.label.numpy() for part in (train, validation)]
    encoding = Encoding.of(parts[0], labels[0], sizes)
    encoded = [encoded_by_folds(parts[0], labels[0], sizes), *(encoding.features(ids) for ids in parts[1:])]
    rows = [
        np.concatenate([batch.dense.numpy(), one], axis=1)
        for batch, one in zip((train, validation, test), encoded, strict=True)
    ]
    fitting = lightgbm.Dataset(rows[0], labels[0], free_raw_data=False)
    choosing = lightgbm.Dataset(rows[1], labels[1], reference=fitting, free_raw_data=False)
    fitted = [
        lightgbm.train(
            {
                "objective": "binary",
                "metric": "auc",
                "learning_rate": 0.05,
                "num_leaves": leaves,
                "min_data_in_leaf": 100,
                "num_threads": 1,
                "seed": 1,
                "deterministic": True,
                "verbosity": -1,
            },
            fitting,
            _MOST_TREES,
            valid_sets=[choosing],
            callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)],
        )
        for leaves in _LEAVES
    ]
    best = max(fitted, key=lambda model: float(model.best_score["valid_0"]["auc"]))
    logits = [np.asarray(best.predict(part, raw_score=True)) for part in rows[1:]]
    num_bytes = len(best.model_to_string(num_iteration=best.best_iteration).encode())
    return BoostedTrees(logits[0], logits[1], num_bytes + sum(rates.nbytes for rates in encoding.rates))
