"""Plots of an experiment: rows of a table with their spread, curves by epoch."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from dqrm_cpu.experiments.experiment import Plot
from dqrm_cpu.experiments.gathered import outcomes_by_variant, succeeded
from dqrm_cpu.experiments.job import Planned
from dqrm_cpu.experiments.outcome import Epoch, Outcome
from dqrm_cpu.experiments.phase_figure import phase_figure
from dqrm_cpu.experiments.runner import Found
from dqrm_cpu.experiments.weight_figure import weight_figure
from dqrm_cpu.report.style import Canvas, Figure, row_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_PANEL_PX = 320
_ROW_PX, _AROUND_ROWS_PX = 34, 80

Lines = Mapping[str, Sequence[Outcome]]
"""Outcomes over seeds by the name of their variant."""


def figures_of(planned: Planned, found: Mapping[str, Found], out: Path) -> list[Figure]:
    """Of the runs that finished; none where none did."""
    lines = {name: succeeded(outcomes) for name, outcomes in outcomes_by_variant(planned, found).items()}
    lines = {name: outcomes for name, outcomes in lines.items() if outcomes}
    if not lines:
        return []
    name = planned.experiment.name
    match planned.experiment.plot:
        case Plot.PHASES:
            return [phase_figure(name, lines)]
        case Plot.TABLE if not planned.experiment.scores:
            return []
        case Plot.TABLE:
            return [rows_of_auc(name, lines)]
        case Plot.ACCURACY:
            return [curves(f"{name}-accuracy", "Validation accuracy", "%", lines, _accuracy)]
        case Plot.ACCURACY_AND_LOSS:
            return [
                curves(f"{name}-accuracy", "Validation accuracy", "%", lines, _accuracy),
                curves(f"{name}-auc", "Validation AUC", "AUC", lines, lambda epoch: epoch.auc),
                curves(f"{name}-loss", "Training loss", "log loss (nats)", lines, lambda epoch: epoch.train_loss),
            ]
        case Plot.HISTOGRAMS:
            return [weight_figure(name, planned, out)]


def rows_of_auc(name: str, lines: Lines) -> Figure:
    """Test AUC of each row at the chosen and at the last checkpoint."""

    def draw(canvas: Canvas) -> "Drawing":
        drawing, (axes,) = canvas.axes(1, _AROUND_ROWS_PX + _ROW_PX * len(lines))
        places = list(range(len(lines)))
        best = {name: [outcome.test_best.auc for outcome in outcomes] for name, outcomes in lines.items()}
        last = {name: [outcome.test_last.auc for outcome in outcomes] for name, outcomes in lines.items()}
        _points(axes, best, -0.12, "o", canvas.color(0), "at the checkpoint chosen on validation")
        _points(axes, last, 0.12, "D", canvas.color(1), "at the last")
        axes.set_yticks(places, row_names(list(lines), canvas))
        axes.invert_yaxis()
        axes.set(xlabel="test AUC (mean and deviation over seeds)")
        drawing.legend(loc="outside lower left", ncols=1 if canvas.narrow else 2)
        return drawing

    said = "; ".join(f"{row}: {fmean(o.test_best.auc for o in outcomes):.4f}" for row, outcomes in lines.items())
    return Figure(name, f"Test AUC of each row, mean over seeds. {said}.", draw)


def _points(
    axes: "Axes", values: Mapping[str, Sequence[float]], offset: float, marker: str, color: str, label: str
) -> None:
    """One a row, a little above or below its middle."""
    means, errors = [fmean(seeds) for seeds in values.values()], [_deviation(seeds) for seeds in values.values()]
    at = [place + offset for place in range(len(means))]
    axes.errorbar(means, at, xerr=errors, fmt=marker, color=color, label=label, markersize=6, capsize=3)


def curves(name: str, title: str, unit: str, lines: Lines, value: Callable[[Epoch], float]) -> Figure:
    """One line a variant: the mean over seeds, with a band of one deviation."""

    def draw(canvas: Canvas) -> "Drawing":
        from matplotlib.ticker import MaxNLocator

        drawing, (axes,) = canvas.axes(1, _PANEL_PX)
        for number, (label, outcomes) in enumerate(lines.items()):
            _curve(axes, canvas.color(number), label, outcomes, value)
        axes.set(title=title, xlabel="epoch", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawing.legend(loc="outside lower left", ncols=1 if canvas.narrow else 3)
        return drawing

    ends = "; ".join(
        f"{label}: {fmean(value(o.epochs[0]) for o in outcomes):.4g} after the first, "
        f"{fmean(value(o.epochs[-1]) for o in outcomes):.4g} after the last"
        for label, outcomes in lines.items()
    )
    return Figure(name, f"{title} by epoch, mean over seeds, the band is one deviation. {ends}.", draw)


def _curve(axes: "Axes", color: str, label: str, outcomes: Sequence[Outcome], value: Callable[[Epoch], float]) -> None:
    epochs = range(min(len(outcome.epochs) for outcome in outcomes))
    values = [[value(outcome.epochs[k]) for outcome in outcomes] for k in epochs]
    numbers = [outcomes[0].epochs[k].epoch for k in epochs]
    means, deviations = [fmean(seeds) for seeds in values], [_deviation(seeds) for seeds in values]
    axes.plot(numbers, means, color=color, label=label, marker="o", markersize=3)
    low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
    high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
    axes.fill_between(numbers, low, high, color=color, alpha=0.15, linewidth=0)


def _accuracy(epoch: Epoch) -> float:
    return epoch.accuracy * 100


def _deviation(values: Sequence[float]) -> float:
    """0 of a single seed: nothing to draw."""
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0
