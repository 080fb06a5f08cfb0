"""Means, deviations, Student's test and its interval, and Holm's correction, against closed forms."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.lab.reproduce.statistics import Spread, half_interval, holm, paired, spread, student_two_sided

SOME_T = st.floats(0, 1e4)


@settings(max_examples=50)
@given(SOME_T)
def test_one_degree_of_freedom_is_the_cauchy_distribution(t: float) -> None:
    assert student_two_sided(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-12)


@settings(max_examples=50)
@given(SOME_T)
def test_two_degrees_of_freedom_have_a_closed_form(t: float) -> None:
    assert student_two_sided(t, 2) == pytest.approx(1 - t / math.sqrt(t * t + 2), abs=1e-12)


@settings(max_examples=50)
@given(SOME_T)
def test_four_degrees_of_freedom_have_a_closed_form(t: float) -> None:
    root = t / math.sqrt(t * t + 4)
    assert student_two_sided(t, 4) == pytest.approx(1 - root * (1.5 - 0.5 * root**2), abs=1e-12)


def test_many_degrees_of_freedom_approach_the_normal_distribution() -> None:
    assert student_two_sided(1.96, 10**7) == pytest.approx(math.erfc(1.96 / math.sqrt(2)), rel=1e-5)


@given(st.integers(1, 200), SOME_T)
@settings(max_examples=50)
def test_the_sign_of_t_does_not_matter(degrees: int, t: float) -> None:
    assert student_two_sided(-t, degrees) == student_two_sided(t, degrees)


def test_the_spread_is_that_of_a_sample() -> None:
    found = spread([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.deviation == pytest.approx(math.sqrt(7 / 3))


def test_one_seed_has_no_deviation_and_no_p() -> None:
    found = paired([0.5], [0.25])
    assert (found.mean, found.count) == (0.25, 1)
    assert math.isnan(found.deviation)
    assert math.isnan(found.p)


def test_a_paired_difference_is_taken_seed_by_seed() -> None:
    found = paired([1.0, 3.0, 5.5], [0.0, 2.0, 4.0])
    assert found.mean == pytest.approx(3.5 / 3)
    t = found.mean / (found.deviation / math.sqrt(3))
    assert found.p == pytest.approx(1 - t / math.sqrt(t * t + 2))


def test_equal_differences_have_no_p() -> None:
    assert math.isnan(paired([1.0, 2.0], [0.5, 1.5]).p)


def test_holm_multiplies_by_what_is_left() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, math.nan, 0.6])[::2] == pytest.approx([1.0, 1.0])
    assert math.isnan(holm([0.9, math.nan, 0.6])[1])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_never_lowers(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= after <= min(1.0, p * len(p_values) + 1e-12) for p, after in zip(p_values, corrected, strict=True))
    pairs = sorted(zip(p_values, corrected, strict=True))
    assert [after for _, after in pairs] == sorted(after for _, after in pairs)


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.7062), (3, 4.3027), (5, 2.7764), (31, 2.0423)])
def test_the_interval_is_that_of_students_quantiles(count: int, quantile: float) -> None:
    assert half_interval(Spread(0.5, 2.0, count)) == pytest.approx(quantile * 2.0 / math.sqrt(count), rel=1e-4)


def test_a_single_value_has_no_interval() -> None:
    assert math.isnan(half_interval(spread([1.0])))
