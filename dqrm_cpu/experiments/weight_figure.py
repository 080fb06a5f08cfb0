"""Figures 6 and 7: histograms of weights at some moments, quantized over those of FP32 training."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dqrm_cpu.experiments.histograms import Histogram, read_histograms
from dqrm_cpu.experiments.job import Planned
from dqrm_cpu.report.style import Canvas, Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_PANEL_PX = 190


def weight_figure(name: str, planned: Planned, out: Path) -> Figure:
    """A row of panels for each quantized variant; the first variant is FP32, behind all of them."""
    moments = {cell.variant.name: read_histograms(cell.jobs[0].folder(out)) for cell in planned.cells}
    plain = moments.pop(planned.experiment.baseline)

    def draw(canvas: Canvas) -> "Drawing":
        columns = 1 if canvas.narrow else len(plain)
        drawing, panels = canvas.axes(len(plain) * len(moments), _PANEL_PX, columns=columns)
        places = [(label, number) for label in moments for number in range(len(plain))]
        for axes, (label, number) in zip(panels, places, strict=False):
            _panel(axes, canvas, plain[number], moments[label][number], label)
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower left", ncols=1 if canvas.narrow else 2)
        return drawing

    zero = "; ".join(
        f"{label}: {_share_at_zero(found[-1]):.0%} of the values are 0 at the end" for label, found in moments.items()
    )
    when = ", ".join("before training" if moment.epoch == 0 else f"epoch {moment.epoch}" for moment in plain)
    return Figure(name, f"Weights of one table: {when}. {zero}.", draw)


def _panel(axes: "Axes", canvas: Canvas, plain: Histogram, quantized: Histogram, label: str) -> None:
    for histogram, density, number, what in (
        (plain, plain.weights, 0, "trained in FP32"),
        (quantized, quantized.quantized, 1, "trained quantized, its codes"),
    ):
        edges = np.linspace(-histogram.limit, histogram.limit, len(density) + 1)
        axes.stairs(density, edges, color=canvas.color(number), fill=True, alpha=0.6, label=what)
    when = "start" if plain.epoch == 0 else f"epoch {plain.epoch}"
    axes.set(title=f"{label}, {when}", yscale="log", xlabel="weight")


def _share_at_zero(histogram: Histogram) -> float:
    """Of the bin around zero."""
    bins = len(histogram.quantized)
    return histogram.quantized[bins // 2] * 2 * histogram.limit / bins
