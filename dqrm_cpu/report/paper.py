"""Charts as PNG in print colours, for papers and slides: the only part of a report that needs matplotlib."""

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dqrm_cpu.errors import DeviceError
from dqrm_cpu.report.chart import BarChart, Chart, Curve, CurveChart, DotChart, Mark, Panel, color

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_DPI = 200
_WIDTH, _PANEL_HEIGHT, _ROW_HEIGHT = 12.2, 3.6, 0.55  # inches
_FAINT, _GRID, _NAMED = "#9a9fa8", "#d9dbe0", "#4b5058"
_STYLE = {
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": _GRID,
    "grid.color": _GRID,
    "legend.frameon": False,
}


def png(chart: Chart) -> bytes:
    """Draws a chart."""
    out = io.BytesIO()
    with load_matplotlib().rc_context(_STYLE):
        match chart:
            case CurveChart():
                drawing = _curves(chart)
            case BarChart():
                drawing = _bars(chart)
            case DotChart():
                drawing = _dots(chart)
        drawing.savefig(out, format="png", dpi=_DPI)
    return out.getvalue()


def load_matplotlib() -> Any:
    """Imports matplotlib; the error says how to get it."""
    try:
        import matplotlib
    except ImportError as error:
        raise DeviceError(
            "figures as PNG are drawn by matplotlib, which is missing; run pip install 'dqrm-cpu[report]'"
        ) from error
    return matplotlib


def _drawing(height: float, down: int = 1, across: int = 1) -> "tuple[Drawing, list[Axes]]":
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(_WIDTH, height), layout="constrained")
    return drawing, list(drawing.subplots(down, across, squeeze=False).flat)


def _curves(chart: CurveChart) -> "Drawing":
    across = min(len(chart.panels), 2)
    down = -(-len(chart.panels) // across)
    drawing, places = _drawing(_PANEL_HEIGHT * down, down, across)
    for axes, panel in zip(places, chart.panels, strict=False):
        _panel(axes, panel, chart.axes[0].label)
    for axes in places[len(chart.panels) :]:
        axes.set_visible(False)
    _legend(drawing, places)
    return drawing


def _panel(axes: "Axes", panel: Panel, along: str) -> None:
    for curve in panel.curves:
        _curve(axes, curve)
    if panel.diagonal:
        axes.axline((0.5, 0.5), slope=1, color=_FAINT, linestyle="--", linewidth=1)
    axes.set(title=panel.title, xlabel=along, ylabel=panel.unit)
    axes.set(xscale="log" if panel.log_x else "linear", yscale="log" if panel.log_y else "linear")
    axes.set_ylim(*panel.y_range)


def _curve(axes: "Axes", curve: Curve) -> None:
    x, y = np.asarray(curve.x[0], dtype=float), np.asarray(curve.y, dtype=float)
    known = np.isfinite(x) & np.isfinite(y)
    shade: dict[str, Any] = {"color": curve.color or _FAINT, "label": curve.label if curve.color else None}
    match curve.mark:
        case Mark.LINE:
            axes.plot(x[known], y[known], linewidth=1.8 if curve.color else 0.6, **shade)
        case Mark.STEPS:
            axes.step(x[known], y[known], where="post", linewidth=1.4, **shade)
        case Mark.BARS:
            axes.bar(x[known], y[known], width=0.8, alpha=0.5, **shade)
        case Mark.POINTS:
            axes.plot(x[known], y[known], "o", **shade)
    if curve.low:
        axes.fill_between(x, np.asarray(curve.low), np.asarray(curve.high), color=curve.color, alpha=0.15, linewidth=0)
    for name, at in zip(curve.names, zip(x, y, strict=True), strict=False):
        if curve.mark is Mark.LINE:
            axes.annotate(name, at, (3, 4), textcoords="offset points", fontsize=5.5, rotation=45, color=_NAMED)
    if curve.best is not None:
        axes.plot(x[curve.best], y[curve.best], "o", color=curve.color, markersize=11, fillstyle="none")


def _bars(chart: BarChart) -> "Drawing":
    drawing, (axes,) = _drawing(1.4 + _ROW_HEIGHT * len(chart.bars))
    for row, bar in enumerate(chart.bars):
        left = 0.0
        for segment in bar.segments:
            axes.barh(row, segment.value, left=left, height=0.62, color=segment.color, label=segment.label)
            left += segment.value
        axes.annotate(bar.text, (left, row), (5, 0), textcoords="offset points", va="center", fontweight="bold")
    axes.set(xlabel=chart.unit, xlim=(0, 1.14 * max(bar.length for bar in chart.bars) or 1))
    _name_rows(axes, [bar.name for bar in chart.bars])
    _legend(drawing, [axes])
    return drawing


def _dots(chart: DotChart) -> "Drawing":
    drawing, (axes,) = _drawing(1.4 + _ROW_HEIGHT * len(chart.rows))
    for number, kind in enumerate(chart.kinds):
        estimates = [row[number] for row in chart.rows.values()]
        at = [row + (number - (len(chart.kinds) - 1) / 2) * 0.24 for row in range(len(estimates))]
        means, errors = [one.mean for one in estimates], [one.deviation for one in estimates]
        axes.errorbar(means, at, xerr=errors, fmt="o", color=color(number), label=kind, capsize=3)
    axes.set(xlabel=chart.unit)
    _name_rows(axes, list(chart.rows))
    _legend(drawing, [axes])
    return drawing


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Names rows from the top down."""
    axes.set(yticks=range(len(names)), ylim=(len(names) - 0.5, -0.5))
    axes.set_yticklabels(["\n".join(textwrap.wrap(name, 24, max_lines=2, placeholder="…")) for name in names])
    axes.grid(axis="y", visible=False)


def _legend(drawing: "Drawing", places: "Sequence[Axes]") -> None:
    """Puts each label once below the drawing."""
    unique: dict[str, Artist] = {}
    for axes in places:
        handles, labels = axes.get_legend_handles_labels()
        unique |= dict(zip(map(str, labels), handles, strict=True))
    if unique:
        drawing.legend(list(unique.values()), list(unique), loc="outside lower left", ncols=min(len(unique), 5))
