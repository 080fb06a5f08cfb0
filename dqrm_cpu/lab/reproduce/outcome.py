"""What runs came to, as tables and figures need it: kept beside each run, and gathered by variant."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.base.files import replace_file
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.lab.reproduce.experiments.definition import Variant
from dqrm_cpu.lab.reproduce.plan import Cell, PlannedExperiment
from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.train.metrics_row import strict_json

_OUTCOME, _FAILED = "outcome.json", "failed.json"


@dataclass(frozen=True)
class Epoch:
    """Validation at the end of an epoch, and the mean loss of the batches trained in it."""

    epoch: int
    step: int
    accuracy: float
    auc: float
    log_loss: float
    train_loss: float
    live_rows: float  # share of all rows with a code that is not 0; NaN in FP32
    # NaN in FP32 and in outcomes of earlier versions.
    updated_rows: float = math.nan  # share of all rows that training changed
    live_updated_rows: float = math.nan  # of those alone: with a code that is not 0


@dataclass(frozen=True)
class RunOutcome:
    """One seed of one variant. `best` is the checkpoint chosen on validation, `last` that of the last step."""

    validation_best: ClickMetrics
    validation_last: ClickMetrics
    test_best: ClickMetrics
    test_last: ClickMetrics
    best_step: int
    steps: int
    ms_per_step: float
    model_bytes: int  # of the packed file of the chosen checkpoint; in FP32 of the weights
    fp32_bytes: int
    sparse_bytes: float  # of the file without dead rows; NaN where none can be dead
    bytes_sent: float  # a step, by one rank
    phases_ms: Mapping[str, float]  # of a mean step less the slowest, by the phase's key
    epochs: tuple[Epoch, ...]
    wall_s: float  # of the session that finished it
    # Of a model whose tables have no rows but those that training updated; NaN as of an epoch.
    updated_fp32_bytes: float = math.nan
    updated_sparse_bytes: float = math.nan  # of its file without dead rows
    # Of the smallest file that holds the chosen model, FP32 models too; NaN where scores are not kept.
    written_bytes: float = math.nan

    @property
    def best_epoch(self) -> Epoch:
        """The epoch of the chosen checkpoint."""
        return next((epoch for epoch in self.epochs if epoch.step == self.best_step), self.epochs[-1])

    @property
    def train_loss(self) -> float:
        """The mean training loss of the last epoch."""
        return self.epochs[-1].train_loss

    def write(self, folder: Path) -> None:
        """Writes outcome.json whole or not at all: its being there says that the run is done."""
        text = json.dumps(strict_json(asdict(self)), indent=1, allow_nan=False) + "\n"
        replace_file(folder / _OUTCOME, [text.encode()], TrainingError)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Returns None where the run is not done, or was recorded by a version that kept other figures."""
        try:
            return decoded(nan_for_null(read_json(folder / _OUTCOME)), cls)
        except (FileNotFoundError, UnreadableError):
            return None


@dataclass(frozen=True)
class RunFailure:
    """A run that could not go on: its loss or its weights were no numbers any more."""

    reason: str

    def write(self, folder: Path) -> None:
        """Writes failed.json, so that the run is not tried again."""
        replace_file(folder / _FAILED, [json.dumps({"reason": self.reason}).encode()], TrainingError)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Returns None where the run has not failed."""
        try:
            return decoded(read_json(folder / _FAILED), cls)
        except (FileNotFoundError, UnreadableError):
            return None


RunResult: TypeAlias = RunOutcome | RunFailure


def results_by_variant(planned: PlannedExperiment, results: Mapping[str, RunResult]) -> dict[str, list[RunResult]]:
    """Gathers the results of each variant, one a seed in their order, and picks the best of several on validation."""
    own = {cell.variant.name: results_of(cell, results) for cell in planned.cells if not cell.variant.best_of}
    return {
        cell.variant.name: own.get(cell.variant.name)
        or [own[name][seed] for seed, name in enumerate(choices(cell.variant, own))]
        for cell in planned.cells
    }


def results_of(cell: Cell, results: Mapping[str, RunResult]) -> list[RunResult]:
    """Returns the results of a cell that has runs of its own."""
    return [results[job.result_name] for job in cell.jobs]


def choices(variant: Variant, results: Mapping[str, Sequence[RunResult]]) -> list[str]:
    """Names for each seed the variant, of those that `best_of` names, with the best validation AUC."""
    tried = {name: results[name] for name in variant.best_of if name in results}
    seeds = range(min(map(len, tried.values()), default=0))
    return [max(tried, key=lambda name: _validation_auc(tried[name][seed])) for seed in seeds]


def succeeded(results: Sequence[RunResult]) -> list[RunOutcome]:
    """Leaves out runs that diverged."""
    return [result for result in results if isinstance(result, RunOutcome)]


def nan_for_null(value: Any, depth: int = 3) -> Any:
    """Returns the document with NaN for null, down to the figures of an epoch; bins that are none are left out."""
    if value is None:
        return math.nan
    if isinstance(value, dict) and depth:
        figures = ((name, item) for name, item in value.items() if (name, item) != ("reliability", None))
        return {name: nan_for_null(item, depth - 1) for name, item in figures}
    if isinstance(value, list) and depth:
        return [nan_for_null(item, depth - 1) for item in value]
    return value


def _validation_auc(result: RunResult) -> float:
    if not isinstance(result, RunOutcome) or math.isnan(result.validation_best.auc):
        return -math.inf
    return result.validation_best.auc
