"""How large the models are, as trained and as shipped."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.report.style import Canvas, Figure, beside_bar, row_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_BAR_PX, _AROUND_PX = 58, 70


def model_sizes(runs: Sequence[RunFiles]) -> Figure:
    """FP32 beside what the run's own bit widths come to."""

    def draw(canvas: Canvas) -> "Drawing":
        drawing, (axes,) = canvas.axes(1, _AROUND_PX + _BAR_PX * len(runs) + 20)
        for row, run in enumerate(runs):
            for place, (label, size) in enumerate((("FP32", run.sizes.fp32), ("as configured", run.sizes.packed))):
                y = row - 0.18 + 0.36 * place
                axes.barh(y, size / 1e6, height=0.32, color=canvas.color(place), label=label if row == 0 else None)
                beside_bar(axes, size / 1e6, y, f"{size / 1e6:,.1f} MB")
        axes.set(xlabel="model (MB)", yticks=range(len(runs)), ylim=(len(runs) - 0.5, -0.5))
        axes.set_yticklabels(row_names([run.name for run in runs], canvas))
        axes.set_xlim(0, (1.4 if canvas.narrow else 1.15) * max(run.sizes.fp32 for run in runs) / 1e6)
        axes.grid(axis="y", visible=False)
        drawing.legend(loc="outside lower left", ncols=2, handlelength=1.1)
        return drawing

    said = "; ".join(
        f"{run.name} {run.sizes.fp32 / 1e6:,.1f} MB in FP32, {run.sizes.packed / 1e6:,.1f} MB packed "
        f"({run.sizes.fp32 / run.sizes.packed:.1f} times smaller)"
        for run in runs
    )
    return Figure("sizes", f"Tables and MLPs as trained, and packed at the widths that the run asks for. {said}.", draw)
