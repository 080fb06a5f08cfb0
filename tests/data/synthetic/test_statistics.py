"""The statistics themselves, on rows small enough to count by hand."""

import numpy as np
import pytest

from dqrm_cpu.data.synthetic.statistics import (
    describe_category,
    describe_integer,
    determination,
    missing_groups,
    unseen_share,
)


def cells(*values: int) -> np.ndarray:
    return np.asarray(values, np.int32)


def test_category_counts() -> None:
    label = np.asarray([1, 0, 1, 1, 0, 0], np.float32)
    found = describe_category("C", cells(5, 5, 5, 7, -1, 9), label)
    assert found.missing_share == pytest.approx(1 / 6)
    assert found.seen_once == 2
    assert found.head_shares == pytest.approx((3 / 5, 1 / 5, 1 / 5))
    assert found.head_click_rates == pytest.approx((2 / 3, 1.0, 0.0))


def test_distinct_values_by_rows() -> None:
    column = np.concatenate([np.arange(8_000), np.full(12_000, 3)]).astype(np.int32)
    column[7_999] = -1
    found = describe_category("C", column, np.zeros(20_000, np.float32))
    assert found.distinct == (7_999, 7_999)


def test_unseen_cells_of_the_held_out_rows() -> None:
    # The last 3 of 20 rows hold a known value, a new one and a missing cell.
    assert unseen_share(cells(*range(17), 4, 99, -1)) == 0.5


def test_unseen_without_present_cells() -> None:
    assert unseen_share(cells(*range(17), -1, -1, -1)) == 0.0


def test_integer_statistics_leave_missing_out() -> None:
    found = describe_integer("I", cells(-9, 0, -1, 0, 4), missing=-9)
    assert found.missing_share == pytest.approx(0.2)
    assert (found.negative_share, found.zero_share) == (0.25, 0.5)
    assert found.quantiles[2] == 0
    assert found.log_mean == pytest.approx(np.log(5) / 4)


def test_an_integer_field_that_is_never_there() -> None:
    found = describe_integer("I", cells(-9, -9), missing=-9)
    assert found.missing_share == 1.0 and np.isnan(found.log_mean)


def test_a_function_is_determined() -> None:
    cause = cells(1, 1, 2, 2, 3)
    assert determination(cause, cells(4, 4, 4, 4, 5)) == 1.0


def test_determination_counts_the_commonest_effect_of_repeated_causes() -> None:
    # Cause 1 has effects 7, 7, 8; cause 2 comes once and is left out, as is the missing cell.
    assert determination(cells(1, 1, 1, 2, -1), cells(7, 7, 8, 9, 9)) == pytest.approx(2 / 3)


def test_determination_without_a_repeated_cause() -> None:
    assert np.isnan(determination(cells(1, 2), cells(1, 1)))


def test_missing_groups_join_equal_rows_only() -> None:
    a = np.asarray([True, True, False, False])
    found = missing_groups({"A": a, "B": ~a, "C": a, "never": np.zeros(4, bool)})
    assert found == (("A", "C"), ("B",))
