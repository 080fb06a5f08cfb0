"""What each rank of a job sees of its place, and what the ranks measure between them."""

import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from dqrm_cpu import __version__
from dqrm_cpu.base.hardware import Fingerprint
from dqrm_cpu.comm.transport import Transport

_CLOCK_ROUNDS = 21
_LATENCY_ROUNDS = 200
_BANDWIDTH_ROUNDS = 5
_BANDWIDTH_PART_BYTES = 8 * 2**20


@dataclass(frozen=True)
class RankFacts:
    """One rank's place in the job."""

    rank: int
    host: str
    version: str
    cpu_model: str
    affinity: tuple[int, ...]
    usable_cores: int
    omp_num_threads: str  # as the environment has it; empty where it does not
    numa_nodes: tuple[int, ...]  # those whose CPUs this rank may use
    memory_available_bytes: int
    disk_free_bytes: int  # where the run folder will be; -1 where that cannot be read
    clock_offset_s: float  # against rank 0
    sees_run_folder: bool  # reads there what rank 0 wrote


@dataclass(frozen=True)
class LinkFacts:
    """Medians over rounds in which all ranks took part at once."""

    latency_s: float  # a gather of 8 bytes
    bandwidth_bytes_per_s: float  # that a rank sends in an exchange of all with all


@dataclass(frozen=True)
class JobFacts:
    """The whole job, the same on every rank."""

    transport: str
    reason: str
    ranks: tuple[RankFacts, ...]
    link: LinkFacts

    @property
    def hosts(self) -> dict[str, list[RankFacts]]:
        """Ranks by host, in the order of their first rank."""
        hosts: dict[str, list[RankFacts]] = {}
        for rank in self.ranks:
            hosts.setdefault(rank.host, []).append(rank)
        return hosts


def read_job(transport: Transport, machine: Fingerprint, folder: Path) -> JobFacts:
    """Reads and measures; every rank calls it. `folder` is where runs will be kept; it is made if it is not there."""
    mine = _read_rank(transport, machine, folder)
    payload = np.frombuffer(msgspec.json.encode(mine), dtype=np.uint8)
    ranks = tuple(msgspec.json.decode(part.tobytes(), type=RankFacts) for part in transport.allgatherv(payload))
    return JobFacts(transport.name, transport.reason, ranks, _measure(transport))


def _read_rank(transport: Transport, machine: Fingerprint, folder: Path) -> RankFacts:
    allowed = set(machine.affinity)
    sees = _sees_what_first_wrote(transport, folder)
    return RankFacts(
        rank=transport.rank,
        host=socket.gethostname(),
        version=__version__,
        cpu_model=machine.cpu_model,
        affinity=machine.affinity,
        usable_cores=machine.usable_cores,
        omp_num_threads=os.environ.get("OMP_NUM_THREADS", ""),
        numa_nodes=tuple(node.number for node in machine.numa_nodes if allowed & set(node.cpus)),
        memory_available_bytes=machine.memory_available_bytes,
        disk_free_bytes=_disk_free(folder),
        clock_offset_s=_clock_offset(transport),
        sees_run_folder=sees,
    )


def _sees_what_first_wrote(transport: Transport, folder: Path) -> bool:
    """Tells whether this rank sees a word that rank 0 writes and no other run can have written; rank 0 removes it."""
    word = secrets.token_hex(16)
    path = folder / f".doctor-{word}"
    written = False
    if transport.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(word)
            written = True
        except OSError:
            written = False  # no rank will see it, and the check says so
    word = str(transport.broadcast_json(word))
    try:
        sees = (folder / f".doctor-{word}").read_text() == word
    except OSError:
        sees = False
    transport.barrier()
    if written:
        path.unlink()
    return sees


def _disk_free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return -1


def _clock_offset(transport: Transport) -> float:
    """Ranks leave a barrier at almost the same moment: what their clocks say then differs by their offset."""
    offsets = []
    for _ in range(_CLOCK_ROUNDS):
        transport.barrier()
        clocks = transport.allgather_small(np.array([time.time()]))[:, 0]
        offsets.append(float(clocks[transport.rank] - clocks[0]))
    return median(offsets)


def _measure(transport: Transport) -> LinkFacts:
    message = np.zeros(1, dtype=np.float64)
    latency = _median_seconds(transport, _LATENCY_ROUNDS, lambda: transport.allgather_small(message))
    if transport.size == 1:
        return LinkFacts(latency, float("inf"))
    parts = np.zeros((transport.size, _BANDWIDTH_PART_BYTES), dtype=np.uint8)
    seconds = _median_seconds(transport, _BANDWIDTH_ROUNDS, lambda: transport.alltoall(parts))
    return LinkFacts(latency, _BANDWIDTH_PART_BYTES * (transport.size - 1) / seconds)


def _median_seconds(transport: Transport, rounds: int, action: Callable[[], object]) -> float:
    """Times the slowest rank; the first call, which opens connections, does not count."""
    action()
    transport.barrier()
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        samples.append(time.perf_counter() - start)
    return float(transport.allgather_small(np.array([median(samples)])).max())
