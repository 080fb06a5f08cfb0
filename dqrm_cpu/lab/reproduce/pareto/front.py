"""Rows of AUC against bytes, their differences from one of them, the front, and the best within budgets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from dqrm_cpu.lab.reproduce.experiments.definition import Outside, Variant
from dqrm_cpu.lab.reproduce.outcome import RunOutcome, RunResult, choices, results_of
from dqrm_cpu.lab.reproduce.pareto.delong import Placements, placements, rows_p
from dqrm_cpu.lab.reproduce.pareto.scores import Scores
from dqrm_cpu.lab.reproduce.plan import Job, PlannedExperiment
from dqrm_cpu.lab.reproduce.statistics import Paired, Spread, half_interval, holm, paired, spread


@dataclass(frozen=True)
class AucDifference:
    """A row's test AUC less that of the row that all are compared with, over seeds and over rows."""

    over_seeds: Paired
    half_interval: float  # of 95%, Student's, over seeds
    p_rows: float  # DeLong's
    p: float  # the larger of both: a difference has to hold for other seeds and for other rows
    corrected_p: float  # Holm's, for the number of rows of the table


@dataclass(frozen=True)
class FrontRow:
    """A row: what validation chose in each seed."""

    variant: Variant
    is_outside: bool
    chosen: tuple[str, ...]  # the variant of each seed
    written_bytes: float  # mean over seeds
    validation_auc: float  # mean over seeds: what decides about the front
    test_auc: Spread
    log_loss: Spread
    difference: AucDifference | None  # None: the row itself that all are compared with
    is_on_front: bool = False


@dataclass(frozen=True)
class Goal:
    """What a model of so small a share of the bytes of FP32's is to reach."""

    times_smaller: float
    at_least: float  # test AUC less that of the single model in FP32
    is_a_gain: bool = False  # then p must be below .05 too


GOALS = (Goal(7, 0.0015, is_a_gain=True), Goal(25, 0.0), Goal(50, -0.001), Goal(200, -0.003))


@dataclass(frozen=True)
class WithinBudget:
    """The row of ours that is best on validation among those that are small enough; None where none is.

    Test had no part in the choice, so that its p is corrected for the number of goals alone.
    """

    goal: Goal
    row: FrontRow | None
    corrected_p: float = math.nan  # Holm's

    @property
    def is_reached(self) -> bool:
        """Whether the mean difference is what the goal asks for, and significant where it is a gain."""
        if self.row is None:
            return False
        if self.row.difference is None:
            return self.goal.at_least <= 0
        is_sure = not self.goal.is_a_gain or self.corrected_p < 0.05
        return self.row.difference.over_seeds.mean >= self.goal.at_least and is_sure


@dataclass(frozen=True)
class _Chosen:
    """The run of a seed that validation chose, and where each of its test rows lies."""

    name: str
    outcome: RunOutcome
    placements: Placements


def front_rows(planned: PlannedExperiment, results: Mapping[str, RunResult], out: Path) -> list[FrontRow]:
    """Makes the rows that choose among others, in their order; seeds in which a row diverged are left out of it."""
    own = {cell.variant.name: results_of(cell, results) for cell in planned.cells if not cell.variant.best_of}
    jobs = {cell.variant.name: cell.jobs for cell in planned.cells}
    variants = {cell.variant.name: cell.variant for cell in planned.cells}
    chosen = {
        name: _chosen(choices(variant, own), own, jobs, out) for name, variant in variants.items() if variant.best_of
    }
    baseline = chosen[planned.experiment.baseline]
    rows = []
    for name, by_seed in chosen.items():
        outcomes = [one.outcome for one in by_seed if one is not None]
        if not outcomes:
            continue
        row = FrontRow(
            variants[name],
            any(isinstance(variants[tried].outside, Outside) for tried in variants[name].best_of if tried in variants),
            tuple(one.name if one else "diverged" for one in by_seed),
            fmean(outcome.written_bytes for outcome in outcomes),
            fmean(outcome.validation_best.auc for outcome in outcomes),
            spread([outcome.test_best.auc for outcome in outcomes]),
            spread([outcome.test_best.log_loss for outcome in outcomes]),
            None if by_seed is baseline else _difference(by_seed, baseline, same_rows=planned.same_rows),
        )
        rows.append(row)
    return marked(corrected(rows))


def within_budgets(rows: Sequence[FrontRow]) -> list[WithinBudget]:
    """Chooses, for each goal, the row of ours that fits and is best on validation."""
    full = next((row.written_bytes for row in rows if row.difference is None), math.nan)
    found: list[FrontRow | None] = []
    for goal in GOALS:
        small = [row for row in rows if not row.is_outside and row.written_bytes * goal.times_smaller <= full]
        found.append(max(small, key=lambda row: row.validation_auc, default=None))
    p_values = holm([row.difference.p if row and row.difference else math.nan for row in found])
    return [WithinBudget(*one) for one in zip(GOALS, found, p_values, strict=True)]


def _chosen(
    names: Sequence[str], own: Mapping[str, Sequence[RunResult]], jobs: Mapping[str, tuple[Job, ...]], out: Path
) -> list[_Chosen | None]:
    """Returns the run of each seed, None where all that were tried diverged."""
    found: list[_Chosen | None] = []
    for seed, name in enumerate(names):
        outcome = own[name][seed]
        if not isinstance(outcome, RunOutcome):
            found.append(None)
            continue
        test = Scores.read(jobs[name][seed].folder(out)).test
        found.append(_Chosen(name, outcome, placements(test.logits, test.clicks)))
    return found


def _difference(row: Sequence[_Chosen | None], baseline: Sequence[_Chosen | None], *, same_rows: bool) -> AucDifference:
    both = [(mine, base) for mine, base in zip(row, baseline, strict=False) if mine is not None and base is not None]
    aucs = [(mine.outcome.test_best.auc, base.outcome.test_best.auc) for mine, base in both]
    over_seeds = paired([mine for mine, _ in aucs], [base for _, base in aucs])
    of_rows = rows_p([mine.placements.minus(base.placements) for mine, base in both], same_rows=same_rows)
    known = [p for p in (over_seeds.p, of_rows) if not math.isnan(p)]
    half = half_interval(Spread(over_seeds.mean, over_seeds.deviation, over_seeds.count))
    return AucDifference(over_seeds, half, of_rows, max(known, default=math.nan), math.nan)


def corrected(rows: Sequence[FrontRow]) -> list[FrontRow]:
    """Corrects the p of each row for how many rows there are."""
    p_values = holm([math.nan if row.difference is None else row.difference.p for row in rows])
    return [
        row if row.difference is None else replace(row, difference=replace(row.difference, corrected_p=p))
        for row, p in zip(rows, p_values, strict=True)
    ]


def marked(rows: Sequence[FrontRow]) -> list[FrontRow]:
    """Marks the rows than which none is better on validation in as few bytes."""
    return [
        replace(row, is_on_front=not any(_is_better(other, row) for other in rows if other is not row)) for row in rows
    ]


def _is_better(one: FrontRow, other: FrontRow) -> bool:
    no_worse = one.written_bytes <= other.written_bytes and one.validation_auc >= other.validation_auc
    return no_worse and (one.written_bytes, one.validation_auc) != (other.written_bytes, other.validation_auc)
