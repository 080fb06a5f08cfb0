"""What ranks send each other at each step."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.report.style import Canvas, Figure, beside_bar, row_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_BAR_PX, _AROUND_PX = 46, 110
_PARTS = ("table rows (indices)", "table gradients (values)", "scales, counts, padding", "MLP gradients")


def mean_bytes(run: RunFiles) -> tuple[float, float, float, float]:
    """Indices, values, scales, MLPs: mean over the logged steps."""
    rows = [row for row in run.of_phase("train") if math.isfinite(row.mlp_bytes)]
    count = max(len(rows), 1)
    return (
        sum(row.index_bytes for row in rows) / count,
        sum(row.value_bytes for row in rows) / count,
        sum(row.scale_bytes for row in rows) / count,
        sum(row.mlp_bytes for row in rows) / count,
    )


def bytes_of_runs(runs: Sequence[RunFiles]) -> Figure | None:
    """One bar per run that sends anything."""
    return bytes_per_step({run.name: mean_bytes(run) for run in runs})


def bytes_per_step(found: Mapping[str, tuple[float, float, float, float]]) -> Figure | None:
    """One bar for each that sends anything, by name: indices, values, scales, MLPs."""
    sending = {name: parts for name, parts in found.items() if sum(parts)}
    if not sending:
        return None

    def draw(canvas: Canvas) -> "Drawing":
        legend_px = (4 if canvas.narrow else 1) * 19
        drawing, (axes,) = canvas.axes(1, _AROUND_PX + legend_px + _BAR_PX * len(sending))
        for row, parts in enumerate(sending.values()):
            left = 0.0
            for number, part in enumerate(parts):
                label = _PARTS[number] if row == 0 else None
                axes.barh(row, part / 1e3, left=left, height=0.62, color=canvas.color(number), label=label)
                left += part / 1e3
            beside_bar(axes, left, row, f"{left:,.0f} kB", bold=True)
        axes.set(xlabel="sent by rank 0 per step (kB)", yticks=range(len(sending)), ylim=(len(sending) - 0.5, -0.5))
        axes.set_yticklabels(row_names(list(sending), canvas))
        axes.set_xlim(0, (1.35 if canvas.narrow else 1.15) * max(sum(parts) for parts in sending.values()) / 1e3)
        axes.grid(axis="y", visible=False)
        drawing.legend(loc="outside lower left", ncols=1 if canvas.narrow else 4, handlelength=1.1)
        return drawing

    said = "; ".join(f"{name} {sum(parts) / 1e3:,.0f} kB" for name, parts in sending.items())
    return Figure("bytes", f"Bytes that rank 0 sends to the other ranks at a step, by what they hold. {said}.", draw)
