"""What may run on several ranks does this before the work: meet, set threads, look whether it fits."""

import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dqrm_cpu import __version__
from dqrm_cpu.base.cgroup import default_threads
from dqrm_cpu.base.hardware import Fingerprint, fingerprint, has_bf16_products, has_int8_products
from dqrm_cpu.base.memory import format_distinct_sizes
from dqrm_cpu.comm.sharding.placement import most_held_rows
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.comm.transports.gpus import gpu_in_use, gpu_name, require_distinct_gpus, take_gpu
from dqrm_cpu.comm.transports.launch import detect_launch
from dqrm_cpu.comm.transports.selection import open_transport
from dqrm_cpu.config import Config
from dqrm_cpu.config.rules import conflicts
from dqrm_cpu.errors import DeviceError
from dqrm_cpu.model.size import MemoryEstimate, estimate_memory

_LOGGER = logging.getLogger(__name__)

_GB = 1e9


@contextmanager
def opened_transport(config: Config, note: Callable[[str], object] = _LOGGER.info) -> Iterator[Transport]:
    """Opens the transport between the ranks of a run, once this process knows that it can do its part.

    `note` is told on the first rank what carries the gradients. Torch has as many threads inside as the run, and
    outside as before.
    """
    _require_device(config)
    comm = config.comm
    with ExitStack() as stack:
        opening = open_transport(comm.transport, comm.simulated_ranks, comm.timeout, overlap=comm.overlap)
        transport = stack.enter_context(opening)
        machine = fingerprint()
        cores = _own_cores(transport, machine)
        threads = config.train.threads or min(cores, default_threads(machine.usable_cores, os.environ))
        stack.enter_context(threads_of_torch(threads))
        _require_own_device(config, transport)
        _require_memory(with_tables_placed(config, transport), transport, machine)
        if transport.rank == 0 and (transport.size > 1 or config.comm.transport != "auto"):
            ranks = f"{transport.size} ranks over {transport.name}" if transport.size > 1 else "1 process"
            note(f"{ranks}: {transport.reason}")
        yield transport


def with_tables_placed(config: Config, transport: Transport) -> Config:
    """Returns the configuration with a decision in the place of comm.tables auto, the same on every rank.

    Tables are sharded where a host's memory does not hold them for all of its ranks, and other settings allow it.
    """
    if config.comm.tables != "auto":
        return config
    replicated, sharded = (replace(config, comm=replace(config.comm, tables=way)) for way in ("replicate", "shard"))
    estimate, here = _needed_here(replicated, transport)
    fits_here = estimate.total_bytes * here <= fingerprint().memory_available_bytes
    fits = bool(transport.allgather_small(np.array([fits_here])).all())
    return replicated if fits or transport.size == 1 or any(conflicts(sharded)) else sharded


def gathered_environment(transport: Transport) -> dict[str, Any]:
    """Returns the content of environment.json: the machine of rank 0, and where every rank runs."""
    machine = fingerprint()
    place = {
        "rank": transport.rank,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "affinity": list(machine.affinity),
        "threads": torch.get_num_threads(),
    }
    return {
        "dqrm_cpu": __version__,
        "command": sys.argv,
        "launcher": detect_launch(os.environ).launcher,
        "transport": {"name": transport.name, "reason": transport.reason},
        "ranks": gathered(transport, place),
        "machine": machine.as_dict(),
    }


def gathered(transport: Transport, value: object) -> list[Any]:
    """Gathers the value that each rank passes, in the order of ranks; every rank calls it."""
    payload = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
    return [json.loads(part.tobytes()) for part in transport.allgatherv(payload)]


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """Has torch compute with so many threads inside, and with as many as before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _own_cores(transport: Transport, machine: Fingerprint) -> int:
    """Counts the cores of this rank's threads, which those of other ranks do not use."""
    if transport.size == 1:
        return machine.usable_cores
    return own_cores(gathered(transport, [socket.gethostname(), *machine.affinity]), transport.rank, machine.cpu_quota)


def own_cores(places: Sequence[Sequence[Any]], rank: int, cpu_quota: float | None) -> int:
    """Counts the cores of a rank where each place is a host's name, then the cores that a rank there may use.

    Launchers may leave all cores to every rank of a host. Each takes its part of them then, and of a control group's
    quota: threads that wait for each other would spin on the cores of threads that are waited for.
    """
    host, *mine = places[rank]
    here = [frozenset(cores) for name, *cores in places if name == host]
    sharing = [cores for cores in here if not cores.isdisjoint(mine)]
    cores = min(len(mine), len(frozenset().union(*sharing)) // len(sharing))
    return max(1, cores if cpu_quota is None else min(cores, int(cpu_quota / len(here))))


def _require_device(config: Config) -> None:
    if config.device != "cuda":
        _require_products(config)
        return
    if not torch.cuda.is_available():
        built = (
            f"torch {torch.__version__} finds none"
            if torch.version.cuda
            else f"torch {torch.__version__} is a CPU build"
        )
        raise DeviceError(f"--device cuda needs an NVIDIA GPU, and {built}; leave the option out to train on the CPU")
    take_gpu(detect_launch(os.environ))


def _require_own_device(config: Config, transport: Transport) -> None:
    """Refuses ranks that share a GPU: they would only wait for each other."""
    if config.device == "cuda" and transport.size > 1:
        require_distinct_gpus(gathered(transport, gpu_name(gpu_in_use())))


def _require_products(config: Config) -> None:
    """Refuses a precision without instructions for it: BF16 would be emulated, many times slower than FP32."""
    isa, precision = fingerprint().isa, config.train.precision
    for name, needed, has_products in (
        ("bf16", "AVX512-BF16 or AMX", has_bf16_products),
        ("int8", "AVX512-VNNI", has_int8_products),
    ):
        if precision == name and not has_products(isa):
            raise DeviceError(
                f"--train.precision {name} needs {needed}, and this CPU has {', '.join(isa) or 'neither'}; "
                "leave the option out to train in fp32"
            )


def _needed_here(config: Config, transport: Transport) -> tuple[MemoryEstimate, int]:
    """Estimates the memory of a rank, the one that holds most, and counts the ranks of this host."""
    hosts = gathered(transport, socket.gethostname())
    estimate = estimate_memory(config, transport.size, most_held_rows(config, transport.size))
    return estimate, hosts.count(socket.gethostname())


def _require_memory(config: Config, transport: Transport, machine: Fingerprint) -> None:
    """Refuses ranks that do not fit: every one of a host needs tables of its own."""
    estimate, here = _needed_here(config, transport)
    need, free = estimate.total_bytes * here, machine.memory_available_bytes
    if config.device == "cpu" and need > free:
        parts = ", ".join(f"{name} {size / _GB:.2f}" for name, size in estimate.parts.items() if size >= 0.05 * _GB)
        ranks = f" x {here} ranks on this host" if here > 1 else ""
        needed, there = format_distinct_sizes(need, free)
        most = f" ({parts} GB{ranks})" if parts else ranks
        sharded = "" if config.comm.tables == "shard" or transport.size == 1 else "--comm.tables shard, "
        raise DeviceError(
            f"{needed} of memory are needed{most} and {there} are free on "
            f"{socket.gethostname()}; use {sharded}fewer ranks per host, smaller --model.table-rows, or a larger "
            "machine"
        )
