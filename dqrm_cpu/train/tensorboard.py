"""Rows of metrics for TensorBoard, where it is installed and asked for."""

from pathlib import Path

from dqrm_cpu.errors import DeviceError
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
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, row: MetricsRow) -> None:
        for name, value in row.to_json().items():
            if name not in ("step", "phase", "examples") and isinstance(value, int | float):
                self._writer.add_scalar(f"{row.phase}/{name}", value, row.step)

    def close(self) -> None:
        self._writer.close()
