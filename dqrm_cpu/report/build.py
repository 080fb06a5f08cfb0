"""The report of runs: its sections, in the order in which a reader wants them, and the file that they become."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dqrm_cpu.base.memory import format_size
from dqrm_cpu.base.wording import counted
from dqrm_cpu.config import Config
from dqrm_cpu.config.schema import flatten
from dqrm_cpu.config.setting import value_text
from dqrm_cpu.data.prepare.protocols import beside, not_comparable, protocol_at
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.metrics.click import ClickMetrics, defined
from dqrm_cpu.quant import scale_schedule
from dqrm_cpu.report.advice import warnings_of
from dqrm_cpu.report.curves import learning_curves, memory_curves, scale_history
from dqrm_cpu.report.markup import first_and_others, folded, heading, paragraph, table, warning, words
from dqrm_cpu.report.page import PagePart, PageSection, write_page
from dqrm_cpu.report.paper import load_matplotlib
from dqrm_cpu.report.phases import bar_of, phase_breakdown, phase_table, ranks_chart, working_ms
from dqrm_cpu.report.reliability_chart import reliability_parts
from dqrm_cpu.report.run_files import RunFiles, log_warnings, read_runs
from dqrm_cpu.report.sizes import bytes_per_step, mean_bytes, model_sizes, packed_sizes
from dqrm_cpu.report.weights import weight_histograms
from dqrm_cpu.train.tuning.record import reason_of, trial_rows

_DAY_HEAD = ("run", "training rows", "table rows", "new", "left")
_DAY_FIGURES = ("AUC", "log loss", "norm. entropy", "calibration", "val. AUC", "val. log loss")


class BuiltReport(NamedTuple):
    """A report that was written, and what whoever asked for it should be told."""

    files: list[Path]
    warnings: list[str]
    days: list[list[str]]  # a table over days: heads, then a row for each run; empty where no run began with another


def build_report(run_dirs: list[Path], out: Path, png_folder: Path | None = None) -> BuiltReport:
    """Writes the page of runs, and each chart if there is a folder for them."""
    if png_folder:
        load_matplotlib()
    runs = read_runs(run_dirs)
    warnings = [text for run in runs for text in log_warnings(run)]
    sections = [PageSection(key, title, tuple(make(runs))) for key, title, make in _sections()]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    taken = [run.environment.get("machine", {}).get("cpu_model", "") for run in runs]
    files = write_page(title, ", ".join(sorted({name for name in taken if name})), sections, out, png_folder)
    return BuiltReport(files, warnings, _days_table(runs))


def _sections() -> Sequence[tuple[str, str, Callable[[Sequence[RunFiles]], Iterator[PagePart]]]]:
    """Always all of them: one without figures says why."""
    return (
        ("summary", "Summary", _summary),
        ("warnings", "What to change", _warnings),
        ("learning", "Learning curves", _learning),
        ("reliability", "Reliability of the probabilities", _reliability),
        ("phases", "Where a step's time goes", _phases),
        ("ranks", "Rank by rank", _ranks),
        ("bytes", "Bytes between ranks", _bytes),
        ("weights", "Weights before and after quantization", _weights),
        ("scales", "Scales and clip rates", _scales),
        ("memory", "Memory", _memory),
        ("sizes", "Model sizes", _sizes),
        ("environment", "Environment", _environment),
    )


def _summary(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    head = (
        *("run", "method", "steps", "median (ms)", "mean (ms)"),
        *("val. AUC", "at step", "test AUC", "log loss", "size", "ranks"),
    )
    yield table(head, [_summary_row(run) for run in runs])
    yield paragraph(
        "Milliseconds are those of a step on rank 0, without the first, which compiles. Validation AUC is that of the "
        "best step; test AUC and log loss are those of that checkpoint.",
        "faint",
    )
    yield from _protocols(runs)
    yield from _differences(runs)
    begun = [f"{run.name} began with the weights of {run.config.init_from}" for run in runs if run.config.init_from]
    if begun:
        yield paragraph(f"{'; '.join(begun)}.", "faint")
    yield from _days_parts(runs)


def _protocols(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    """Says what figures of protocols may stand beside."""
    names = [protocol_at(run.config.data.source) for run in runs]
    if line := not_comparable(names):
        yield warning(f"The AUCs above are of other splits, and {line}.")
    for name in sorted({name for name in names if name}):
        yield paragraph(f"Protocol {beside(name)}.", "faint")


def _differences(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    """Shows the settings in which several runs differ."""
    if len(runs) < 2:
        return
    settings = [flatten(run.config) for run in runs]
    differing = [key for key, value in settings[0].items() if any(other[key] != value for other in settings[1:])]
    yield heading("Settings that differ")
    if differing:
        rows = [[key, *(value_text(each[key]) or "-" for each in settings)] for key in differing]
        yield table(("setting", *(run.name for run in runs)), rows)
    else:
        yield paragraph("None: all settings are the same.")


def _summary_row(run: RunFiles) -> list[str]:
    quant, result, best = run.config.quant, run.result, run.best
    method = f"{quant.method} INT{quant.embedding_bits}" if run.quantized else "FP32"
    if scale_schedule.finds_scales(quant):
        method += f", period {scale_schedule.scale_period(quant)}"
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
        format_size(run.sizes.packed),
        str(len(run.environment.get("ranks", ())) or 1),
    ]


def _warnings(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    texts = [text for run in runs for text in (*log_warnings(run), *warnings_of(run))]
    yield from (warning(text) for text in texts)
    if not texts:
        yield paragraph("Nothing stands out: no phase, rank, scale or curve calls for a change.")


def _learning(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    if any(run.not_logged for run in runs):
        yield paragraph(_why_no_curves(runs))
    if any(run.rows or run.not_logged for run in runs):
        yield learning_curves(runs)
    else:
        yield paragraph("Nothing has been logged yet: see --train.log-every.")
    for run in runs:
        for record in run.searches:
            head, *rows = trial_rows(record)
            yield heading(f"{run.name}: settings tried before training")
            yield table(tuple(head), rows)
            if record.kept and record.chosen is not None:
                yield paragraph(f"Chosen: {reason_of(record)}.")


def _why_no_curves(runs: Sequence[RunFiles]) -> str:
    """Says why some runs have no curve of their training, and what gives them one."""
    short = [
        f"{run.name}, {run.not_logged.steps:,} steps with a loss of {run.not_logged.loss:.4f} on average"
        for run in runs
        if run.not_logged
    ]
    return f"Shorter than a row of the log (--train.log-every), and so without a curve of training: {'; '.join(short)}."


def _reliability(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    parts = list(reliability_parts(runs))
    yield from parts
    if not parts:
        yield paragraph("No run has recorded its predictions by bins: evaluations of earlier versions did not.")


def _phases(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    timed = [run for run in runs if run.spans and run.spans[0].summary.step.count]
    if not timed:
        yield paragraph("No spans were recorded yet: they are written at checkpoints and at the end.")
        return
    yield phase_breakdown([bar_of(run.name, run.spans[0].summary) for run in timed])
    tables = [phase_table(f"{run.name}, rank 0", run.spans[0].summary) for run in timed]
    yield from first_and_others(tables, "the other runs in figures")


def _ranks(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    several = [(number, run) for number, run in enumerate(runs) if len(run.spans) > 1]
    if not several:
        yield paragraph("Every run had one process.")
    for number, run in several:
        yield ranks_chart(run.name, f"ranks-{number}", {spans.rank: spans.summary for spans in run.spans})
        hosts = {place["rank"]: place for place in run.environment.get("ranks", [])}
        rows = []
        for spans in run.spans:
            place, step = hosts.get(spans.rank, {}), spans.summary.step
            waiting = step.mean_ms - working_ms(spans.summary)
            memory = f"{spans.peak_memory_bytes / 1e9:.2f}"
            where = [str(place.get("host", "-")), str(place.get("threads", "-"))]
            figures = [f"{working_ms(spans.summary):.2f}", f"{waiting:.2f}", f"{step.p95_ms:.2f}", memory]
            rows.append([str(spans.rank), *where, *figures])
        head = ("working (ms)", "exchanging, waiting (ms)", "step, p95 (ms)", "peak memory (GB)")
        yield table(("rank", "host", "threads", *head), rows)


def _bytes(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    yield bytes_per_step({run.name: mean_bytes(run) for run in runs}) or paragraph(
        "No run sent anything: each had one process."
    )


def _weights(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    parts: list[PagePart | None] = []
    for number, run in enumerate(runs):
        try:
            parts.append(weight_histograms(run, number))
        except CheckpointError as error:  # the rest of the page does not need it
            parts.append(warning(f"{run.name}: {error}"))
    yield from (part for part in parts if part is not None)
    if not any(parts):
        yield paragraph("No run has quantized weights in a checkpoint.")


def _scales(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    figures = [
        figure for number, run in enumerate(runs) if (figure := scale_history(run, number, len(runs))) is not None
    ]
    yield from figures
    if not figures:
        yield paragraph(_nothing_logged(runs) or "No run has recorded scales: only quantized ones have them.")


def _memory(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    yield memory_curves(runs) or paragraph(_nothing_logged(runs) or "No run has recorded its memory.")


def _nothing_logged(runs: Sequence[RunFiles]) -> str:
    """Says that runs are too short for what only rows of training hold; empty where some run is not."""
    return "Every run is shorter than --train.log-every." if all(run.not_logged for run in runs) else ""


def _sizes(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    yield model_sizes(runs)
    yield from packed_sizes(runs)


def _environment(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    for run in runs:
        yield heading(run.name)
        yield from environment_parts(run.environment, run.config)


def environment_parts(environment: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Shows the machine, and every setting."""
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
        ("processor", f"{machine.get('cpu_model', '-')}, {counted(machine.get('cores', 0), 'core')}, {instructions}"),
        ("memory", f"{memory_gb:.1f} GB, huge pages {machine.get('huge_pages') or '-'}"),
        ("hosts", ", ".join(sorted({place["host"] for place in places})) or "-"),
        ("threads of each rank", ", ".join(str(place["threads"]) for place in places) or "-"),
        ("software", ", ".join(versions)),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def _days_table(runs: Sequence[RunFiles]) -> list[list[str]]:
    """Returns the heads and a row for each run; nothing where no run began with another one."""
    if not any(run.beginning for run in runs):
        return []
    return [[*_DAY_HEAD, *_DAY_FIGURES], *(_day(run) for run in runs)]


