"""Tables of an experiment: each of ours beside the paper's, mean and spread over seeds, and the paired difference."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from dqrm_cpu.base.wording import counted
from dqrm_cpu.lab.reproduce.experiments.definition import Experiment, Paper, Show, Variant
from dqrm_cpu.lab.reproduce.outcome import RunOutcome, RunResult, choices, results_by_variant, results_of, succeeded
from dqrm_cpu.lab.reproduce.plan import PlannedExperiment
from dqrm_cpu.lab.reproduce.statistics import Paired, Spread, paired, spread
from dqrm_cpu.timing.phases import Phase

_NOTHING = "-"
_LEAST_P = 0.001  # smaller ones are written as such


@dataclass(frozen=True)
class Column:
    """A figure of ours and how it is written; `paper` finds the same of the paper, None where it has none."""

    heading: str
    value: Callable[[RunOutcome], float]
    write: str
    paper: Callable[[Paper], float | None] | None = None
    write_paper: str = ""
    spreads: bool = True  # whether it depends on the seed


@dataclass(frozen=True)
class Table:
    """Cells as text, for people; `figures` are the numbers behind them, for programs."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    figures: tuple[Mapping[str, str | float], ...]


_ACCURACY = Column("accuracy %", lambda o: o.test_best.accuracy * 100, "{:.2f}", lambda p: p.accuracy, "{:.3f}")
_AUC = Column("AUC", lambda o: o.test_best.auc, "{:.4f}", lambda p: p.auc, "{:.4f}")
_AUC_LAST = Column("AUC, last", lambda o: o.test_last.auc, "{:.4f}")

_COMPARED: Mapping[str, Callable[[RunOutcome], float]] = {_AUC.heading: _AUC.value, _AUC_LAST.heading: _AUC_LAST.value}
"""Differences from the baseline, each with its test."""

_PHASE_GROUPS: Mapping[str, tuple[Phase, ...]] = {
    "scales ms": (Phase.SCALE,),
    "lookup ms": (Phase.GATHER_QUANTIZE,),
    "MLPs ms": (Phase.MLP_QUANTIZE, Phase.MLP_FORWARD, Phase.MLP_BACKWARD, Phase.INTERACTION, Phase.LOSS),
    "exchange ms": (Phase.COALESCE, Phase.QUANTIZE_GRADIENTS, Phase.WIRE, Phase.MERGE, Phase.MLP_EXCHANGE),
    "update ms": (Phase.EMBEDDING_UPDATE, Phase.DENSE_UPDATE),
    "data ms": (Phase.DATA,),
}


def _spent(phases: tuple[Phase, ...]) -> Callable[[RunOutcome], float]:
    return lambda outcome: sum(outcome.phases_ms.get(phase.key, 0.0) for phase in phases)


_SHOWN: Mapping[Show, Column] = {
    Show.SIZE: Column(
        "size MB", lambda o: o.model_bytes / 1e6, "{:.2f}", lambda p: p.size_gb, "{:.3f} GB", spreads=False
    ),
    Show.LOSS: Column("training loss", lambda o: o.train_loss, "{:.4f}", lambda p: p.loss, "{:.3f}"),
    Show.MS_PER_STEP: Column("ms/step", lambda o: o.ms_per_step, "{:.2f}", lambda p: p.ms_per_step, "{:.0f}"),
    Show.LIVE_ROWS: Column("live rows %", lambda o: o.best_epoch.live_rows * 100, "{:.1f}"),
    Show.UPDATED_ROWS: Column("updated rows %", lambda o: o.best_epoch.updated_rows * 100, "{:.1f}"),
    Show.LIVE_UPDATED_ROWS: Column("live of updated %", lambda o: o.best_epoch.live_updated_rows * 100, "{:.1f}"),
    Show.SPARSE_SIZE: Column("row-sparse, smaller by", lambda o: o.fp32_bytes / o.sparse_bytes, "{:.1f}x"),
    Show.UPDATED_SPARSE_SIZE: Column(
        "the same, updated rows alone", lambda o: o.updated_fp32_bytes / o.updated_sparse_bytes, "{:.1f}x"
    ),
    Show.BYTES_SENT: Column("kB sent/step", lambda o: o.bytes_sent / 1e3, "{:.1f}"),
}


def table_of(planned: PlannedExperiment, results: Mapping[str, RunResult]) -> Table:
    """Makes the table of an experiment, rows in the order of its variants."""
    experiment = planned.experiment
    columns = _columns_of(experiment)
    by_variant = results_by_variant(planned, results)
    head, rows, figures = ["", *_headings(columns)], [], []
    if experiment.scores:
        head += [f"Δ {heading}" for heading in _COMPARED]
    for cell in planned.cells:
        base = by_variant.get(experiment.compared_with(cell.variant), [])
        row, numbers = _row(cell.variant, by_variant[cell.variant.name], base, columns)
        if chosen := choices(cell.variant, by_variant):
            row[0] += f" (chosen: {'; '.join(dict.fromkeys(chosen))})"
            numbers["chosen, by seed"] = "; ".join(chosen)
        rows.append(tuple(row[: len(head)]))
        figures.append(numbers)
    return Table(tuple(head), tuple(rows), tuple(figures))


