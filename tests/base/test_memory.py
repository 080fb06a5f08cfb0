"""Two sizes in one message can be told apart."""

from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.base.memory import format_distinct_sizes


def test_the_unit_suits_the_larger_one() -> None:
    assert format_distinct_sizes(3 << 30, 1 << 29) == ("3.0 GiB", "0.5 GiB")
    assert format_distinct_sizes(17 << 20, 0) == ("17.0 MiB", "0.0 MiB")
    assert format_distinct_sizes(17 << 20, 3 << 10) == ("17.0 MiB", "3.0 KiB")
    assert format_distinct_sizes(700, 3) == ("700 bytes", "3 bytes")


def test_what_differs_by_little_is_shown_with_more_digits_or_in_a_smaller_unit() -> None:
    assert format_distinct_sizes((1 << 34) + (1 << 24), 1 << 34) == ("16.02 GiB", "16.00 GiB")
    assert format_distinct_sizes((1 << 30) + (1 << 20), 1 << 30) == ("1,025.0 MiB", "1,024.0 MiB")
    assert format_distinct_sizes((1 << 30) + 1, 1 << 30) == ("1,073,741,825 bytes", "1,073,741,824 bytes")


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_different_sizes_never_read_the_same(one: int, other: int) -> None:
    texts = format_distinct_sizes(max(one, other), min(one, other))
    assert (texts[0] == texts[1]) == (one == other)
