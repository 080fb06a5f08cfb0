"""Columns of cells are read as their cells one by one, however many there are; both as the parser of `prepare` does."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.serving.cells import UnusableRowError, read_keys, read_numbers
from dqrm_cpu.serving.description import CategoryColumn, NumberColumn

NUMBERS = (NumberColumn("whole", "integer"), NumberColumn("any", "decimal"))
HASH, TEXT = CategoryColumn("hash", "hex", 9, 4), CategoryColumn("text", "text", 9, 4)
NUMBER_CELLS = st.one_of(
    st.sampled_from(["", "0", "-0", "7.", ".5", "-.5e3", "1e-3", "1E5", "12.0", "nan", "\\N", "True", "false", "3\n4"]),
    st.sampled_from(
        [" 3", "1_000", "inf", "+1", "--1", "1e", ".", "-", "0x1", "\u0661", "1e999", "99999999999", "1.5"]
    ),
    st.text("0123456789.-eE", max_size=6),
    st.sampled_from([None, True, 3, -2.5, math.nan, np.float32(4), np.int64(5)]),
)
CATEGORY_CELLS = st.one_of(
    st.text("0123456789abcdefABCDEF", max_size=9),
    st.sampled_from(
        ["", "nan", "NULL", "\\N", "47.0", "-3.00", "true", "FALSE", "ab\ncd", "0.5", "falsehood", "é", "xyz"]
    ),
    st.text(max_size=12),
    st.sampled_from([None, 47, 47.0, math.nan, True, 12345678]),
)


def outcome(read: Any, column: Any, cells: list[Any]) -> tuple[Any, Any, Any]:
    """What was read of one column, or where and why nothing could be."""
    try:
        found = read([column], [cells])[0]
    except UnusableRowError as error:
        return error.row, error.column, str(error).rpartition(":")[2]
    return found.tobytes(), found.dtype, found.shape


def one_by_one(read: Any, column: Any, cells: list[Any]) -> tuple[Any, Any, Any]:
    found = []
    for row, cell in enumerate(cells):
        try:
            found.append(read([column], [[cell]])[0])
        except UnusableRowError as error:
            return row, error.column, str(error).rpartition(":")[2]
    joined = np.concatenate(found)
    return joined.tobytes(), joined.dtype, joined.shape


@given(st.sampled_from(NUMBERS), st.lists(NUMBER_CELLS, min_size=1, max_size=12))
def test_numbers_of_a_column_are_those_of_its_cells(column: NumberColumn, cells: list[Any]) -> None:
    together, apart = outcome(read_numbers, column, cells), one_by_one(read_numbers, column, cells)
    # A cell that is none is found before one that is too large.
    assert together == apart or (isinstance(together[0], int) and isinstance(apart[0], int))


@given(st.sampled_from([HASH, TEXT]), st.lists(CATEGORY_CELLS, min_size=1, max_size=12))
def test_keys_of_a_column_are_those_of_its_cells(column: CategoryColumn, cells: list[Any]) -> None:
    try:
        assert outcome(read_keys, column, cells) == one_by_one(read_keys, column, cells)
    except UnicodeEncodeError:
        pytest.fail("a text without an encoding was not refused")


def test_several_columns_are_read_as_each_alone() -> None:
    numbers = [["3", "", "-7"], ["1.5", "nan", "1e3"]]
    found = read_numbers(NUMBERS, numbers)
    np.testing.assert_array_equal(found, [[3, np.nan, -7], [1.5, np.nan, 1000]])
    cells = [["a0", "", "12"], ["a0", "b", ""], ["FF", "0", "x" * 20]]
    columns = [HASH, TEXT, TEXT]
    alone = np.concatenate([read_keys([column], [its]) for column, its in zip(columns, cells, strict=True)])
    np.testing.assert_array_equal(read_keys(columns, cells), alone)
    assert alone[0].tolist() == [0xA0, 0, 0x12]


def test_a_long_text_that_is_no_number_is_refused_at_once() -> None:
    """A pattern that can read digits in several ways would need years."""
    for count in (1, 9):
        with pytest.raises(UnusableRowError, match="is not a number"):
            read_numbers(NUMBERS[:1], [["1" * 1_000_000 + "x"] * count])
