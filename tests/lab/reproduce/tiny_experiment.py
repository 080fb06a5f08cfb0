"""An experiment whose runs take a second each, and somebody who watches it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dqrm_cpu.comm.transport import SingleTransport, Transport
from dqrm_cpu.config import Config
from dqrm_cpu.config.setting import Value
from dqrm_cpu.lab.reproduce.experiments.definition import Compression, Experiment, Family, Show, Variant
from dqrm_cpu.lab.reproduce.plan import Job, ReproduceRequest
from dqrm_cpu.lab.reproduce.runner import JobContext
from dqrm_cpu.lab.reproduce.size_presets import SizePreset

_SETTINGS: dict[str, Value] = {
    "model.table_rows": (40, 3, 500),
    "model.embedding_dim": 6,
    "model.bottom_mlp": (9, 6),
    "model.top_mlp": (11, 1),
    "data.train_rows": 640,
    "data.validation_rows": 200,
    "data.test_rows": 200,
    "train.batch_size": 32,
    "train.log_every": 5,
}
TINY = SizePreset("tiny", "for tests", {Family.KAGGLE: "demo"}, {Family.KAGGLE: _SETTINGS}, {5: 2}, caps_rows=True)

FP32 = Variant("FP32", {"quant.method": "none"})
EXPERIMENT = Experiment(
    "tiny",
    "A tiny table",
    "Nothing to see.",
    (
        FP32,
        Variant("PTQ", {"quant.method": "none"}, compression=Compression.PER_TABLE),
        Variant("row-wise", {"quant.method": "none"}, compression=Compression.ROW_WISE),
        Variant("DQRM", {"quant.method": "dqrm"}),
    ),
    "FP32",
    shows=(Show.SIZE, Show.LOSS, Show.MS_PER_STEP),
)


def request_in(out: Path, seeds: int = 1, source: str = "synthetic") -> ReproduceRequest:
    return ReproduceRequest(TINY, source, tuple(range(1, seeds + 1)), out)


@dataclass
class Watcher:
    """Collects the messages of a runner."""

    begun: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def job_started(self, job: Job, done: int, total: int, left_s: float) -> None:
        self.begun.append(f"{job.label} {job.seed}")

    def job_printed(self, line: str) -> None:
        self.lines.append(line)


@contextmanager
def one_process(config: Config) -> Iterator[Transport]:
    yield SingleTransport()


def job_context(out: Path, watcher: Watcher) -> JobContext:
    return JobContext(out, {}, one_process, watcher)
