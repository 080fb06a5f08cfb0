"""How training went, over its steps or its time: losses and metrics, memory, the scales of the tables."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dqrm_cpu.metrics.click import FIGURE_NAMES, ClickMetrics, defined
from dqrm_cpu.model.shapes import table_names
from dqrm_cpu.report.chart import Axis, Curve, CurveChart, Panel, color
from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.train.metrics_row import MetricsRow

Array: TypeAlias = npt.NDArray[np.float64]

_POINTS = 400  # as many as a wide chart has pixels for
_TABLE_POINTS, _TABLE_POINTS_OF_ALL = 120, 240  # of each table in each panel, of one run and of all runs of a page
_NAMED = 5  # tables told apart by colour; of 26, nobody would tell the colours apart
_AXES = (Axis("step"), Axis("training time", is_time=True), Axis("wall time", is_time=True))

_RATED: Sequence[tuple[str, str, Callable[[ClickMetrics], float]]] = (
    ("Validation AUC", "", lambda metrics: metrics.auc),
    ("Validation log loss", "nats", lambda metrics: metrics.log_loss),
    ("Validation normalized entropy", "", lambda metrics: metrics.normalized_entropy),
    ("Validation calibration", "predicted / observed", lambda metrics: metrics.calibration),
)


def learning_curves(runs: Sequence[RunFiles]) -> CurveChart:
    """Shows the training loss, the metrics on validation and the speed of all runs."""
    losses = [_loss(run, number) for number, run in enumerate(runs)]
    speeds = [_trained(run, number, lambda row: row.examples_per_second) for number, run in enumerate(runs)]
    rated = [
        Panel(title, unit, [_rated(run, number, figure) for number, run in enumerate(runs)])
        for title, unit, figure in _RATED
    ]
    speed = Panel("Speed", "examples / s", speeds, y_range=(0, None))
    loss = Panel("Training loss", "nats", losses)
    # Of runs shorter than a row of the log there is a loss, and no speed.
    panels = [panel for panel in (loss, *rated, speed) if any(curve.y for curve in panel.curves)]
    return _chart("learning-curves", _learning_caption(runs), panels)


def memory_curves(runs: Sequence[RunFiles]) -> CurveChart | None:
    """Shows the memory that rank 0 held, where runs recorded it."""
    recorded = [run for run in runs if any(math.isfinite(row.memory_bytes) for row in run.of_phase("train"))]
    if not recorded:
        return None
    curves = [_trained(run, runs.index(run), lambda row: row.memory_bytes / 1e9) for run in recorded]
    most = max((spans.peak_memory_bytes for run in recorded for spans in run.spans), default=0)
    peak = f" No rank ever held more than {most / 1e9:.2f} GB." if most else ""
    panel = Panel("Memory of rank 0", "resident (GB)", curves, y_range=(0, None))
    return _chart("memory", f"Memory that rank 0 held, in GB.{peak}", [panel])


def scale_history(run: RunFiles, number: int, num_runs: int) -> CurveChart | None:
    """Shows the scales of one run of a page; None of a run that is not quantized, or recorded no scales."""
    rows = [row for row in run.of_phase("train") if row.scale_absmax and row.lookup_clip_rate]
    if not rows:
        return None
    logged = [row.step for row in rows]
    most = min(_TABLE_POINTS, _TABLE_POINTS_OF_ALL // num_runs)
    steps, absmax = thinned(logged, [row.scale_absmax for row in rows], most)  # absmax: [points, T]
    _, clipped = thinned(logged, [[100 * rate for rate in row.lookup_clip_rate] for row in rows], most)
    names = table_names(absmax.shape[1])
    grown = absmax[-1] / np.maximum(absmax[0], np.finfo(np.float32).tiny)
    named = np.lexsort((grown, clipped.mean(axis=0)))[::-1][:_NAMED].tolist()
    x = _along(run, steps)

    def curves(values: Array) -> list[Curve]:
        colors: dict[int, str | None] = {table: color(place) for place, table in enumerate(named)}
        order = [*named, *(table for table in range(len(names)) if table not in colors)]
        return [Curve(names[table], x, values[:, table].tolist(), colors.get(table)) for table in order]

    worst = int(clipped.mean(axis=0).argmax())
    rate = float(clipped.mean(axis=0)[worst])
    beyond = f"{names[worst]} clips most, {rate:.3g}% of its values" if rate else "no value was ever clipped"
    caption = f"{run.name}: max|W| behind the scale of each table, and the share of values beyond it; {beyond}."
    some = np.where(absmax > 0, absmax, np.nan)  # a logarithm shows no 0
    largest = Panel("Largest weight in use for the scale", "max|W|", curves(some), log_y=True)
    cut_off = Panel("Values beyond the scale", "%", curves(clipped), y_range=(0, None if rate else 1.0))
    return _chart(f"scales-{number}", caption, [largest, cut_off])


def thinned(steps: npt.ArrayLike, values: npt.ArrayLike, most: int) -> tuple[Array, Array]:
    """Thins steps[N], values[N, ...] to at most `most` points, each the mean of as many neighbours at the last of them.

    A run of a million steps logs more than a page of two megabytes, or a screen, can show.
    """
    at, kept = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if at.size <= most:
        return at, kept
    size = -(-at.size // most)
    starts = np.arange(0, at.size, size)
    counts = np.diff(np.append(starts, at.size)).reshape(-1, *[1] * (kept.ndim - 1))
    return at[np.append(starts[1:], at.size) - 1], np.add.reduceat(kept, starts, axis=0) / counts


def _trained(run: RunFiles, number: int, figure: Callable[[MetricsRow], float]) -> Curve:
    rows = run.of_phase("train")
    steps, values = thinned([row.step for row in rows], [figure(row) for row in rows], _POINTS)
    return Curve(run.name, _along(run, steps), values.tolist(), color(number))


def _loss(run: RunFiles, number: int) -> Curve:
    """Shows the loss of every row; of a run that is shorter than one, the mean of its steps as a point at the last."""
    short = run.not_logged
    if short is None:
        return _trained(run, number, lambda row: row.loss)
    return Curve(run.name, _along(run, np.array([short.steps], dtype=np.float64)), [short.loss], color(number))


def _rated(run: RunFiles, number: int, figure: Callable[[ClickMetrics], float]) -> Curve:
    rows = [row for row in run.of_phase("validation") if row.metrics]
    best = next((place for place, row in enumerate(rows) if row is run.best), None)
    steps = np.array([row.step for row in rows], dtype=np.float64)
    values = [figure(row.metrics) for row in rows if row.metrics]
    return Curve(run.name, _along(run, steps), values, color(number), best=best)


def _chart(key: str, caption: str, panels: Sequence[Panel]) -> CurveChart:
    """Makes a chart over steps, and over time as far as it was recorded."""
    curves = [curve for panel in panels for curve in panel.curves]
    known = [at for at in range(len(_AXES)) if at == 0 or any(np.isfinite(curve.x[at]).any() for curve in curves)]
    with_known = [
        replace(panel, curves=[replace(curve, x=[curve.x[at] for at in known]) for curve in panel.curves])
        for panel in panels
    ]
    return CurveChart(key, caption, [_AXES[at] for at in known], with_known)


def _along(run: RunFiles, steps: Array) -> list[list[float]]:
    """Returns where these steps are on every axis."""
    return [steps.tolist(), run.training_seconds(steps).tolist(), run.wall_seconds(steps).tolist()]


def _learning_caption(runs: Sequence[RunFiles]) -> str:
    scores = []
    for run in runs:
        best, rated = run.best, run.of_phase("validation")
        if best and best.metrics and rated[-1].metrics:
            auc, last = (defined(metrics.auc, ".4f") for metrics in (best.metrics, rated[-1].metrics))
            how = "" if run.config.train.best_by == "auc" else f" (best by {FIGURE_NAMES[run.config.train.best_by]})"
            scores.append(f"{run.name}: AUC {auc} at step {best.step:,}{how}, {last} at the last")
    if not scores:
        return "Loss of the training batches; validation has not been scored yet."
    return f"Loss of the training batches, and metrics on validation; a ring is the best. {'; '.join(scores)}."
