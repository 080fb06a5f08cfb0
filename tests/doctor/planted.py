"""A machine to plant facts into."""

import dataclasses

from dqrm_cpu.base.hardware import Cache, Fingerprint, NumaNode, Package

GB = 10**9

XEON = Fingerprint(
    cpu_model="Xeon",
    architecture="x86_64",
    isa=("avx2", "avx512f"),
    sockets=2,
    cores=16,
    logical_cpus=16,
    affinity=tuple(range(8)),
    cpu_quota=None,
    numa_nodes=(NumaNode(0, tuple(range(8)), 8 * GB), NumaNode(1, tuple(range(8, 16)), 8 * GB)),
    memory_total_bytes=16 * GB,
    memory_available_bytes=10 * GB,
    memory_limit_bytes=None,
    huge_pages="madvise",
    caches=(Cache(3, "Unified", 32 * 1024, 8), Cache(1, "Data", 48, 1)),
    kernel="6.1",
    python="3.11",
    packages=(Package("torch", "2.13.0+cpu"),),
    gpus=(),
)


def machine(**changes: object) -> Fingerprint:
    return dataclasses.replace(XEON, **changes)  # type: ignore[arg-type]
