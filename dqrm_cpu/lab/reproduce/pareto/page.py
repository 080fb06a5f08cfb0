"""The front as tables and a plot: bytes, AUC, differences with their tests, and what fits into a budget."""

import math
from collections.abc import Sequence

from dqrm_cpu.lab.reproduce.pareto.front import FrontRow, WithinBudget, within_budgets
from dqrm_cpu.lab.reproduce.statistics import Spread
from dqrm_cpu.lab.reproduce.table import Table
from dqrm_cpu.report.chart import Axis, Chart, Curve, CurveChart, Mark, Panel, color

PROTOCOL = (
    "Bytes are those of the file that holds the model: tables and MLPs, of INT4 models the smaller of the two layouts "
    "(with or without rows that are zero), of FP32 models everything in FP32; the vocabulary, which all need alike, is "
    "not in them. AUC is that of test rows. Δ is taken seed by seed; its interval is Student's of 95% over seeds. p is "
    "the larger of two: the paired t-test over seeds, and DeLong's test over the test rows; the last column is "
    "corrected by Holm for the number of rows of the table, in the table of goals for the number of goals, for which "
    "validation alone chose the rows. The front (●) has the rows than which none is better on "
    "validation in as few bytes. With generated rows each seed is a world of its own, with a prepared data set all "
    "seeds have its rows."
)

_FRONT = "●"
_LEAST_P = 0.001
_BESIDE = 1 + 1e-5
_NOTHING = "-"


def front_table(rows: Sequence[FrontRow]) -> Table:
    """Makes the table of all rows, in their order."""
    head = ("", "front", "kB", "smaller by", "test AUC", "Δ AUC, 95%", "p, seeds", "p, rows", "p, Holm", "log loss")
    full = next((row.written_bytes for row in rows if row.difference is None), math.nan)
    texts, figures = [], []
    for row in rows:
        texts.append(
            (
                row.variant.name,
                _FRONT if row.is_on_front else "",
                _kilobytes(row.written_bytes),
                f"{full / row.written_bytes:.3g}x",
                _spread_text(row.test_auc),
                *_difference_texts(row),
                f"{row.log_loss.mean:.4f}",
            )
        )
        figures.append(_figures(row))
    return Table(head, tuple(texts), tuple(figures))


def budget_table(rows: Sequence[FrontRow]) -> Table:
    """Makes the table of what fits into a share of FP32's bytes, beside what is to be reached there."""
    head = (
        "smaller by",
        "goal, Δ AUC",
        "best of ours on validation",
        "it is smaller by",
        "Δ AUC, 95%",
        "p, Holm of 4",
        "",
    )
    full = next((row.written_bytes for row in rows if row.difference is None), math.nan)
    texts: list[tuple[str, ...]] = []
    figures: list[dict[str, str | float]] = []
    for found in within_budgets(rows):
        texts.append(_budget_texts(found, full))
        row = found.row
        figures.append(
            {
                "times smaller": found.goal.times_smaller,
                "goal": found.goal.at_least,
                "row": row.variant.name if row else "",
                "p, Holm": found.corrected_p,
                "reached": str(found.is_reached),
            }
        )
    return Table(head, tuple(texts), tuple(figures))


def front_chart(rows: Sequence[FrontRow], name: str) -> Chart:
    """Draws test AUC against bytes, a series of dots for each kind of model, and the front as a line."""
    front = sorted((row for row in rows if row.is_on_front), key=lambda row: row.written_bytes)
    series = dict.fromkeys(row.variant.series for row in rows)
    curves = [_curve("the front", front, color(14), Mark.LINE)]
    for number, kind in enumerate(series):
        of_kind = sorted((row for row in rows if row.variant.series == kind), key=lambda row: row.written_bytes)
        curves.append(_curve(kind, of_kind, color(number), Mark.POINTS))
    listed = "; ".join(
        f"{row.variant.name}: {row.test_auc.mean:.4f}, {_kilobytes(row.written_bytes)} kB" for row in front
    )
    panel = Panel("Test AUC against written bytes", "AUC, mean over seeds", curves, log_x=True)
    return CurveChart(name, f"The front, from the smallest model on. {listed}.", [Axis("kB of the file")], [panel])


def _curve(label: str, rows: Sequence[FrontRow], shade: str, mark: Mark) -> Curve:
    """Makes a curve of rows that are sorted by bytes."""
    kilobytes: list[float] = []
    for row in rows:
        # A chart has one value at a place: two models of the same bytes stand beside each other.
        least = kilobytes[-1] * _BESIDE if kilobytes else 0.0
        kilobytes.append(max(row.written_bytes / 1e3, least))
    aucs = [row.test_auc.mean for row in rows]
    return Curve(label, [kilobytes], aucs, shade, mark, names=[row.variant.name for row in rows])


def _budget_texts(found: WithinBudget, full: float) -> tuple[str, ...]:
    goal = found.goal
    wanted = f"{goal.at_least:+.4f}" + (" and p < .05" if goal.is_a_gain else "")
    row = found.row
    if row is None:
        return (f"{goal.times_smaller:g}x", wanted, _NOTHING, _NOTHING, _NOTHING, _NOTHING, "none fits")
    difference, corrected = _difference_texts(row)[0], _p_text(found.corrected_p)
    reached = "reached" if found.is_reached else "not reached"
    smaller = f"{full / row.written_bytes:.3g}x"
    return (f"{goal.times_smaller:g}x", wanted, row.variant.name, smaller, difference, corrected, reached)


def _difference_texts(row: FrontRow) -> tuple[str, str, str, str]:
    found = row.difference
    if found is None:
        return _NOTHING, _NOTHING, _NOTHING, _NOTHING
    half = "" if math.isnan(found.half_interval) else f" ± {found.half_interval:.4f}"
    over_seeds, over_rows, corrected = map(_p_text, (found.over_seeds.p, found.p_rows, found.corrected_p))
    return f"{found.over_seeds.mean:+.4f}{half}", over_seeds, over_rows, corrected


def _p_text(p: float) -> str:
    if math.isnan(p):
        return _NOTHING
    return f"{p:.3f}" if p >= _LEAST_P else f"< {_LEAST_P}"


def _spread_text(values: Spread) -> str:
    return f"{values.mean:.4f}" + ("" if math.isnan(values.deviation) else f" ± {values.deviation:.4f}")


def _kilobytes(size: float) -> str:
    return f"{size / 1e3:,.0f}" if size >= 1e4 else f"{size / 1e3:.1f}"


def _figures(row: FrontRow) -> dict[str, str | float]:
    found = row.difference
    figures: dict[str, str | float] = {
        "variant": row.variant.name,
        "seeds": row.test_auc.count,
        "front": int(row.is_on_front),
        "bytes": row.written_bytes,
        "validation AUC, mean": row.validation_auc,
        "AUC, mean": row.test_auc.mean,
        "AUC, deviation": row.test_auc.deviation,
        "log loss, mean": row.log_loss.mean,
        "chosen, by seed": "; ".join(row.chosen),
    }
    if found is not None:
        figures |= {
            "AUC difference, mean": found.over_seeds.mean,
            "AUC difference, half of its 95% interval": found.half_interval,
            "p over seeds": found.over_seeds.p,
            "p over rows": found.p_rows,
            "p, Holm": found.corrected_p,
        }
    return figures
