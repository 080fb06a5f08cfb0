"""What a finished run leaves in result.json."""

from dataclasses import asdict, dataclass
from pathlib import Path

from dqrm_cpu.export.pack import PackedFiles
from dqrm_cpu.model.size import ModelBytes
from dqrm_cpu.train.checkpoint_manifest import JSON
from dqrm_cpu.train.metrics import ClickMetrics


@dataclass(frozen=True)
class PartResult:
    """Metrics of one part of the data at the checkpoint chosen on validation, and at the last one."""

    best: ClickMetrics
    last: ClickMetrics


@dataclass(frozen=True)
class Result:
    """A finished training run."""

    run_dir: Path | None
    world_size: int
    simulated_ranks: int
    steps: int
    best_step: int
    validation: PartResult
    test: PartResult
    model_bytes: ModelBytes
    ms_per_step: float
    bytes_per_step: float
    skipped_batches: int = 0  # that were not sound; their steps count in `steps`
    packed_files: PackedFiles | None = None  # of the chosen checkpoint; None: an FP32 model

    def as_dict(self) -> dict[str, JSON]:
        """The content of result.json."""
        return {
            "world_size": self.world_size,
            "simulated_ranks": self.simulated_ranks,
            "steps": self.steps,
            "best_step": self.best_step,
            "skipped_batches": self.skipped_batches,
            "validation": _part(self.validation),
            "test": _part(self.test),
            "model_bytes": {
                "fp32": self.model_bytes.fp32,
                "int4": self.model_bytes.int4,
                "packed": self.model_bytes.packed,
            },
            "packed_files": asdict(self.packed_files) if self.packed_files else None,
            "ms_per_step": self.ms_per_step,
            "bytes_per_step": self.bytes_per_step,
        }


@dataclass(frozen=True)
class Interrupted:
    """A run that stopped early at somebody's wish, after saving."""

    run_dir: Path | None
    step: int
    signal: str


def _part(part: PartResult) -> dict[str, JSON]:
    return {"best": asdict(part.best), "last": asdict(part.last)}
