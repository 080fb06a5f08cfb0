"""Figures 1c and 10: a bar for each variant, divided into the phases of a step."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from dqrm_cpu.experiments.outcome import Outcome
from dqrm_cpu.profile.phases import STEP_PHASES
from dqrm_cpu.report.style import Canvas, Figure, row_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_ROW_PX, _AROUND_ROWS_PX = 36, 140


def phase_figure(name: str, lines: Mapping[str, Sequence[Outcome]]) -> Figure:
    """Milliseconds of a mean step, mean over seeds."""
    spent = {
        phase: [fmean(outcome.phases_ms.get(phase.key, 0.0) for outcome in seeds) for seeds in lines.values()]
        for phase in STEP_PHASES
    }
    shown = [phase for phase in STEP_PHASES if any(spent[phase])]

    def draw(canvas: Canvas) -> "Drawing":
        drawing, (axes,) = canvas.axes(1, _AROUND_ROWS_PX + _ROW_PX * len(lines))
        places = list(range(len(lines)))
        reached = [0.0] * len(lines)
        for number, phase in enumerate(shown):
            axes.barh(places, spent[phase], left=reached, color=canvas.color(number), label=phase.label)
            reached = [so_far + more for so_far, more in zip(reached, spent[phase], strict=True)]
        axes.set_yticks(places, row_names(list(lines), canvas))
        axes.invert_yaxis()
        axes.set(xlabel="ms per step")
        drawing.legend(loc="outside lower left", ncols=2 if canvas.narrow else 4)
        return drawing

    totals = [sum(spent[phase][place] for phase in shown) for place in range(len(lines))]
    said = "; ".join(f"{row}: {total:.2f} ms" for row, total in zip(lines, totals, strict=True))
    return Figure(name, f"The time of a mean step, by phase. {said}.", draw)
