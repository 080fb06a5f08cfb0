"""What one run came to, as tables and figures need it; kept beside the run as outcome.json."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.base.files import replace_file
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.train.metrics import ClickMetrics
from dqrm_cpu.train.metrics_row import strict_json

_FILE_NAME = "outcome.json"


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
class Outcome:
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

    @property
    def best_epoch(self) -> Epoch:
        """The epoch of the chosen checkpoint."""
        return next((epoch for epoch in self.epochs if epoch.step == self.best_step), self.epochs[-1])

    @property
    def train_loss(self) -> float:
        """Over the last epoch."""
        return self.epochs[-1].train_loss

    def write(self, folder: Path) -> None:
        """Whole or not at all: its being there says that the run is done."""
        text = json.dumps(strict_json(asdict(self)), indent=1, allow_nan=False) + "\n"
        replace_file(folder / _FILE_NAME, [text.encode()], TrainingError)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """None where the run is not done, or was recorded by a version that kept other figures."""
        try:
            return decoded(_numbers(read_json(folder / _FILE_NAME)), cls)
        except (FileNotFoundError, UnreadableError):
            return None


def _numbers(value: Any, depth: int = 3) -> Any:
    """The document with NaN for null, down to the figures of an epoch."""
    if value is None:
        return math.nan
    if isinstance(value, dict) and depth:
        return {name: _numbers(item, depth - 1) for name, item in value.items()}
    if isinstance(value, list) and depth:
        return [_numbers(item, depth - 1) for item in value]
    return value
