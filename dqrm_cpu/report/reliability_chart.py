"""Whether predictions mean what they say: the observed click rate over the predicted one, with the rows behind it."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dqrm_cpu.base.decode import UnreadableError, decoded
from dqrm_cpu.metrics.calibration import sigmoid
from dqrm_cpu.metrics.reliability import BINS_PER_UNIT, Reliability, merged_bins
from dqrm_cpu.report.chart import Axis, Curve, CurveChart, Mark, Panel, color
from dqrm_cpu.report.markup import folded_parts, heading, table
from dqrm_cpu.report.page import PagePart
from dqrm_cpu.report.run_files import RunFiles

_MOST_BINS = 20
_PARTS = ("validation", "test")


def reliability_parts(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    """Shows the bins of all runs that have any; nothing where none has, as those of earlier versions."""
    found = {part: {run.name: bins for run in runs if (bins := _bins(run, part)) is not None} for part in _PARTS}
    colors = {run.name: color(number) for number, run in enumerate(runs)}
    shown = {part: of_runs for part, of_runs in found.items() if of_runs}
    if not shown:
        return
    panels = [_diagram(part, of_runs, colors) for part, of_runs in shown.items()]
    panels += [_counts(part, of_runs, colors) for part, of_runs in shown.items()]
    yield CurveChart("reliability", _caption(shown), [Axis("predicted")], panels)
    head = ("predicted", "observed", "rows", "clicks")
    tables = [
        text
        for part, of_runs in shown.items()
        for name, bins in of_runs.items()
        for text in (heading(f"{name}, {part}"), table(head, _bin_rows(bins)))
    ]
    yield folded_parts("bin by bin", tables)


def _bins(run: RunFiles, part: str) -> Reliability | None:
    """Returns the bins of the chosen checkpoint; None where there are none, or no rows in them."""
    bins = run.best.metrics.reliability if part == "validation" and run.best and run.best.metrics else None
    if part == "test":
        try:
            bins = decoded((run.result or {}).get("test", {})["best"].get("reliability"), Reliability | None)  # type: ignore[arg-type]
        except (KeyError, UnreadableError):
            bins = None
    return bins if bins is not None and sum(bins.rows) > 0 else None


def _diagram(part: str, of_runs: dict[str, Reliability], colors: dict[str, str]) -> Panel:
    curves = []
    for name, bins in of_runs.items():
        rows, clicks, predicted = merged_bins(bins, _MOST_BINS).T
        observed = np.where(clicks > 0, clicks / rows, math.nan)  # a logarithm shows no 0
        curves.append(Curve(name, [(predicted / rows).tolist()], observed.tolist(), colors[name]))
    title = f"{part.capitalize()}: observed over predicted"
    return Panel(title, "click rate", curves, log_x=True, log_y=True, diagonal=True)


def _counts(part: str, of_runs: dict[str, Reliability], colors: dict[str, str]) -> Panel:
    curves = []
    for name, bins in of_runs.items():
        edges = (bins.first + np.arange(len(bins.rows) + 1)) / BINS_PER_UNIT
        shares = 100 * np.array([*bins.rows, 0.0]) / sum(bins.rows)
        curves.append(Curve(name, [sigmoid(edges).tolist()], shares.tolist(), colors[name], Mark.STEPS))
    return Panel(f"{part.capitalize()}: rows by prediction", "% of rows", curves, log_x=True, y_range=(0, None))


def _caption(shown: dict[str, dict[str, Reliability]]) -> str:
    texts = []
    for part, of_runs in shown.items():
        for name, bins in of_runs.items():
            rows, clicks, predicted = merged_bins(bins, _MOST_BINS).T
            error = np.abs(clicks - predicted).sum() / rows.sum()
            texts.append(f"{name} {error:.4f} on {part}")
    return (
        "Click rate observed where so much was predicted, at the chosen checkpoint, in at most "
        f"{_MOST_BINS} bins of about as many rows each; on the dashed line predictions mean what they say. The mean "
        f"distance from it over the rows: {'; '.join(texts)}."
    )


def _bin_rows(bins: Reliability) -> Iterator[list[str]]:
    merged: npt.NDArray[np.float64] = merged_bins(bins, _MOST_BINS)
    for rows, clicks, predicted in merged.tolist():
        yield [f"{predicted / rows:.4g}", f"{clicks / rows:.4g}", f"{rows:,.0f}", f"{clicks:,.0f}"]