def _columns_of(experiment: Experiment) -> tuple[Column, ...]:
    """Lists the columns: what the experiment shows, then what all show."""
    phases = Show.PHASES in experiment.shows
    groups = [Column(name, _spent(of), "{:.2f}") for name, of in _PHASE_GROUPS.items()] if phases else []
    scores = (_ACCURACY, _AUC, _AUC_LAST) if experiment.scores else ()
    columns = (*(_SHOWN[show] for show in experiment.shows if show in _SHOWN), *groups, *scores)
    papers = [variant.paper for variant in experiment.variants]
    # Where the paper has a figure for no row, a column of nothing would only take room.
    return tuple(
        column
        if column.paper and any(column.paper(paper) is not None for paper in papers)
        else replace(column, paper=None)
        for column in columns
    )


def epoch_table(planned: PlannedExperiment, results: Mapping[str, RunResult]) -> Table:
    """Makes the table of one variant by epoch: validation, beside what the paper reports of test."""
    outcomes = succeeded(results_of(planned.cells[0], results))
    head = ("epoch", "validation accuracy %", "paper (test)", "validation AUC", "paper (test)")
    rows, figures = [], []
    for number in planned.experiment.by_epoch:
        paper = planned.experiment.paper_by_epoch.get(number, Paper())
        reached = [epoch for outcome in outcomes for epoch in outcome.epochs if epoch.epoch == number]
        accuracy, auc = [epoch.accuracy * 100 for epoch in reached], [epoch.auc for epoch in reached]
        of_accuracy = (_spread_text(accuracy, "{:.2f}"), _paper_text(paper.accuracy, "{:.3f}"))
        rows.append((str(number), *of_accuracy, _spread_text(auc, "{:.4f}"), _paper_text(paper.auc, "{:.4f}")))
        figures.append({"epoch": number, **_numbers("validation accuracy", accuracy), **_numbers("AUC", auc)})
    return Table(head, tuple(rows), tuple(figures))


def markdown(table: Table) -> str:
    """Writes the cells as a Markdown table."""
    lines = [f"| {' | '.join(table.head)} |", f"|{'---|' * len(table.head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in table.rows)]) + "\n"


def comma_separated(table: Table) -> str:
    """Writes the numbers, unrounded, as CSV."""
    names = list(dict.fromkeys(name for row in table.figures for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(row) for row in table.figures)
    return out.getvalue()


def _headings(columns: Sequence[Column]) -> list[str]:
    return [text for column in columns for text in ([column.heading, "paper"] if column.paper else [column.heading])]


def _row(
    variant: Variant, results: Sequence[RunResult], baseline: Sequence[RunResult], columns: Sequence[Column]
) -> tuple[list[str], dict[str, str | float]]:
    outcomes = succeeded(results)
    failed = len(results) - len(outcomes)
    name = variant.name + (f" (paper: {variant.paper.note})" if variant.paper.note else "")
    if failed:
        name += f" ({failed} of {counted(len(results), 'seed')} diverged)"
    texts = [name]
    numbers: dict[str, str | float] = {"variant": variant.name, "seeds": len(results), "diverged": failed}
    for column in columns:
        values = [column.value(outcome) for outcome in outcomes]
        texts.append(_spread_text(values if column.spreads else values[:1], column.write))
        numbers |= _numbers(column.heading, values)
        if column.paper:
            theirs = column.paper(variant.paper)
            texts.append(_paper_text(theirs, column.write_paper))
            numbers[f"{column.heading}, paper"] = "" if theirs is None else theirs
    for heading, value in _COMPARED.items():
        difference = _difference(results, baseline, value)
        texts.append(_difference_text(difference) if baseline is not results else _NOTHING)
        if difference is not None:
            numbers[f"{heading} difference, mean"] = difference.mean
            numbers[f"{heading} difference, deviation"] = difference.deviation
            numbers[f"{heading} difference, p"] = difference.p
    return texts, numbers


def _difference(
    results: Sequence[RunResult], baseline: Sequence[RunResult], value: Callable[[RunOutcome], float]
) -> Paired | None:
    """Computes the difference over the seeds that both finished."""
    pairs = [
        (value(mine), value(base))
        for mine, base in zip(results, baseline, strict=False)
        if isinstance(mine, RunOutcome) and isinstance(base, RunOutcome)
    ]
    return paired([mine for mine, _ in pairs], [base for _, base in pairs]) if pairs else None


def _known_spread(values: Sequence[float]) -> Spread | None:
    known = [value for value in values if math.isfinite(value)]
    return spread(known) if known else None


def _numbers(heading: str, values: Sequence[float]) -> dict[str, str | float]:
    known = _known_spread(values)
    return {
        f"{heading}, mean": known.mean if known else "",
        f"{heading}, deviation": known.deviation if known else "",
    }


def _spread_text(values: Sequence[float], write: str) -> str:
    known = _known_spread(values)
    if known is None:
        return _NOTHING
    mean = write.format(known.mean)
    return mean if math.isnan(known.deviation) else f"{mean} ± {write.format(known.deviation).removesuffix('x')}"


def _paper_text(value: float | None, write: str) -> str:
    return _NOTHING if value is None else write.format(value)


def _difference_text(difference: Paired | None) -> str:
    if difference is None:
        return _NOTHING
    text = f"{difference.mean:+.4f}"
    if not math.isnan(difference.deviation):
        text += f" ± {difference.deviation:.4f}"
    if math.isnan(difference.p):
        return text
    return f"{text} (p {difference.p:.3f})" if difference.p >= _LEAST_P else f"{text} (p < {_LEAST_P})"
