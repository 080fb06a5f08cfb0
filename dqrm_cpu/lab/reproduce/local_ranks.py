"""Training with several real ranks on this machine: processes that meet over gloo, ended together."""

import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from dqrm_cpu.base.signals import StopRequest
from dqrm_cpu.config import Config
from dqrm_cpu.errors import CommError
from dqrm_cpu.train.state import Interrupted

_LAUNCHERS = ("PMI", "MPI_", "I_MPI_", "HYDRA_", "OMPI_", "SLURM_", "TORCHELASTIC_")
_LOOPBACK = "127.0.0.1"
_POLL_S = 0.2
_END_S = 60
_SHOWN = 2000  # characters of what a failed rank printed


def train_on_ranks(config: Config, ranks: int, folder: Path) -> Interrupted | None:
    """Trains or resumes in `folder`; None once it is done. The ranks save when this process is asked to stop."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stop = stack.enter_context(StopRequest())
        settings = place / "settings.toml"
        settings.write_text(config.to_toml())
        command = [sys.executable, "-m", "dqrm_cpu", "train", "--config", str(settings)]
        command += ["--run-dir", str(folder), "--resume", "auto", "--comm.transport", "gloo"]
        errors = [stack.enter_context((place / f"rank-{rank}.txt").open("w+")) for rank in range(ranks)]
        processes = _start(command, config.train.threads, errors)
        try:
            _wait(processes, stop)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if stop.requested:
            return Interrupted(folder, 0, stop.signal_name or "a signal")
        _require_success(processes, errors)
    return None


def _start(command: list[str], threads: int, errors: Sequence[IO[str]]) -> list[subprocess.Popen[bytes]]:
    outer = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS)}
    common = outer | {
        "WORLD_SIZE": str(len(errors)),
        "MASTER_ADDR": _LOOPBACK,
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(threads or max((os.cpu_count() or 1) // len(errors), 1)),
    }
    processes = []
    for rank, error in enumerate(errors):
        env = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        # Of their own session: a Ctrl-C comes here alone, and is handed on once.
        processes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=error, start_new_session=True)
        )
    return processes


def _wait(processes: list[subprocess.Popen[bytes]], stop: StopRequest) -> None:
    """Waits for all ranks; once one has failed or somebody asks to stop, only so long as the others need to end."""
    end_s = math.inf
    while any(process.poll() is None for process in processes) and time.monotonic() < end_s:
        if end_s == math.inf and (stop.requested or any(process.poll() for process in processes)):
            end_s = time.monotonic() + _END_S
            for process in processes if stop.requested else ():
                process.terminate()
        time.sleep(_POLL_S)


def _require_success(processes: list[subprocess.Popen[bytes]], errors: Sequence[IO[str]]) -> None:
    for rank, (process, error) in enumerate(zip(processes, errors, strict=True)):
        if process.returncode != 0:
            error.seek(0)
            printed = error.read()[-_SHOWN:].strip()
            raise CommError(f"rank {rank} of {len(processes)} ended with {process.returncode}: {printed}")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind((_LOOPBACK, 0))
        return int(taken.getsockname()[1])
