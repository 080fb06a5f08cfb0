"""Plots of an experiment: rows of a table with their spread, curves by epoch, phases of a step, weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeAlias

import numpy as np

from dqrm_cpu.lab.reproduce.experiments.definition import Plot
from dqrm_cpu.lab.reproduce.histograms import Histogram, read_histograms
from dqrm_cpu.lab.reproduce.outcome import Epoch, RunOutcome, RunResult, results_by_variant, succeeded
from dqrm_cpu.lab.reproduce.pareto.front import front_rows
from dqrm_cpu.lab.reproduce.pareto.page import front_chart
from dqrm_cpu.lab.reproduce.plan import PlannedExperiment
from dqrm_cpu.report.chart import (
    Axis,
    BarChart,
    BarSegment,
    Chart,
    Curve,
    CurveChart,
    DotChart,
    Estimate,
    Mark,
    Panel,
    StackedBar,
    color,
)
from dqrm_cpu.timing.phases import STEP_PHASES

Lines: TypeAlias = Mapping[str, Sequence[RunOutcome]]
"""Outcomes over seeds by the name of their variant."""


def figures_of(planned: PlannedExperiment, results: Mapping[str, RunResult], out: Path) -> Sequence[Chart]:
    """Shows the runs that finished; nothing where none did."""
    lines = {name: succeeded(seeds) for name, seeds in results_by_variant(planned, results).items()}
    lines = {name: outcomes for name, outcomes in lines.items() if outcomes}
    if not lines:
        return []
    name = planned.experiment.name
    match planned.experiment.plot:
        case Plot.PHASES:
            return [_phases(name, lines)]
        case Plot.TABLE:
            return [_rows_of_auc(name, lines)] if planned.experiment.scores else []
        case Plot.ACCURACY:
            return [_curves(f"{name}-accuracy", "Validation accuracy", "%", lines, _accuracy)]
        case Plot.ACCURACY_AND_LOSS:
            return [
                _curves(f"{name}-accuracy", "Validation accuracy", "%", lines, _accuracy),
                _curves(f"{name}-auc", "Validation AUC", "AUC", lines, lambda epoch: epoch.auc),
                _curves(f"{name}-loss", "Training loss", "log loss (nats)", lines, lambda epoch: epoch.train_loss),
            ]
        case Plot.FRONT:
            return [front_chart(front_rows(planned, results, out), name)]
        case Plot.HISTOGRAMS:
            return [_weights(name, planned, out)]


def _rows_of_auc(name: str, lines: Lines) -> DotChart:
    """Shows the test AUC of each row at the chosen and at the last checkpoint."""
    rows = {
        row: (
            _estimate([outcome.test_best.auc for outcome in outcomes]),
            _estimate([outcome.test_last.auc for outcome in outcomes]),
        )
        for row, outcomes in lines.items()
    }
    listed = "; ".join(f"{row}: {best.mean:.4f}" for row, (best, _) in rows.items())
    kinds = ("at the checkpoint chosen on validation", "at the last")
    unit = "test AUC (mean and deviation over seeds)"
    return DotChart(name, f"Test AUC of each row, mean over seeds. {listed}.", unit, kinds, rows)


def _curves(name: str, title: str, unit: str, lines: Lines, value: Callable[[Epoch], float]) -> CurveChart:
    """Makes one line a variant: the mean over seeds, with a band of one deviation."""
    curves = [_curve(color(number), *line, value) for number, line in enumerate(lines.items())]
    ends = "; ".join(f"{one.label}: {one.y[0]:.4g} after the first, {one.y[-1]:.4g} after the last" for one in curves)
    caption = f"{title} by epoch, mean over seeds, the band is one deviation. {ends}."
    return CurveChart(name, caption, [Axis("epoch")], [Panel(title, unit, curves)])


def _curve(shade: str, label: str, outcomes: Sequence[RunOutcome], value: Callable[[Epoch], float]) -> Curve:
    epochs = range(min(len(outcome.epochs) for outcome in outcomes))
    estimates = [_estimate([value(outcome.epochs[k]) for outcome in outcomes]) for k in epochs]
    return Curve(
        label,
        [[outcomes[0].epochs[k].epoch for k in epochs]],
        [one.mean for one in estimates],
        shade,
        low=[one.mean - one.deviation for one in estimates],
        high=[one.mean + one.deviation for one in estimates],
    )


def _phases(name: str, lines: Lines) -> BarChart:
    """Shows milliseconds of a mean step, mean over seeds."""
    spent = {
        phase: [fmean(outcome.phases_ms.get(phase.key, 0.0) for outcome in seeds) for seeds in lines.values()]
        for phase in STEP_PHASES
    }
    shown = [phase for phase in STEP_PHASES if any(spent[phase])]
    bars = []
    for place, row in enumerate(lines):
        segments = [
            BarSegment(phase.label, spent[phase][place], color(int(phase)), f"{spent[phase][place]:.3g} ms")
            for phase in shown
        ]
        bars.append(StackedBar(row, segments, f"{sum(spent[phase][place] for phase in shown):.2f} ms"))
    listed = "; ".join(f"{bar.name}: {bar.text}" for bar in bars)
    return BarChart(name, f"The time of a mean step, by phase. {listed}.", "ms per step", bars)


def _weights(name: str, planned: PlannedExperiment, out: Path) -> CurveChart:
    """Shows a row of panels for each quantized variant; the first variant is FP32, behind all of them."""
    moments = {cell.variant.name: read_histograms(cell.jobs[0].folder(out)) for cell in planned.cells}
    plain = moments.pop(planned.experiment.baseline)
    panels = [
        _weights_panel(before, after, label)
        for label, of_variant in moments.items()
        for before, after in zip(plain, of_variant, strict=True)
    ]
    zero = "; ".join(
        f"{label}: {_share_at_zero(of_variant[-1]):.0%} of the values are 0 at the end"
        for label, of_variant in moments.items()
    )
    when = ", ".join("before training" if moment.epoch == 0 else f"epoch {moment.epoch}" for moment in plain)
    return CurveChart(name, f"Weights of one table: {when}. {zero}.", [Axis("weight")], panels)


def _weights_panel(plain: Histogram, quantized: Histogram, label: str) -> Panel:
    curves = []
    for histogram, density, number, what in (
        (plain, plain.weights, 0, "trained in FP32"),
        (quantized, quantized.quantized, 1, "trained quantized, its codes"),
    ):
        edges = np.linspace(-histogram.limit, histogram.limit, len(density) + 1)
        some = [value if value > 0 else math.nan for value in density]  # a logarithm shows no 0
        curves.append(Curve(what, [edges[:-1].tolist()], some, color(number), Mark.STEPS))
    when = "start" if plain.epoch == 0 else f"epoch {plain.epoch}"
    return Panel(f"{label}, {when}", "density", curves, log_y=True)


def _share_at_zero(histogram: Histogram) -> float:
    """Returns the share of the bin around zero."""
    bins = len(histogram.quantized)
    return histogram.quantized[bins // 2] * 2 * histogram.limit / bins


def _accuracy(epoch: Epoch) -> float:
    return epoch.accuracy * 100


def _estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean over seeds and their deviation: 0 of a single one, there is nothing to show."""
    return Estimate(fmean(values), stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0)
