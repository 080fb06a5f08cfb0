"""Where the time of a step goes, as stacked bars like the paper's figures 1c and 10; and where ranks differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dqrm_cpu.profile.phases import STEP_PHASES, Phase
from dqrm_cpu.profile.spans import SpanSummary
from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.report.style import Canvas, Figure, beside_bar, row_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_BAR_PX, _AROUND_PX = 46, 90
_LEGEND_ROW_PX = 19
_SHOWN_SHARE = 0.01
_BARS_SHARE = 0.6  # of a figure's width that the longest bar has at least
_LABEL_PX = 36  # what a percentage takes
_WAITING = (Phase.WIRE, Phase.MLP_EXCHANGE)


@dataclass(frozen=True)
class Bar:
    """Mean milliseconds of a step by phase."""

    name: str
    phases_ms: dict[Phase, float]
    step_ms: float

    @property
    def other_ms(self) -> float:
        return max(self.step_ms - sum(self.phases_ms.values()), 0.0)


def bar_of(name: str, summary: SpanSummary) -> Bar:
    """Means, not medians: those of the phases add up to that of the step."""
    steps = max(summary.step.count, 1)
    phases = {phase: found.total_ms / steps for phase, found in summary.phases.items() if phase in STEP_PHASES}
    return Bar(name, phases, summary.step.mean_ms)


def phase_breakdown(bars: Sequence[Bar], key: str = "phases") -> Figure:
    """One bar per run."""

    def draw(canvas: Canvas) -> "Drawing":
        return _draw_bars(canvas, bars)

    said = "; ".join(f"{bar.name} {bar.step_ms:.2f} ms, most of it {_largest(bar)}" for bar in bars)
    return Figure(key, f"Mean time of a step by phase. {said}.", draw)


def rank_comparison(run: RunFiles, number: int) -> Figure:
    """One bar per rank of a run."""
    return ranks_figure(run.name, f"ranks-{number}", {spans.rank: spans.summary for spans in run.spans})


def ranks_figure(name: str, key: str, ranks: Mapping[int, SpanSummary]) -> Figure:
    """One bar per rank."""
    bars = [bar_of(f"rank {rank}", summary) for rank, summary in ranks.items()]
    working = {rank: working_ms(summary) for rank, summary in ranks.items()}
    slowest, quickest = max(working, key=working.__getitem__), min(working, key=working.__getitem__)
    caption = (
        f"{name}: mean time of a step by phase on each rank. Without waiting for others, rank {slowest} takes "
        f"longest ({working[slowest]:.2f} ms) and rank {quickest} shortest ({working[quickest]:.2f} ms)."
    )
    return Figure(key, caption, lambda canvas: _draw_bars(canvas, bars))


def working_ms(summary: SpanSummary) -> float:
    """Medians of the phases in which a rank does not wait for the others: the slowest rank waits least."""
    phases = summary.phases.items()
    return sum(found.median_ms for phase, found in phases if phase in STEP_PHASES and phase not in _WAITING)


def _draw_bars(canvas: Canvas, bars: Sequence[Bar]) -> "Drawing":
    shown = [
        phase for phase in STEP_PHASES if any(bar.phases_ms.get(phase, 0) >= _SHOWN_SHARE * bar.step_ms for bar in bars)
    ]
    columns = 2 if canvas.narrow else 5
    legend_px = -(-(len(shown) + 1) // columns) * _LEGEND_ROW_PX
    drawing, (axes,) = canvas.axes(1, _AROUND_PX + _BAR_PX * len(bars) + legend_px)
    longest_ms = max(bar.step_ms for bar in bars)
    least_ms = _LABEL_PX / (canvas.width_px * _BARS_SHARE) * longest_ms
    for row, bar in enumerate(bars):
        _draw_bar(axes, canvas, row, bar, shown, least_ms)
    axes.set(xlabel="mean time of a step (ms)", yticks=range(len(bars)), ylim=(len(bars) - 0.5, -0.5))
    axes.set_yticklabels(row_names([bar.name for bar in bars], canvas))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, (1.3 if canvas.narrow else 1.14) * longest_ms)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    drawing.legend(unique.values(), unique.keys(), loc="outside lower left", ncols=columns, handlelength=1.1)
    return drawing


def _draw_bar(
    axes: "Axes", canvas: Canvas, row: int, bar: Bar, shown: Sequence[Phase], least_labelled_ms: float
) -> None:
    left = 0.0
    for phase in shown:
        width = bar.phases_ms.get(phase, 0.0)
        axes.barh(row, width, left=left, height=0.62, color=canvas.color(int(phase)), label=phase.label)
        if width >= least_labelled_ms:
            share = f"{width / bar.step_ms:.0%}"
            axes.text(left + width / 2, row, share, va="center", ha="center", color="#10151a")
        left += width
    axes.barh(row, bar.step_ms - left, left=left, height=0.62, color=canvas.palette.grid, label="everything else")
    beside_bar(axes, bar.step_ms, row, f"{bar.step_ms:.3g} ms", bold=True)


def _largest(bar: Bar) -> str:
    phase = max(bar.phases_ms, key=lambda phase: bar.phases_ms[phase])
    return f"{phase.label} ({bar.phases_ms[phase] / bar.step_ms:.0%})"
