"""Durations: the same figures as from all samples, whatever was forgotten of them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.timing.durations import Durations

_samples = st.lists(st.integers(0, 10**13), min_size=1, max_size=60)


@settings(max_examples=60)
@given(_samples, st.integers(0, 60))
def test_figures_are_those_of_all_samples(values: list[int], split: int) -> None:
    durations, samples = Durations(), np.array(values)
    durations.add(samples[:split])
    durations.add(samples[split:])
    found = durations.summary()
    assert (found.count, found.min_ms, found.max_ms) == (len(values), min(values) * 1e-6, max(values) * 1e-6)
    assert found.total_ms == sum(values) * 1e-6
    for share, value_ms in ((0.5, found.median_ms), (0.95, found.p95_ms)):
        exact = np.quantile(samples, share, method="lower") * 1e-6
        # A bin is 2^(1/64) wide, 1.1%; below 2 ns all are one.
        np.testing.assert_allclose(value_ms, exact, rtol=0.011, atol=2e-6)


def test_nothing_observed_is_nothing() -> None:
    summary = Durations().summary()
    assert (summary.count, summary.total_ms, summary.median_ms) == (0, 0.0, 0.0)
