"""Where the time of a step goes: stacked bars like the paper's figures 1c and 10, and tables; where ranks differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dqrm_cpu.base.wording import counted
from dqrm_cpu.report.chart import BarChart, BarSegment, StackedBar, color
from dqrm_cpu.report.markup import heading, paragraph, table
from dqrm_cpu.timing.durations import Summary
from dqrm_cpu.timing.phases import STEP_PHASES, Phase
from dqrm_cpu.timing.spans import SpanSummary

_SHOWN_SHARE = 0.01
_REST_COLOR = "#b9bdc4"
_WAITING = (Phase.WIRE, Phase.MLP_EXCHANGE)

EXCHANGE = (Phase.QUANTIZE_GRADIENTS, Phase.WIRE, Phase.MERGE, Phase.MLP_EXCHANGE)
"""The phases in which ranks exchange gradients."""


@dataclass(frozen=True)
class Bar:
    """Mean milliseconds of a step by phase."""

    name: str
    phases_ms: dict[Phase, float]
    step_ms: float


def bar_of(name: str, summary: SpanSummary) -> Bar:
    """Makes the bar of means, not medians: those of the phases add up to that of the step."""
    steps = max(summary.step.count, 1)
    phases = {phase: times.total_ms / steps for phase, times in summary.phases.items() if phase in STEP_PHASES}
    return Bar(name, phases, summary.step.mean_ms)


def phase_breakdown(bars: Sequence[Bar]) -> BarChart:
    """Makes one bar per run."""
    shares = "; ".join(f"{bar.name} {bar.step_ms:.2f} ms, most of it {_largest(bar)}" for bar in bars)
    return _chart("phases", f"Mean time of a step by phase. {shares}.", bars)


def ranks_chart(name: str, key: str, ranks: Mapping[int, SpanSummary]) -> BarChart:
    """Makes one bar per rank."""
    bars = [bar_of(f"rank {rank}", summary) for rank, summary in ranks.items()]
    working = {rank: working_ms(summary) for rank, summary in ranks.items()}
    slowest, quickest = max(working, key=working.__getitem__), min(working, key=working.__getitem__)
    caption = (
        f"{name}: mean time of a step by phase on each rank. Without waiting for others, rank {slowest} takes "
        f"longest ({working[slowest]:.2f} ms) and rank {quickest} shortest ({working[quickest]:.2f} ms)."
    )
    return _chart(key, caption, bars)


def phase_table(name: str, summary: SpanSummary) -> Iterator[str]:
    """Makes a table of every phase."""
    step = summary.step
    yield heading(f"{name}: {counted(step.count, 'step')} of {step.mean_ms:.2f} ms on average")
    rows = [_phase_row(phase.label, times, step.total_ms) for phase, times in summary.phases.items()]
    rows.append(_phase_row("a whole step", step, step.total_ms))
    yield table(("phase", "total (s)", "of steps", "min (ms)", "median (ms)", "p95 (ms)", "max (ms)", "times"), rows)
    yield paragraph(f"Phases cover {summary.covered:.1%} of the steps' time.", "faint")


def _phase_row(name: str, times: Summary, steps_ms: float) -> list[str]:
    between = name in (Phase.EVALUATION.label, Phase.CHECKPOINT.label)
    share = "between" if between else f"{times.total_ms / steps_ms:.1%}"
    figures = [f"{value:.3f}" for value in (times.min_ms, times.median_ms, times.p95_ms, times.max_ms)]
    total_s = times.total_ms / 1e3
    return [name, f"{total_s:.3f}" if total_s < 10 else f"{total_s:,.1f}", share, *figures, f"{times.count:,}"]


def working_ms(summary: SpanSummary) -> float:
    """Sums the medians of the phases in which a rank does not wait for others: the slowest rank waits least."""
    phases = summary.phases.items()
    return sum(times.median_ms for phase, times in phases if phase in STEP_PHASES and phase not in _WAITING)


def _chart(key: str, caption: str, bars: Sequence[Bar]) -> BarChart:
    shown = [
        phase for phase in STEP_PHASES if any(bar.phases_ms.get(phase, 0) >= _SHOWN_SHARE * bar.step_ms for bar in bars)
    ]
    return BarChart(key, caption, "mean time of a step (ms)", [_stacked(bar, shown) for bar in bars])


def _stacked(bar: Bar, shown: Sequence[Phase]) -> StackedBar:
    spent = [(phase.label, bar.phases_ms.get(phase, 0.0), color(int(phase))) for phase in shown]
    rest = max(bar.step_ms - sum(ms for _, ms, _ in spent), 0.0)
    segments = [
        BarSegment(label, ms, shade, f"{ms:.3g} ms")
        for label, ms, shade in (*spent, ("everything else", rest, _REST_COLOR))
    ]
    return StackedBar(bar.name, segments, f"{bar.step_ms:.3g} ms")


def _largest(bar: Bar) -> str:
    phase = max(bar.phases_ms, key=lambda phase: bar.phases_ms[phase])
    return f"{phase.label} ({bar.phases_ms[phase] / bar.step_ms:.0%})"
