"""Runs `bench exchange`: starts a world of ranks for each case, and gathers what its first rank left."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dqrm_cpu.bench.exchange import RANKS, ExchangeTask, make_case
from dqrm_cpu.bench.timing import Timing
from dqrm_cpu.comm.launch import NO_LAUNCHER, detect_launch
from dqrm_cpu.errors import CommError

_WORK = "dqrm_cpu.bench.exchange_work"


@dataclass(frozen=True)
class ExchangeEntry:
    """A contestant that took part; no bytes and phases where it trains whole steps."""

    name: str
    about: str
    timing: Timing
    bytes_per_step: Mapping[str, float]  # for the other ranks, by rank 0
    phases_s: Mapping[str, float]  # medians, on rank 0

    @property
    def bytes_in_all(self) -> float:
        return sum(self.bytes_per_step.values())


@dataclass(frozen=True)
class ExchangeGroup:
    """Contestants that took turns; `absent` says by name why others did not."""

    name: str
    entries: tuple[ExchangeEntry, ...]
    absent: Mapping[str, str]


@dataclass(frozen=True)
class ExchangeResult:
    """One case."""

    case: str
    about: str
    ranks: int
    transports: Mapping[str, str]  # why each was taken
    groups: tuple[ExchangeGroup, ...]

    def entries(self) -> dict[str, ExchangeEntry]:
        return {entry.name: entry for group in self.groups for entry in group.entries}

    def medians_s(self) -> dict[str, float]:
        return {name: entry.timing.median_s for name, entry in self.entries().items()}


def run_exchange_case(task: ExchangeTask) -> ExchangeResult:
    """Raises CommError with what the ranks said where they did not come to an end."""
    if detect_launch(os.environ).launcher != NO_LAUNCHER:
        raise CommError("bench exchange starts its ranks itself: call it once, without mpirun, srun or torchrun")
    with tempfile.TemporaryDirectory(prefix="dqrm-cpu-bench-") as folder:
        figures = Path(folder) / "figures.json"
        command = [*_launcher(RANKS), "-m", _WORK, json.dumps(asdict(task)), str(figures)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads)}
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode or not figures.exists():
            said = "\n  ".join(done.stderr.strip().splitlines()[-20:]) or "they said nothing"
            raise CommError(f"the ranks of bench exchange ended with status {done.returncode}:\n  {said}")
        return _result(task, json.loads(figures.read_text()))


def _launcher(ranks: int) -> Sequence[str]:
    """The start of a command that runs Python on several ranks: this environment's MPI, or torchrun without one."""
    hydra = Path(sys.executable).parent / "mpiexec.hydra"
    if hydra.exists() and importlib.util.find_spec("mpi4py") is not None:
        return [str(hydra), "-n", str(ranks), sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]


def _result(task: ExchangeTask, figures: Mapping[str, Any]) -> ExchangeResult:
    groups = tuple(
        ExchangeGroup(
            name,
            tuple(_entry(contestant, plain) for contestant, plain in group["contestants"].items()),
            group["absent"],
        )
        for name, group in figures["groups"].items()
    )
    return ExchangeResult(task.case, make_case(task).about, figures["ranks"], figures["transports"], groups)


def _entry(name: str, plain: Mapping[str, Any]) -> ExchangeEntry:
    timing = Timing(tuple(plain["samples_s"]), plain["steps_per_turn"])
    return ExchangeEntry(name, plain["about"], timing, plain.get("bytes_per_step", {}), plain.get("phases_s", {}))
