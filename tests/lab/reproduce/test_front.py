"""The front and what fits into a budget: chosen on validation, corrected for the number of rows."""

import math
from dataclasses import replace

import pytest

from dqrm_cpu.lab.reproduce.experiments.definition import Variant
from dqrm_cpu.lab.reproduce.pareto.front import AucDifference, FrontRow, corrected, marked, within_budgets
from dqrm_cpu.lab.reproduce.pareto.page import budget_table, front_chart, front_table
from dqrm_cpu.lab.reproduce.statistics import Paired, Spread
from dqrm_cpu.lab.reproduce.table import comma_separated
from dqrm_cpu.report.browser import chart_html
from dqrm_cpu.report.chart import Chart, CurveChart


def front_row(name: str, size: float, validation: float, difference: float | None = 0.0, p: float = 0.5) -> FrontRow:
    """A row over five seeds, whose test AUC is .75 and the difference."""
    found = None
    if difference is not None:
        found = AucDifference(Paired(difference, 0.001, 5, p), 0.00124, p / 2, p, math.nan)
    auc = Spread(0.75 + (difference or 0.0), 0.002, 5)
    return FrontRow(Variant(name, series="a"), False, (name,) * 5, size, validation, auc, Spread(0.45, 0.01, 5), found)


FULL = front_row("FP32", 10_000_000, 0.750, None)
SMALL = front_row("small", 1_400_000, 0.752, 0.0020, 0.001)
WORSE = front_row("worse", 1_400_000, 0.751, 0.0030, 0.001)
TINY = front_row("tiny", 40_000, 0.740, -0.0040, 0.001)
ROWS = (FULL, SMALL, WORSE, TINY)


def test_the_front_has_what_nothing_smaller_beats_on_validation() -> None:
    assert [row.variant.name for row in marked(ROWS) if row.is_on_front] == ["small", "tiny"]


def test_of_two_rows_alike_both_are_on_the_front() -> None:
    assert all(row.is_on_front for row in marked([SMALL, replace(SMALL, variant=Variant("twin"))]))


def test_p_values_are_corrected_for_the_number_of_rows() -> None:
    found = [row.difference.corrected_p for row in corrected(ROWS) if row.difference]
    assert found == pytest.approx([0.003, 0.003, 0.003])


def test_a_budget_is_spent_on_what_validation_likes_best() -> None:
    """That `worse` is better on test is not known when somebody chooses."""
    found = within_budgets(corrected(ROWS))
    assert [one.row.variant.name if one.row else "" for one in found] == ["small", "tiny", "tiny", "tiny"]
    assert [one.is_reached for one in found] == [True, False, False, False]
    assert [one.corrected_p for one in found] == pytest.approx([0.004] * 4)


def test_a_gain_that_is_not_sure_is_none() -> None:
    sure = front_row("sure", 1_400_000, 0.752, 0.0020, 0.02)
    assert within_budgets([FULL, sure, TINY])[0].is_reached
    unsure = front_row("unsure", 1_400_000, 0.752, 0.0020, 0.06)
    assert not within_budgets([FULL, unsure])[0].is_reached


def test_a_goal_that_is_no_gain_asks_for_no_p() -> None:
    alike = front_row("alike", 49_000, 0.75, -0.0029)
    assert [one.is_reached for one in within_budgets([FULL, alike])] == [False, False, False, True]


def test_models_that_are_not_ours_are_not_chosen() -> None:
    other = replace(SMALL, is_outside=True, validation_auc=0.9)
    assert within_budgets([FULL, other, SMALL])[0].row == SMALL


def test_tables_have_bytes_intervals_and_marks() -> None:
    made = front_table(marked(corrected(ROWS)))
    assert made.rows[0] == ("FP32", "", "10,000", "1x", "0.7500 ± 0.0020", "-", "-", "-", "-", "0.4500")
    assert made.rows[1][1:6] == ("●", "1,400", "7.14x", "0.7520 ± 0.0020", "+0.0020 ± 0.0012")
    assert made.rows[3][3] == "250x"
    assert comma_separated(made).count("\n") == 5
    assert [row[-1] for row in budget_table(corrected(ROWS)).rows] == ["reached", *["not reached"] * 3]
    assert budget_table([FULL]).rows[0][-1] == "none fits"


def drawn(chart: Chart) -> CurveChart:
    """The plot of a front."""
    assert isinstance(chart, CurveChart)
    return chart


def test_the_plot_has_the_front_in_order_and_all_rows() -> None:
    front, *series = drawn(front_chart(marked(ROWS), "pareto")).panels[0].curves
    assert list(front.x[0]) == [40, 1400]
    assert sum(len(curve.y) for curve in series) == len(ROWS)


def test_models_of_the_same_bytes_have_each_a_dot_with_its_name() -> None:
    (_, dots) = drawn(front_chart(marked(ROWS), "pareto")).panels[0].curves
    assert list(dots.names) == ["tiny", "small", "worse", "FP32"]
    assert len(set(dots.x[0])) == len(ROWS)
    assert '"names":["tiny","small","worse","FP32"]' in chart_html(front_chart(marked(ROWS), "pareto"))
