"""Rows of metrics for TensorBoard, where it is installed and asked for."""

import contextlib
from pathlib import Path

from dqrm_cpu.base.files import unwritable
from dqrm_cpu.errors import DeviceError, TrainingError
from dqrm_cpu.train.metrics_row import MetricsRow


class TensorboardLog:
    """The same rows as TensorBoard scalars, one chart per figure and phase."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise DeviceError(
                "TensorBoard is not installed; run pip install 'dqrm-cpu[report]' or leave out --train.tensorboard"
            ) from error
        # Whatever an interrupted run logged beyond its last checkpoint is hidden.
        self._folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        self._broken = False

    def log(self, row: MetricsRow) -> str | None:
        """Adds a row; returns what to tell when the disk refuses it: from then on nothing is added any more."""
        if self._broken:
            return None
        try:
            for name, value in row.to_json().items():
                if name not in ("step", "phase", "examples") and isinstance(value, int | float):
                    self._writer.add_scalar(f"{row.phase}/{name}", value, row.step)
        except OSError as error:
            self._broken = True
            return (
                f"{unwritable(self._folder, error, TrainingError)}; TensorBoard shows nothing of this run from step "
                f"{row.step:,} on, metrics.jsonl still does"
            )
        return None

    def close(self) -> None:
        """The same rows are in metrics.jsonl: a disk that fails now is no reason to lose anything else."""
        with contextlib.suppress(OSError):
            self._writer.close()
