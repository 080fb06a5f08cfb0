"""The learning rate is a pure function of the step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.errors import ConfigError
from dqrm_cpu.train.optimizers import LearningRate

_steps = st.integers(0, 5000)


@settings(deadline=None)
@given(base=st.floats(1e-4, 10), step=st.integers(1, 10**9))
def test_without_warmup_and_decay_it_is_constant(base: float, step: int) -> None:
    assert LearningRate(base).at(step) == base


@settings(deadline=None)
@given(warmup=st.integers(1, 1000), base=st.floats(1e-3, 10))
def test_warmup_rises_in_equal_parts_from_base_over_warmup_to_base(warmup: int, base: float) -> None:
    rate = LearningRate(base, warmup_steps=warmup)
    assert rate.at(1) == pytest.approx(base / warmup)
    assert rate.at(warmup) == base
    assert [rate.at(step) for step in range(1, warmup + 1)] == pytest.approx(
        [base * step / warmup for step in range(1, warmup + 1)]
    )


def test_decay_is_quadratic_and_ends_at_its_last_rate_above_zero() -> None:
    rate = LearningRate(1.6, decay_start_step=10, decay_steps=4)
    assert [rate.at(step) for step in range(9, 16)] == pytest.approx([1.6, 1.6, 0.9, 0.4, 0.1, 0.1, 0.1])


@settings(deadline=None)
@given(warmup=_steps, plateau=_steps, decay=st.integers(1, 5000), step=st.integers(1, 20_000))
def test_rises_then_falls_and_stays_in_range(warmup: int, plateau: int, decay: int, step: int) -> None:
    rate = LearningRate(1.0, warmup, warmup + plateau, decay)
    now, after = rate.at(step), rate.at(step + 1)
    assert 0 < now <= 1
    assert now <= after if step < warmup else now >= after


@pytest.mark.parametrize(
    "arguments",
    [(0.0,), (-1.0,), (float("nan"),), (float("inf"),), (0.1, -1), (0.1, 0, -1), (0.1, 0, 0, -1), (0.1, 10, 9, 5)],
)
def test_impossible_settings_are_refused(arguments: tuple[float, int, int, int]) -> None:
    with pytest.raises(ConfigError):
        LearningRate(*arguments)


def test_warmup_may_end_where_decay_starts() -> None:
    assert LearningRate(0.5, warmup_steps=10, decay_start_step=10, decay_steps=5).at(10) == 0.5


def test_step_zero_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="count from 1"):
        LearningRate(0.1).at(0)
