"""Maps from logits to those of calibrated probabilities: Platt's two numbers, or a rising line (isotonic)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.errors import TrainingError

_NEWTON_STEPS = 50
_SMALLEST_CHANGE = 1e-10
_LEAST_PROBABILITY = 1e-6  # of an isotonic map, whose ends may be 0 and 1, where a logit is asked for


class Calibration(Protocol):
    """Makes probabilities mean what they say."""

    def logits(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the logits f32[N] of the calibrated probabilities."""


@dataclass(frozen=True)
class PlattCalibration:
    """The calibration sigmoid(slope * logit + intercept)."""

    slope: float
    intercept: float

    def logits(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the logits f32[N] of the calibrated probabilities."""
        return (self.slope * logits.astype(np.float64) + self.intercept).astype(np.float32)


@dataclass(frozen=True)
class IsotonicCalibration:
    """The probability rises piecewise linearly with the logit between knots, and is constant beyond them."""

    knots: NDArray[np.float64]  # logits, in rising order
    values: NDArray[np.float64]  # the probability at each

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns the calibrated probabilities f64[N] of logits f32[N]."""
        result: NDArray[np.float64] = np.interp(logits.astype(np.float64), self.knots, self.values)
        return result

    def logits(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the logits f32[N] of the calibrated probabilities, none of which is 0 or 1."""
        values = self.probabilities(logits).clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        result: NDArray[np.float32] = np.log(values / (1 - values)).astype(np.float32)
        return result


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Computes 1 / (1 + exp(-v)), exact to rounding for any v."""
    small = np.exp(-np.abs(values))  # at most 1: a large negative value must not overflow
    result: NDArray[np.float64] = np.where(values >= 0, 1.0, small) / (1.0 + small)
    return result


def fit_platt(
    logits: NDArray[np.float32], clicks: NDArray[np.bool_], weights: NDArray[np.float32] | None = None
) -> PlattCalibration:
    """Finds the slope and intercept of the largest likelihood, by Newton's method; weights f32[N] count rows.

    Platt's targets, (n + 1) / (n + 2) and 1 / (m + 2) of n clicks and m others instead of 1 and 0, keep the answer
    finite where the labels are separable.
    """
    logits, clicks, each = _counted(logits, clicks, weights)
    x, num_clicks, num_others = logits.astype(np.float64), float(each[clicks].sum()), float(each[~clicks].sum())
    _require_both_labels(clicks)
    target = np.where(clicks, (num_clicks + 1.0) / (num_clicks + 2.0), 1.0 / (num_others + 2.0))
    # Newton on standardized logits: the two unknowns then have the same size and hardly touch each other.
    center, spread = float(x.mean()), float(x.std()) or 1.0
    design = np.stack([(x - center) / spread, np.ones_like(x)], axis=1)
    unknown = np.array([spread, center])  # begins with the identity
    loss = _cross_entropy(design @ unknown, target, each)
    for _ in range(_NEWTON_STEPS):
        predicted = sigmoid(design @ unknown)
        gradient = design.T @ ((predicted - target) * each)
        curvature = (design * (predicted * (1 - predicted) * each)[:, None]).T @ design + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        lower, scale = loss, 1.0
        while scale > 1e-6:
            lower = _cross_entropy(design @ (unknown - scale * step), target, each)
            if lower <= loss:
                break
            scale /= 2
        else:
            break
        unknown = unknown - scale * step
        if loss - lower <= _SMALLEST_CHANGE * abs(loss):
            break
        loss = lower
    slope = float(unknown[0]) / spread
    return PlattCalibration(slope, float(unknown[1]) - slope * center)


def fit_isotonic(
    logits: NDArray[np.float32], clicks: NDArray[np.bool_], weights: NDArray[np.float32] | None = None
) -> IsotonicCalibration:
    """Finds the rising map with the smallest squared error, by pooling adjacent violators; linear between blocks.

    Weights f32[N] say how often each row counts.
    """
    logits, clicks, each = _counted(logits, clicks, weights)
    _require_both_labels(clicks)
    distinct, of_row = np.unique(logits, return_inverse=True)
    counts = np.bincount(of_row, weights=each, minlength=distinct.size)
    clicked = np.bincount(of_row, weights=each * clicks, minlength=distinct.size)
    starts: list[int] = []
    sums: list[float] = []
    rows: list[float] = []
    for at, (total, count) in enumerate(zip(clicked.tolist(), counts.tolist(), strict=True)):
        start = at
        while sums and sums[-1] * count >= total * rows[-1]:
            total, count, start = total + sums.pop(), count + rows.pop(), starts.pop()
        starts.append(start)
        sums.append(total)
        rows.append(count)
    values = np.array(sums) / np.array(rows)
    ends = np.array([*starts[1:], distinct.size]) - 1
    points, positions = distinct.astype(np.float64), np.array(starts)
    # A block is flat from its first logit to its last; a block of one logit is one knot.
    several = ends > positions
    knots = np.concatenate([points[positions], points[ends[several]]])
    levels = np.concatenate([values, values[several]])
    order = np.argsort(knots, kind="stable")
    return IsotonicCalibration(knots[order], levels[order])


class Fit(Protocol):
    """A function that fits a calibration."""

    def __call__(
        self, logits: NDArray[np.float32], clicks: NDArray[np.bool_], weights: NDArray[np.float32] | None = None
    ) -> Calibration:
        """Fits it to logits f32[N], clicks bool[N] and weights f32[N]; None: each row counts once."""


FITS: Mapping[str, Fit] = {
    "platt": fit_platt,
    "isotonic": fit_isotonic,
}
"""The function that fits each kind of calibration."""


def _counted(
    logits: NDArray[np.float32], clicks: NDArray[np.bool_], weights: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """Returns the rows that count, and how often each does."""
    if weights is None:
        return logits, clicks, np.ones(logits.size)
    some = weights > 0
    return logits[some], clicks[some], weights[some].astype(np.float64)


def _cross_entropy(logits: NDArray[np.float64], target: NDArray[np.float64], each: NDArray[np.float64]) -> float:
    """Sums the cross entropy over rows, targets between 0 and 1."""
    return float(np.sum(each * (np.maximum(logits, 0.0) - logits * target + np.log1p(np.exp(-np.abs(logits))))))


def _require_both_labels(clicks: NDArray[np.bool_]) -> None:
    num_clicks = int(np.count_nonzero(clicks))
    num_others = clicks.size - num_clicks
    if not num_clicks or not num_others:
        raise TrainingError(
            f"nothing can be calibrated on {num_clicks:,} clicks and {num_others:,} non-clicks: both are needed"
        )
