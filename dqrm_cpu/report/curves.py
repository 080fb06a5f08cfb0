"""How training went: losses and metrics over steps, and memory."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.report.style import Canvas, Figure, over_steps
from dqrm_cpu.report.thinning import thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_PANEL_PX = 300
_POINTS = 400  # as many as a wide figure has pixels for
_BEST, _LAST = "*", "o"


def learning_curves(runs: Sequence[RunFiles]) -> Figure:
    """Train loss and validation AUC of all runs."""

    def draw(canvas: Canvas) -> "Drawing":
        drawing, (losses, rated) = canvas.axes(2, _PANEL_PX)
        for number, run in enumerate(runs):
            color, trained = canvas.color(number), run.of_phase("train")
            points = thinned([row.step for row in trained], [row.loss for row in trained], _POINTS)
            losses.plot(*points, color=color, label=run.name)
            _plot_validation(rated, run, color)
        losses.set(title="Training loss", ylabel="log loss (nats)")
        rated.set(title="Validation AUC (star: best, dot: last)", ylabel="AUC")
        over_steps(losses, rated)
        _legend_below(drawing, losses, canvas)
        return drawing

    return Figure("learning-curves", _learning_caption(runs), draw)


def memory_curves(runs: Sequence[RunFiles]) -> Figure | None:
    """What rank 0 held, where runs recorded it."""
    recorded = [run for run in runs if any(math.isfinite(row.memory_bytes) for row in run.of_phase("train"))]
    if not recorded:
        return None

    def draw(canvas: Canvas) -> "Drawing":
        drawing, (axes,) = canvas.axes(1, _PANEL_PX)
        top = 0.0
        for run in recorded:
            rows = run.of_phase("train")
            steps, held = thinned([row.step for row in rows], [row.memory_bytes / 1e9 for row in rows], _POINTS)
            top = max(top, float(held.max()))
            axes.plot(steps, held, color=canvas.color(runs.index(run)), label=run.name)
        axes.set(title="Memory of rank 0", ylabel="resident (GB)", ylim=(0, 1.1 * top))
        over_steps(axes)
        _legend_below(drawing, axes, canvas)
        return drawing

    most = (
        max(spans.peak_memory_bytes for run in recorded for spans in run.spans) if any(r.spans for r in recorded) else 0
    )
    peak = f" No rank ever held more than {most / 1e9:.2f} GB." if most else ""
    return Figure("memory", f"Memory that rank 0 held, in GB over steps.{peak}", draw)


def _plot_validation(axes: "Axes", run: RunFiles, color: str) -> None:
    rows = [row for row in run.of_phase("validation") if row.metrics]
    if not rows:
        return
    aucs = [row.metrics.auc for row in rows if row.metrics]
    axes.plot([row.step for row in rows], aucs, color=color)
    axes.plot(rows[-1].step, aucs[-1], _LAST, color=color, markersize=6)
    if run.best and run.best.metrics:
        axes.plot(run.best.step, run.best.metrics.auc, _BEST, color=color, markersize=12)


def _learning_caption(runs: Sequence[RunFiles]) -> str:
    said = []
    for run in runs:
        best, rated = run.best, run.of_phase("validation")
        if best and best.metrics and rated[-1].metrics:
            last = rated[-1].metrics.auc
            said.append(f"{run.name}: AUC {best.metrics.auc:.4f} at step {best.step:,}, {last:.4f} at the last")
    return (
        f"Loss of the training batches and AUC on validation over steps. {'; '.join(said)}."
        if said
        else ("Loss of the training batches over steps; validation has not been scored yet.")
    )


def _legend_below(drawing: "Drawing", axes: "Axes", canvas: Canvas) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        drawing.legend(handles, labels, loc="outside lower left", ncols=1 if canvas.narrow else 4)
