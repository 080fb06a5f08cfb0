"""Training with several real ranks on this machine: processes that meet over gloo, ended together."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from dqrm_cpu.config import Config
from dqrm_cpu.errors import CommError
from dqrm_cpu.train.interrupt import StopRequest
from dqrm_cpu.train.result import Interrupted

_LAUNCHERS = ("PMI", "MPI_", "I_MPI_", "HYDRA_", "OMPI_", "SLURM_", "TORCHELASTIC_")
_LOOPBACK = "127.0.0.1"
_POLL_S = 0.2
_END_S = 60
_TOLD = 2000  # characters of what a failed rank said


def train_on_ranks(config: Config, ranks: int, folder: Path) -> Interrupted | None:
    """Trains, or goes on, in `folder`; None once it is done. The ranks save when this process is asked to stop."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, StopRequest() as stop:
        settings = Path(place) / "settings.toml"
        settings.write_text(config.to_toml())
        command = [sys.executable, "-m", "dqrm_cpu", "train", "--config", str(settings)]
        command += ["--run-dir", str(folder), "--resume", "auto", "--comm.transport", "gloo"]
        errors = [(Path(place) / f"rank-{rank}.txt").open("w+") for rank in range(ranks)]
        world = _start(command, ranks, config.train.threads, errors)
        try:
            _wait(world, stop)
        finally:
            _end(world)
        if stop.requested:
            return Interrupted(folder, 0, stop.signal_name or "a signal")
        _require_success(world, errors)
    return None


def _start(command: list[str], ranks: int, threads: int, errors: Sequence[IO[str]]) -> list[subprocess.Popen[bytes]]:
    outer = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS)}
    share = threads or max((os.cpu_count() or 1) // ranks, 1)
    common = outer | {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": _LOOPBACK,
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(share),
    }
    world = []
    for rank, error in enumerate(errors):
        env = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        # Of their own session: a Ctrl-C comes here alone, and is handed on once.
        world.append(
            subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=error, start_new_session=True)
        )
    return world


def _wait(world: list[subprocess.Popen[bytes]], stop: StopRequest) -> None:
    """Until all have ended, or one has failed, or somebody asks to stop; ranks that were asked end by themselves."""
    while any(process.poll() is None for process in world):
        if stop.requested:
            _signal(world, signal.SIGTERM)
            _wait_at_most(world, _END_S)
            return
        if any(process.poll() not in (None, 0) for process in world):
            _wait_at_most(world, _END_S)
            return
        time.sleep(_POLL_S)


def _wait_at_most(world: list[subprocess.Popen[bytes]], seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while any(process.poll() is None for process in world) and time.monotonic() < end_s:
        time.sleep(_POLL_S)


def _end(world: list[subprocess.Popen[bytes]]) -> None:
    for process in world:
        if process.poll() is None:
            process.kill()
        process.wait()


def _signal(world: list[subprocess.Popen[bytes]], number: int) -> None:
    for process in world:
        if process.poll() is None:
            process.send_signal(number)


def _require_success(world: list[subprocess.Popen[bytes]], errors: Sequence[IO[str]]) -> None:
    failed = [rank for rank, process in enumerate(world) if process.returncode != 0]
    said = []
    for rank, file in enumerate(errors):
        with file:
            file.seek(0)
            said.append(file.read()[-_TOLD:].strip() if rank in failed else "")
    if failed:
        first = failed[0]
        raise CommError(f"rank {first} of {len(world)} ended with {world[first].returncode}: {said[first]}")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind((_LOOPBACK, 0))
        return int(taken.getsockname()[1])
