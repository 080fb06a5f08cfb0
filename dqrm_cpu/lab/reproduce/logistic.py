"""A logistic regression over ids and bins of numbers: the baseline that a click model has to beat."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.batch import Batch
from dqrm_cpu.metrics.click import ClickAccumulator, ClickMetrics

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

_BINS = 32
_BATCH_ROWS = 64
_TINY = 1e-8


class Features(NamedTuple):
    """Which weight each cell of a row has: one for each id, and one for each bin of a number."""

    first_of_table: Places  # i64[T]
    first_of_number: Places  # i64[D]
    edges: tuple[NDArray[np.float32], ...]  # of the bins of each number
    num_weights: int

    @classmethod
    def of(cls, table_rows: tuple[int, ...], train: Batch) -> "Features":
        """Numbers the weights of tables of these sizes, and of bins with as many training rows each as can be."""
        shares = np.arange(1, _BINS) / _BINS
        dense = train.dense.numpy()
        edges = tuple(np.unique(np.quantile(dense[:, d], shares).astype(np.float32)) for d in range(dense.shape[1]))
        sizes = np.array([*table_rows, *(edge.size + 1 for edge in edges)], np.int64)
        first = np.concatenate([[0], np.cumsum(sizes)])
        return cls(first[: len(table_rows)], first[len(table_rows) : -1], edges, int(first[-1]))

    def places(self, batch: Batch) -> Places:
        """Returns the weights of each row, i64[n, T + D]; one id a bag only."""
        assert batch.offsets is None, "a logistic regression reads one id a column"
        dense = batch.dense.numpy()
        bins = [np.searchsorted(edge, dense[:, d], side="right") for d, edge in enumerate(self.edges)]
        ids = batch.ids.numpy() + self.first_of_table[:, None]
        return np.ascontiguousarray(np.concatenate([ids, np.stack(bins) + self.first_of_number[:, None]]).T)


class Weights(NamedTuple):
    """The weight of each place, and the bias."""

    of_place: Floats
    bias: float

    def logits(self, places: Places) -> Floats:
        """Returns the log odds of rows."""
        return np.asarray(self.of_place[places].sum(1) + self.bias)


def fit(places: Places, labels: NDArray[np.float32], num_weights: int, rate: float) -> Weights:
    """Fits in one pass over the rows, in their order, by Adagrad."""
    weights, squares = np.zeros(num_weights), np.full(num_weights, _TINY)
    bias, bias_squares = 0.0, _TINY
    for low in range(0, labels.size, _BATCH_ROWS):
        of_batch, wanted = places[low : low + _BATCH_ROWS], labels[low : low + _BATCH_ROWS]
        log_odds = weights[of_batch].sum(1) + bias
        error = (1 / (1 + np.exp(-log_odds)) - wanted) / wanted.size
        touched, order = np.unique(of_batch, return_inverse=True)
        gradient = np.bincount(order.ravel(), np.repeat(error, of_batch.shape[1]))
        squares[touched] += gradient**2
        weights[touched] -= rate * gradient / np.sqrt(squares[touched])
        bias_squares += float(error.sum()) ** 2
        bias -= rate * float(error.sum()) / bias_squares**0.5
    return Weights(weights, bias)


def metrics(weights: Weights, features: Features, batch: Batch) -> ClickMetrics:
    """Scores rows."""
    import torch

    scored = ClickAccumulator()
    scored.add(torch.from_numpy(weights.logits(features.places(batch)).astype(np.float32)), batch.label)
    return scored.compute()


def best_of_rates(
    table_rows: tuple[int, ...], train: Batch, validation: Batch, rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05)
) -> tuple[Features, Weights]:
    """Fits at each rate; returns the regression with the best validation AUC."""
    features = Features.of(table_rows, train)
    places, labels = features.places(train), train.label.numpy()
    fitted = [fit(places, labels, features.num_weights, rate) for rate in rates]
    return features, max(fitted, key=lambda weights: metrics(weights, features, validation).auc)
