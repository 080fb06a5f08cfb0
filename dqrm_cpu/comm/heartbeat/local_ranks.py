"""The other ranks of this host as processes: a rank that ends the job also ends those that cannot end themselves."""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dqrm_cpu.comm.transport import Transport

_STOPPED = "T"


class LocalProcess(NamedTuple):
    """A process of this host; its start time tells it from a later process with the same number."""

    pid: int
    started_ticks: int


class LocalRanks:
    """The processes of the other ranks of this host, by rank, and whether all ranks run on it."""

    def __init__(self, processes: dict[int, LocalProcess], on_one_host: bool) -> None:
        self._processes = processes
        self.on_one_host = on_one_host

    def kill(self, silent: Collection[int]) -> list[int]:
        """Kills the local ranks that are stopped, and those of `silent`; returns them.

        A stopped process reads no message and no polite signal, and a launcher may wait for it without end.
        """
        killed = []
        for rank, process in self._processes.items():
            status = _status(process.pid)
            if status is None or status[1] != process.started_ticks:
                continue
            if status[0] == _STOPPED or rank in silent:
                with contextlib.suppress(OSError):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(rank)
        return killed


def find_local_ranks(transport: Transport) -> LocalRanks:
    """Asks every rank where it runs; every rank calls it."""
    status = _status(os.getpid())
    mine = [socket.gethostname(), _system(), os.getpid(), status[1] if status else 0]
    payload = np.frombuffer(json.dumps(mine).encode(), dtype=np.uint8)
    everyone = [json.loads(message.tobytes()) for message in transport.allgatherv(payload)]
    processes = {
        rank: LocalProcess(pid, started)
        for rank, (host, system, pid, started) in enumerate(everyone)
        if [host, system] == mine[:2] and pid != os.getpid()
    }
    return LocalRanks(processes, on_one_host=len({place[0] for place in everyone}) == 1)


def _system() -> str:
    """Differs between kernels, and between containers that number their processes apart."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    return ""


def _status(pid: int) -> tuple[str, int] | None:
    """Reads a process's state and start time from /proc; None where it tells neither."""
    try:
        # The name before them, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def is_compiling() -> bool:
    """Says whether a thread of this process compiles or loads a numba kernel; does not load numba to find out."""
    lock = getattr(getattr(sys.modules.get("numba.core.compiler_lock"), "global_compiler_lock", None), "_lock", None)
    if lock is None:
        return False
    # numba's own lock says only whether the thread that asks holds it.
    if lock.acquire(blocking=False):
        lock.release()
        return False
    return True
