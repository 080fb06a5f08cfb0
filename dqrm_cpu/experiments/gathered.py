"""What the runs of an experiment came to, by variant; the best of several is picked here, on validation."""

import math
from collections.abc import Mapping, Sequence

from dqrm_cpu.experiments.experiment import Variant
from dqrm_cpu.experiments.job import Cell, Planned
from dqrm_cpu.experiments.outcome import Outcome
from dqrm_cpu.experiments.runner import Found


def outcomes_by_variant(planned: Planned, found: Mapping[str, Found]) -> dict[str, list[Found]]:
    """One a seed, in their order."""
    own = {cell.variant.name: outcomes_of(cell, found) for cell in planned.cells if not cell.variant.best_of}
    return {
        cell.variant.name: own.get(cell.variant.name)
        or [own[name][seed] for seed, name in enumerate(choices(cell.variant, own))]
        for cell in planned.cells
    }


def outcomes_of(cell: Cell, found: Mapping[str, Found]) -> list[Found]:
    """Of a cell with runs of its own."""
    return [found[job.result_name] for job in cell.jobs]


def choices(variant: Variant, outcomes: Mapping[str, Sequence[Found]]) -> list[str]:
    """Of the variants that `best_of` names, the one with the best validation AUC: a name for each seed."""
    tried = {name: outcomes[name] for name in variant.best_of if name in outcomes}
    seeds = range(min(map(len, tried.values()), default=0))
    return [max(tried, key=lambda name: _validation_auc(tried[name][seed])) for seed in seeds]


def succeeded(outcomes: Sequence[Found]) -> list[Outcome]:
    """Without runs that diverged."""
    return [outcome for outcome in outcomes if isinstance(outcome, Outcome)]


def _validation_auc(found: Found) -> float:
    if not isinstance(found, Outcome) or math.isnan(found.validation_best.auc):
        return -math.inf
    return found.validation_best.auc
