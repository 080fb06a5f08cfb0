"""What this machine is: recorded with every run, so that a number is never without its hardware."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dqrm_cpu.base.cgroup import read_cgroup, read_if_there, threads_at_once
from dqrm_cpu.base.code_version import installed_version

ISA_LEVELS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
"""Instruction sets that decide which code runs, weakest first, as the kernel spells them."""

PACKAGES = ("torch", "numba", "numpy", "mpi4py", "impi-rt", "oneccl-devel", "intel-extension-for-pytorch")
"""Distributions whose version changes speed or results."""

_CPU_FOLDER = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Cache:
    """A cache of the first CPU this process may use."""

    level: int
    kind: str  # Data, Instruction, Unified
    size_kib: int
    shared_by_cpus: int


@dataclass(frozen=True)
class NumaNode:
    """A memory node with its CPUs."""

    number: int
    cpus: tuple[int, ...]
    memory_bytes: int


@dataclass(frozen=True)
class Package:
    """An installed distribution; `version` is None where it is not installed."""

    name: str
    version: str | None


@dataclass(frozen=True)
class Fingerprint:
    """The machine as this process sees it."""

    cpu_model: str
    architecture: str
    isa: tuple[str, ...]  # those of ISA_LEVELS that the CPU has
    sockets: int
    cores: int
    logical_cpus: int
    affinity: tuple[int, ...]
    cpu_quota: float | None  # in cores
    numa_nodes: tuple[NumaNode, ...]
    memory_total_bytes: int  # a control group's limit respected
    memory_available_bytes: int
    memory_limit_bytes: int | None  # the control group's
    huge_pages: str  # always, madvise, never; empty when the kernel does not say
    caches: tuple[Cache, ...]
    kernel: str
    python: str
    packages: tuple[Package, ...]
    gpus: tuple[str, ...]

    @property
    def usable_cores(self) -> int:
        """Threads that can really run at once: affinity, cut by the control group's quota."""
        return threads_at_once(len(self.affinity), self.cpu_quota)

    def version(self, package: str) -> str | None:
        """Returns the installed version of one of PACKAGES."""
        return next((entry.version for entry in self.packages if entry.name == package), None)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return asdict(self)


def fingerprint(root: Path = Path("/")) -> Fingerprint:
    """Reads the machine. `root` stands in for the root of the file system where /proc and /sys are read."""
    cpu_info = read_if_there(root / "proc/cpuinfo")
    limits = read_cgroup(root)
    total, available = _memory(root)
    affinity = tuple(sorted(os.sched_getaffinity(0)))
    sockets, cores, logical_cpus = _topology(root)
    return Fingerprint(
        cpu_model=_field(cpu_info, "model name") or platform.machine(),
        architecture=platform.machine(),
        isa=_isa(cpu_info),
        sockets=sockets,
        cores=cores,
        logical_cpus=logical_cpus,
        affinity=affinity,
        cpu_quota=limits.cpu_quota,
        numa_nodes=_numa_nodes(root),
        memory_total_bytes=min(total, limits.memory_limit_bytes or total),
        memory_available_bytes=min(available, available if (free := limits.memory_free_bytes) is None else free),
        memory_limit_bytes=limits.memory_limit_bytes,
        huge_pages=_huge_pages(root),
        caches=_caches(root, affinity[0]),
        kernel=platform.release(),
        python=platform.python_version(),
        packages=tuple(Package(name, installed_version(name)) for name in PACKAGES),
        gpus=_gpus(),
    )


def has_bf16_products(isa: Sequence[str]) -> bool:
    """Tells whether a CPU multiplies in BF16; torch would emulate it on another, many times slower than FP32."""
    return not {"avx512_bf16", "amx_tile"}.isdisjoint(isa)


def has_int8_products(isa: Sequence[str]) -> bool:
    """Tells whether a CPU sums four products of bytes in one instruction; others need several."""
    return "avx512_vnni" in isa


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Reads the kernel's way of writing sets of CPUs: 0-3,8."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus += range(int(first), int(last or first) + 1)
    return tuple(cpus)


def _isa(cpu_info: str) -> tuple[str, ...]:
    flags = set(_field(cpu_info, "flags").split())
    return tuple(level for level in ISA_LEVELS if level in flags)


def _topology(root: Path) -> tuple[int, int, int]:
    """Returns the numbers of sockets, cores and logical CPUs that are online."""
    places = []
    for cpu in _numbered(root / _CPU_FOLDER, "cpu"):
        socket = read_if_there(cpu / "topology/physical_package_id")
        if socket:
            places.append((socket, read_if_there(cpu / "topology/core_id"), read_if_there(cpu / "topology/die_id")))
    online = len(places) or os.cpu_count() or 1
    return len({socket for socket, _, _ in places}) or 1, len(set(places)) or online, online


def _numa_nodes(root: Path) -> tuple[NumaNode, ...]:
    nodes = []
    for folder in _numbered(root / "sys/devices/system/node", "node"):
        total = re.search(r"MemTotal:\s+(\d+) kB", read_if_there(folder / "meminfo"))
        memory_bytes = int(total.group(1)) * 1024 if total else 0
        nodes.append(NumaNode(int(folder.name[4:]), parse_cpu_list(read_if_there(folder / "cpulist")), memory_bytes))
    return tuple(nodes)


def _memory(root: Path) -> tuple[int, int]:
    info = read_if_there(root / "proc/meminfo")
    total, available = (int((_field(info, name) or "0 kB").split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return total, available


def _huge_pages(root: Path) -> str:
    chosen = re.search(r"\[(\w+)\]", read_if_there(root / "sys/kernel/mm/transparent_hugepage/enabled"))
    return chosen.group(1) if chosen else ""


def _caches(root: Path, cpu: int) -> tuple[Cache, ...]:
    caches = []
    for folder in _numbered(root / f"{_CPU_FOLDER}/cpu{cpu}/cache", "index"):
        size = read_if_there(folder / "size").removesuffix("K")
        if size.isdigit():
            shared = len(parse_cpu_list(read_if_there(folder / "shared_cpu_list")))
            caches.append(
                Cache(int(read_if_there(folder / "level")), read_if_there(folder / "type"), int(size), shared)
            )
    return tuple(caches)


def _gpus() -> tuple[str, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _numbered(folder: Path, prefix: str) -> list[Path]:
    """Lists cpu0, cpu1, ... in the order of their numbers."""
    if not folder.is_dir():
        return []
    folders = [path for path in folder.iterdir() if re.fullmatch(rf"{prefix}\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name[len(prefix) :]))


def _field(text: str, name: str) -> str:
    """Returns the value of the first line `name : value`."""
    match = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)
    return match.group(1).strip() if match else ""