def _days_parts(runs: Sequence[RunFiles]) -> Iterator[PagePart]:
    """Shows the table, if there is one, and says how to read it."""
    rows = _days_table(runs)
    if not rows:
        return
    yield heading("Day by day")
    yield table(rows[0], rows[1:])
    yield paragraph(
        "Test, then train. New and left count the categories that got a row and those that lost theirs. AUC, log loss, "
        "normalized entropy and calibration are those of the model that the run began with, on all rows of its data, "
        "before it was trained on them; what stands behind them is of the best step, on validation rows.",
        "faint",
    )


def _day(run: RunFiles) -> list[str]:
    begun, best = run.beginning, run.best
    counts = [f"{begun.fresh_rows:,}", f"{begun.rows_left_behind:,}"] if begun else ["-", "-"]
    tested = _day_figures(begun.tested if begun else None)
    after = _day_figures(best.metrics if best else None)
    rows = run.config.data.train_rows, sum(run.config.model.table_rows)
    return [run.name, *(f"{count:,}" for count in rows), *counts, *tested, *after[:2]]


def _day_figures(metrics: ClickMetrics | None) -> list[str]:
    if metrics is None:
        return ["-"] * 4
    figures = metrics.auc, metrics.log_loss, metrics.normalized_entropy
    return [*(defined(figure, ".4f") for figure in figures), defined(metrics.calibration, ".3f")]
