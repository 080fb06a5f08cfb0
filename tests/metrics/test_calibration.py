"""Calibration against what it must reach, and against slow definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.errors import TrainingError
from dqrm_cpu.metrics.calibration import fit_isotonic, fit_platt, sigmoid


def clicks_of(logits: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(logits.size) < sigmoid(logits)


def test_platt_finds_a_slope_and_an_intercept() -> None:
    true = np.random.default_rng(1).normal(-1.0, 1.5, 200_000)
    found = fit_platt(((true + 2.0) / 0.5).astype(np.float32), clicks_of(true, 2))
    assert found.slope == pytest.approx(0.5, abs=0.01)
    assert found.intercept == pytest.approx(-2.0, abs=0.03)


def test_platt_leaves_the_mean_prediction_at_the_click_rate() -> None:
    logits = np.random.default_rng(3).normal(3.0, 1.0, 20_000).astype(np.float32)
    clicks = clicks_of(logits.astype(np.float64) - 4.0, 4)
    assert sigmoid(fit_platt(logits, clicks).logits(logits).astype(np.float64)).mean() == pytest.approx(
        clicks.mean(), rel=1e-3
    )


def test_platt_stays_finite_where_the_labels_are_separable() -> None:
    logits = np.linspace(-1, 1, 100).astype(np.float32)
    found = fit_platt(logits, logits > 0)
    assert np.isfinite([found.slope, found.intercept]).all()
    assert (found.logits(logits)[logits > 0] > 2.2).mean() > 0.5


@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=30))
def test_isotonic_is_the_minimax_of_means(rows: list[tuple[int, bool]]) -> None:
    """The value at a logit is max over starts below of min over ends above of the mean label between (Barlow 1972)."""
    logits, clicks = np.array([row[0] for row in rows], np.float32), np.array([row[1] for row in rows])
    if clicks.all() or not clicks.any():
        with pytest.raises(TrainingError, match="both are needed"):
            fit_isotonic(logits, clicks)
        return
    calibration = fit_isotonic(logits, clicks)
    levels = np.unique(logits)
    for at, level in enumerate(levels):
        means = [
            [clicks[(logits >= low) & (logits <= high)].mean() for high in levels[at:]] for low in levels[: at + 1]
        ]
        expected = max(min(row) for row in means)
        assert calibration.probabilities(np.array([level], np.float32))[0] == pytest.approx(expected, abs=1e-12)


def test_isotonic_rises_and_ends_at_its_outer_knots() -> None:
    logits = np.random.default_rng(5).normal(0.0, 2.0, 5_000).astype(np.float32)
    calibration = fit_isotonic(logits, clicks_of(logits.astype(np.float64), 6))
    values = calibration.probabilities(np.linspace(-100, 100, 1_001).astype(np.float32))
    assert (np.diff(values) >= 0).all()
    assert (values[0], values[-1]) == (calibration.values[0], calibration.values[-1])


def test_isotonic_logits_are_those_of_its_probabilities() -> None:
    logits = np.random.default_rng(7).normal(0.0, 2.0, 1_000).astype(np.float32)
    calibration = fit_isotonic(logits, clicks_of(logits.astype(np.float64), 8))
    wanted = calibration.probabilities(logits)
    assert np.isfinite(calibration.logits(logits)).all()
    assert sigmoid(calibration.logits(logits).astype(np.float64)) == pytest.approx(wanted, abs=2e-6)
