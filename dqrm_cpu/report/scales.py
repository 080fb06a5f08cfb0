"""The scales in use and the values beyond them, table by table, over the steps of a run."""

from typing import TYPE_CHECKING

import numpy as np

from dqrm_cpu.model.tables import table_names
from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.report.style import Canvas, Figure, over_steps
from dqrm_cpu.report.thinning import thinned

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_PANEL_PX = 320
_POINTS, _POINTS_OF_ALL = 120, 240  # of each table in each panel, of one run and of all runs of a page
_NAMED = 5  # tables told apart by colour; of 26, a legend would be longer than the figure


def scale_history(run: RunFiles, number: int, num_runs: int) -> Figure | None:
    """Of one run of a page. None of a run that is not quantized, or recorded no scales."""
    rows = [row for row in run.of_phase("train") if row.scale_absmax and row.lookup_clip_rate]
    if not rows:
        return None
    logged = [row.step for row in rows]
    most = min(_POINTS, _POINTS_OF_ALL // num_runs)
    steps, absmax = thinned(logged, [row.scale_absmax for row in rows], most)  # absmax: [points, T]
    _, clipped = thinned(logged, [[100 * rate for rate in row.lookup_clip_rate] for row in rows], most)
    names = table_names(absmax.shape[1])
    grown = absmax[-1] / np.maximum(absmax[0], np.finfo(np.float32).tiny)
    named = np.lexsort((grown, clipped.mean(axis=0)))[::-1][:_NAMED]

    def draw(canvas: Canvas) -> "Drawing":
        drawing, panels = canvas.axes(2, _PANEL_PX)
        for axes, values in zip(panels, (absmax, clipped), strict=True):
            axes.plot(steps, values, color=canvas.palette.faint, linewidth=0.7, alpha=0.5)
            for place, table in enumerate(named):
                axes.plot(steps, values[:, table], color=canvas.color(place), label=names[table])
        panels[0].set(title="Largest weight in use for the scale", ylabel="max|W|", yscale="log")
        panels[0].minorticks_off()
        over_steps(*panels)
        top = float(clipped.max()) * 1.05 or 1.0
        panels[1].set(title="Values beyond the scale", ylabel="% of values looked up", ylim=(0, top))
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower left", ncols=3 if canvas.narrow else _NAMED)
        return drawing

    worst = int(clipped.mean(axis=0).argmax())
    rate = float(clipped.mean(axis=0)[worst])
    beyond = f"{names[worst]} clips most, {rate:.3g}% of its values" if rate else "no value was ever clipped"
    caption = f"{run.name}: max|W| behind the scale of each table, and the share of values beyond it; {beyond}."
    return Figure(f"scales-{number}", caption, draw)
