"""The sections of a report, in the order in which a reader wants them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dqrm_cpu.config import Config
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.profile.phases import Phase
from dqrm_cpu.profile.spans import SpanSummary
from dqrm_cpu.quant import finding
from dqrm_cpu.report.advice import warnings_of
from dqrm_cpu.report.curves import learning_curves, memory_curves
from dqrm_cpu.report.markup import first_and_others, folded, heading, paragraph, table, warning, words
from dqrm_cpu.report.phase_figures import bar_of, phase_breakdown, rank_comparison, working_ms
from dqrm_cpu.report.run_files import RunFiles, log_warnings
from dqrm_cpu.report.scales import scale_history
from dqrm_cpu.report.sizes import model_sizes, packed_sizes
from dqrm_cpu.report.style import Figure
from dqrm_cpu.report.traffic import bytes_of_runs
from dqrm_cpu.report.weights import weight_histograms

Part = str | Figure


@dataclass(frozen=True)
class Section:
    """HTML and figures in their order."""

    key: str
    title: str
    parts: tuple[Part, ...]


def sections_of(runs: Sequence[RunFiles]) -> list[Section]:
    """Always all of them: one without figures says why."""
    made: list[tuple[str, str, Callable[[Sequence[RunFiles]], Iterator[Part]]]] = [
        ("summary", "Summary", _summary),
        ("warnings", "What to change", _warnings),
        ("learning", "Learning curves", _learning),
        ("phases", "Where a step's time goes", _phases),
        ("ranks", "Rank by rank", _ranks),
        ("bytes", "Bytes between ranks", _bytes),
        ("weights", "Weights before and after quantization", _weights),
        ("scales", "Scales and clip rates", _scales),
        ("memory", "Memory", _memory),
        ("sizes", "Model sizes", _sizes),
        ("environment", "Environment", _environment),
    ]
    return [Section(key, title, tuple(make(runs))) for key, title, make in made]


def _summary(runs: Sequence[RunFiles]) -> Iterator[Part]:
    head = (
        "run",
        "method",
        "steps",
        "median (ms)",
        "mean (ms)",
        "val. AUC",
        "at step",
        "test AUC",
        "log loss",
        "size (MB)",
        "ranks",
    )
    yield table(head, [_summary_row(run) for run in runs])
    yield paragraph(
        "Milliseconds are those of a step on rank 0, without the first, which compiles. Validation AUC is the best; "
        "test AUC and log loss are those of that checkpoint.",
        "faint",
    )


def _summary_row(run: RunFiles) -> list[str]:
    quant, result, best = run.config.quant, run.result, run.best
    method = f"{quant.method} INT{quant.embedding_bits}" if run.quantized else "FP32"
    if finding.finds(quant):
        method += f", period {finding.period(quant)}"
    test: dict[str, Any] = result["test"]["best"] if result else {}
    step = run.spans[0].summary.step if run.spans else None
    return [
        run.name,
        method,
        f"{run.last_step:,}",
        _number(step.median_ms if step else None, ".2f"),
        _number(step.mean_ms if step else None, ".2f"),
        _number(best.metrics.auc if best and best.metrics else math.nan, ".4f"),
        f"{best.step:,}" if best else "-",
        _number(test.get("auc"), ".4f"),
        _number(test.get("log_loss"), ".4f"),
        f"{run.sizes.packed / 1e6:,.1f}",
        str(len(run.environment.get("ranks", ())) or 1),
    ]


def _warnings(runs: Sequence[RunFiles]) -> Iterator[Part]:
    found = [text for run in runs for text in (*log_warnings(run), *warnings_of(run))]
    yield from (warning(text) for text in found)
    if not found:
        yield paragraph("Nothing stands out: no phase, rank, scale or curve calls for a change.")


def _learning(runs: Sequence[RunFiles]) -> Iterator[Part]:
    if any(run.rows for run in runs):
        yield learning_curves(runs)
    else:
        yield paragraph("Nothing has been logged yet: see --train.log-every.")


def _phases(runs: Sequence[RunFiles]) -> Iterator[Part]:
    timed = [run for run in runs if run.spans and run.spans[0].summary.step.count]
    if not timed:
        yield paragraph("No spans were recorded yet: they are written at checkpoints and at the end.")
        return
    yield phase_breakdown([bar_of(run.name, run.spans[0].summary) for run in timed])
    tables = [phase_table(f"{run.name}, rank 0", run.spans[0].summary) for run in timed]
    yield from first_and_others(tables, "the other runs in figures")


def phase_table(name: str, summary: SpanSummary) -> Iterator[str]:
    """Every phase in figures."""
    step = summary.step
    yield heading(f"{name}: {step.count:,} steps of {step.mean_ms:.2f} ms on average")
    rows = [_phase_row(phase.label, found, step.total_ms) for phase, found in summary.phases.items()]
    rows.append(_phase_row("a whole step", step, step.total_ms))
    yield table(("phase", "total (s)", "of steps", "min (ms)", "median (ms)", "p95 (ms)", "max (ms)", "times"), rows)
    yield paragraph(f"Phases cover {summary.covered:.1%} of the steps' time.", "faint")


def _phase_row(name: str, found: Any, steps_ms: float) -> list[str]:
    between = name in (Phase.EVALUATION.label, Phase.CHECKPOINT.label)
    share = "between" if between else f"{found.total_ms / steps_ms:.1%}"
    figures = [f"{value:.3f}" for value in (found.min_ms, found.median_ms, found.p95_ms, found.max_ms)]
    total_s = found.total_ms / 1e3
    return [name, f"{total_s:.3f}" if total_s < 10 else f"{total_s:,.1f}", share, *figures, f"{found.count:,}"]


def _ranks(runs: Sequence[RunFiles]) -> Iterator[Part]:
    several = [(number, run) for number, run in enumerate(runs) if len(run.spans) > 1]
    if not several:
        yield paragraph("Every run had one process.")
    for number, run in several:
        yield rank_comparison(run, number)
        hosts = {place["rank"]: place for place in run.environment.get("ranks", [])}
        rows = []
        for spans in run.spans:
            place, step = hosts.get(spans.rank, {}), spans.summary.step
            waiting = step.mean_ms - working_ms(spans.summary)
            memory = f"{spans.peak_memory_bytes / 1e9:.2f}"
            where = [str(place.get("host", "-")), str(place.get("threads", "-"))]
            figures = [f"{working_ms(spans.summary):.2f}", f"{waiting:.2f}", f"{step.p95_ms:.2f}", memory]
            rows.append([str(spans.rank), *where, *figures])
        head = (
            "rank",
            "host",
            "threads",
            "working (ms)",
            "exchanging, waiting (ms)",
            "step, p95 (ms)",
            "peak memory (GB)",
        )
        yield table(head, rows)


def _bytes(runs: Sequence[RunFiles]) -> Iterator[Part]:
    yield bytes_of_runs(runs) or paragraph("No run sent anything: each had one process.")


def _weights(runs: Sequence[RunFiles]) -> Iterator[Part]:
    parts = [part for number, run in enumerate(runs) if (part := _weights_of(run, number)) is not None]
    yield from parts
    if not parts:
        yield paragraph("No run has quantized weights in a checkpoint.")


def _weights_of(run: RunFiles, number: int) -> Part | None:
    try:
        return weight_histograms(run, number)
    except CheckpointError as error:  # the rest of the page does not need it
        return warning(f"{run.name}: {error}")


def _scales(runs: Sequence[RunFiles]) -> Iterator[Part]:
    found = [scale_history(run, number, len(runs)) for number, run in enumerate(runs)]
    figures = [figure for figure in found if figure is not None]
    yield from figures
    if not figures:
        yield paragraph("No run has recorded scales: only quantized ones have them.")


def _memory(runs: Sequence[RunFiles]) -> Iterator[Part]:
    yield memory_curves(runs) or paragraph("No run has recorded its memory.")


def _sizes(runs: Sequence[RunFiles]) -> Iterator[Part]:
    yield model_sizes(runs)
    yield from packed_sizes(runs)


def _environment(runs: Sequence[RunFiles]) -> Iterator[Part]:
    for run in runs:
        yield heading(run.name)
        yield from environment_parts(run.environment, run.config)


def environment_parts(environment: Mapping[str, Any], config: Config) -> Iterator[str]:
    """The machine, and every setting."""
    yield words(_environment_rows(environment))
    yield folded("all settings", config.to_toml())


def _environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine, places = environment.get("machine", {}), environment.get("ranks", [])
    packages = [
        f"{package['name']} {package['version']}" for package in machine.get("packages", []) if package["version"]
    ]
    instructions = ", ".join(machine.get("isa", []))
    versions = [f"dqrm-cpu {environment.get('dqrm_cpu', '-')}", f"Python {machine.get('python', '-')}", *packages]
    memory_gb = machine.get("memory_total_bytes", 0) / 1e9
    return [
        ("command", " ".join(environment.get("command", ["-"]))),
        ("processor", f"{machine.get('cpu_model', '-')}, {machine.get('cores', '-')} cores, {instructions}"),
        ("memory", f"{memory_gb:.1f} GB, huge pages {machine.get('huge_pages') or '-'}"),
        ("hosts", ", ".join(sorted({place["host"] for place in places})) or "-"),
        ("threads of each rank", ", ".join(str(place["threads"]) for place in places) or "-"),
        ("software", ", ".join(versions)),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)
