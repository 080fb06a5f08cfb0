"""Tables of an experiment: each of ours beside the paper's, mean and spread over seeds, and the paired difference."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from dqrm_cpu.experiments.experiment import Experiment, Paper, Show
from dqrm_cpu.experiments.gathered import choices, outcomes_by_variant, outcomes_of, succeeded
from dqrm_cpu.experiments.job import Cell, Planned
from dqrm_cpu.experiments.outcome import Outcome
from dqrm_cpu.experiments.runner import Found
from dqrm_cpu.experiments.statistics import Paired, paired, spread
from dqrm_cpu.profile.phases import Phase

_NOTHING = "-"
_LEAST_P = 0.001  # smaller ones are written as such


@dataclass(frozen=True)
class Column:
    """A figure of ours and how it is written; `paper` finds the same of the paper, None where it has none."""

    heading: str
    value: Callable[[Outcome], float]
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

_COMPARED: Mapping[str, Callable[[Outcome], float]] = {_AUC.heading: _AUC.value, _AUC_LAST.heading: _AUC_LAST.value}
"""Differences from the baseline, each with its test."""

_PHASE_GROUPS: Mapping[str, tuple[Phase, ...]] = {
    "scales ms": (Phase.SCALE,),
    "lookup ms": (Phase.GATHER_QUANTIZE,),
    "MLPs ms": (Phase.MLP_QUANTIZE, Phase.MLP_FORWARD, Phase.MLP_BACKWARD, Phase.INTERACTION, Phase.LOSS),
    "exchange ms": (Phase.COALESCE, Phase.QUANTIZE_GRADIENTS, Phase.WIRE, Phase.MERGE, Phase.MLP_EXCHANGE),
    "update ms": (Phase.EMBEDDING_UPDATE, Phase.DENSE_UPDATE),
    "data ms": (Phase.DATA,),
}


def _spent(phases: tuple[Phase, ...]) -> Callable[[Outcome], float]:
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


def table_of(planned: Planned, found: Mapping[str, Found]) -> Table:
    """Rows in the order of the experiment."""
    columns = columns_of(planned.experiment)
    outcomes = outcomes_by_variant(planned, found)
    head, rows, figures = ["", *_headings(columns)], [], []
    if planned.experiment.scores:
        head += [f"Δ {heading}" for heading in _COMPARED]
    for cell in planned.cells:
        base = outcomes.get(planned.experiment.compared_with(cell.variant), [])
        chosen = choices(cell.variant, outcomes)
        row, numbers = _row(cell, outcomes[cell.variant.name], base, columns)
        if chosen:
            row[0] += f" (chosen: {'; '.join(dict.fromkeys(chosen))})"
            numbers["chosen, by seed"] = "; ".join(chosen)
        rows.append(tuple(row[: len(head)]))
        figures.append(numbers)
    return Table(tuple(head), tuple(rows), tuple(figures))


def columns_of(experiment: Experiment) -> tuple[Column, ...]:
    """What the experiment shows, then what all show."""
    phases = Show.PHASES in experiment.shows
    groups = [Column(name, _spent(of), "{:.2f}") for name, of in _PHASE_GROUPS.items()] if phases else []
    scores = (_ACCURACY, _AUC, _AUC_LAST) if experiment.scores else ()
    columns = (*(_SHOWN[show] for show in experiment.shows if show in _SHOWN), *groups, *scores)
    return tuple(column if _is_reported(column, experiment) else replace(column, paper=None) for column in columns)


def _is_reported(column: Column, experiment: Experiment) -> bool:
    """Whether the paper has this figure for any row: a column of nothing would only take room."""
    return column.paper is not None and any(column.paper(variant.paper) is not None for variant in experiment.variants)


def epoch_table(planned: Planned, found: Mapping[str, Found], epochs: Sequence[int]) -> Table:
    """One variant, by epoch: validation, beside what the paper reports of test."""
    experiment = planned.experiment
    outcomes = succeeded(outcomes_of(planned.cells[0], found))
    head = ("epoch", "validation accuracy %", "paper (test)", "validation AUC", "paper (test)")
    rows, figures = [], []
    for number in epochs:
        paper = experiment.paper_by_epoch.get(number, Paper())
        reached = [epoch for outcome in outcomes for epoch in outcome.epochs if epoch.epoch == number]
        accuracy = [epoch.accuracy * 100 for epoch in reached]
        auc = [epoch.auc for epoch in reached]
        theirs = _paper_text(paper.accuracy, "{:.3f}"), _paper_text(paper.auc, "{:.4f}")
        ours = _spread_text(accuracy, "{:.2f}"), _spread_text(auc, "{:.4f}")
        rows.append((str(number), ours[0], theirs[0], ours[1], theirs[1]))
        figures.append({"epoch": number, **_numbers("validation accuracy", accuracy), **_numbers("AUC", auc)})
    return Table(head, tuple(rows), tuple(figures))


def markdown(table: Table) -> str:
    """As a Markdown table."""
    lines = [f"| {' | '.join(table.head)} |", f"|{'---|' * len(table.head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in table.rows)]) + "\n"


def comma_separated(table: Table) -> str:
    """The numbers, unrounded."""
    names = list(dict.fromkeys(name for row in table.figures for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(row) for row in table.figures)
    return out.getvalue()


def _headings(columns: Sequence[Column]) -> list[str]:
    return [text for column in columns for text in ([column.heading, "paper"] if column.paper else [column.heading])]


def _row(
    cell: Cell,
    outcomes: Sequence[Found],
    baseline: Sequence[Found],
    columns: Sequence[Column],
) -> tuple[list[str], dict[str, str | float]]:
    variant, done = cell.variant, succeeded(outcomes)
    failed = len(outcomes) - len(done)
    name = variant.name + (f" (paper: {variant.paper.note})" if variant.paper.note else "")
    texts = [
        name + (f" ({failed} of {len(outcomes)} seed{'s' if len(outcomes) > 1 else ''} diverged)" if failed else "")
    ]
    numbers: dict[str, str | float] = {"variant": variant.name, "seeds": len(outcomes), "diverged": failed}
    for column in columns:
        values = [column.value(outcome) for outcome in done]
        texts.append(_spread_text(values if column.spreads else values[:1], column.write))
        numbers |= _numbers(column.heading, values)
        if column.paper:
            theirs = column.paper(variant.paper)
            texts.append(_paper_text(theirs, column.write_paper))
            numbers[f"{column.heading}, paper"] = "" if theirs is None else theirs
    for heading, value in _COMPARED.items():
        difference = _difference(outcomes, baseline, value)
        texts.append(_difference_text(difference) if baseline is not outcomes else _NOTHING)
        if difference is not None:
            numbers[f"{heading} difference, mean"] = difference.mean
            numbers[f"{heading} difference, deviation"] = difference.deviation
            numbers[f"{heading} difference, p"] = difference.p
    return texts, numbers


def _difference(
    outcomes: Sequence[Found], baseline: Sequence[Found], value: Callable[[Outcome], float]
) -> Paired | None:
    """Over the seeds that both finished."""
    pairs = [
        (value(mine), value(base))
        for mine, base in zip(outcomes, baseline, strict=False)
        if isinstance(mine, Outcome) and isinstance(base, Outcome)
    ]
    return paired([mine for mine, _ in pairs], [base for _, base in pairs]) if pairs else None


def _numbers(heading: str, values: Sequence[float]) -> dict[str, str | float]:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return {f"{heading}, mean": "", f"{heading}, deviation": ""}
    found = spread(known)
    return {f"{heading}, mean": found.mean, f"{heading}, deviation": found.deviation}


def _spread_text(values: Sequence[float], write: str) -> str:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return _NOTHING
    found = spread(known)
    mean = write.format(found.mean)
    return mean if math.isnan(found.deviation) else f"{mean} ± {write.format(found.deviation).removesuffix('x')}"


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
