"""The fingerprint: against planted files of other machines, and against this one."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.base.cgroup import CgroupLimits, read_cgroup
from dqrm_cpu.base.hardware import (
    PACKAGES,
    Cache,
    Fingerprint,
    NumaNode,
    Package,
    fingerprint,
    has_bf16_products,
    parse_cpu_list,
)

KIB, MIB, GIB = 2**10, 2**20, 2**30


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def two_socket_machine(root: Path) -> Path:
    """2 sockets of 2 cores of 2 threads; CPU n and n + 4 share a core."""
    files = {
        "proc/cpuinfo": "processor : 0\nmodel name\t: Xeon Planted\nflags\t\t: fpu avx2 avx512f amx_tile\n\n"
        "processor : 1\nmodel name\t: Another\nflags\t\t: fpu",
        "proc/meminfo": "MemTotal:       1024 kB\nMemFree: 1 kB\nMemAvailable:    512 kB",
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]",
    }
    for cpu in range(8):
        topology = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files[f"{topology}/physical_package_id"] = str(cpu % 4 // 2)
        files[f"{topology}/core_id"] = str(cpu % 2)
    for socket in range(2):
        node = f"sys/devices/system/node/node{socket}"
        files[f"{node}/cpulist"] = f"{2 * socket}-{2 * socket + 1},{2 * socket + 4}-{2 * socket + 5}"
        files[f"{node}/meminfo"] = f"Node {socket} MemTotal:  512 kB"
    first = min(os.sched_getaffinity(0))
    for index, (level, kind, size, shared) in enumerate(
        [(1, "Data", "48K", "0,4"), (2, "Unified", "2048K", "0,4"), (3, "Unified", "32768K", "0-1,4-5")]
    ):
        cache = f"sys/devices/system/cpu/cpu{first}/cache/index{index}"
        files |= {f"{cache}/level": str(level), f"{cache}/type": kind, f"{cache}/size": size}
        files[f"{cache}/shared_cpu_list"] = shared
    return plant(root, files)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Fingerprint:
    return fingerprint(two_socket_machine(tmp_path_factory.mktemp("machine")))


@pytest.fixture(scope="module")
def here() -> Fingerprint:
    return fingerprint()


def test_cpu_is_the_first_one_listed(planted: Fingerprint) -> None:
    assert planted.cpu_model == "Xeon Planted"


def test_isa_levels_are_read_from_the_flags(planted: Fingerprint) -> None:
    assert planted.isa == ("avx2", "avx512f", "amx_tile")


@pytest.mark.parametrize(
    ("isa", "has"), [(("avx2", "avx512f"), False), ((), False), (("avx512_bf16",), True), (("avx2", "amx_tile"), True)]
)
def test_bf16_products_need_instructions_of_their_own(isa: tuple[str, ...], has: bool) -> None:
    assert has_bf16_products(isa) == has


def test_threads_of_one_core_count_once(planted: Fingerprint) -> None:
    assert (planted.sockets, planted.cores, planted.logical_cpus) == (2, 4, 8)


def test_numa_nodes(planted: Fingerprint) -> None:
    assert planted.numa_nodes == (
        NumaNode(0, (0, 1, 4, 5), 512 * KIB),
        NumaNode(1, (2, 3, 6, 7), 512 * KIB),
    )


def test_caches(planted: Fingerprint) -> None:
    assert planted.caches == (
        Cache(1, "Data", 48, 2),
        Cache(2, "Unified", 2048, 2),
        Cache(3, "Unified", 32768, 4),
    )


def test_memory_and_huge_pages(planted: Fingerprint) -> None:
    assert (planted.memory_total_bytes, planted.memory_available_bytes) == (MIB, MIB // 2)
    assert planted.huge_pages == "never"


def test_memory_is_cut_to_the_limit_of_the_control_group(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/job"
    files = {"proc/self/cgroup": "0::/job", f"{group}/memory.max": str(MIB // 2)}
    root = plant(two_socket_machine(tmp_path), {**files, f"{group}/memory.current": str(MIB // 4)})
    machine = fingerprint(root)
    assert (machine.memory_limit_bytes, machine.memory_total_bytes) == (MIB // 2, MIB // 2)
    assert machine.memory_available_bytes == MIB // 4


def test_memory_of_the_machine_counts_when_the_limit_is_higher(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/job", "sys/fs/cgroup/job/memory.max": str(GIB)}
    machine = fingerprint(plant(two_socket_machine(tmp_path), files))
    assert (machine.memory_total_bytes, machine.memory_available_bytes) == (MIB, MIB // 2)


def test_missing_files_leave_a_fingerprint(tmp_path: Path) -> None:
    machine = fingerprint(tmp_path)
    assert (machine.isa, machine.numa_nodes, machine.caches, machine.huge_pages) == ((), (), (), "")
    assert machine.logical_cpus == os.cpu_count()


def test_this_machine(here: Fingerprint) -> None:
    assert here.affinity == tuple(sorted(os.sched_getaffinity(0)))
    assert 1 <= here.sockets <= here.cores <= here.logical_cpus
    assert 0 < here.memory_available_bytes <= here.memory_total_bytes
    assert here.kernel == os.uname().release


def test_installed_packages_have_versions(here: Fingerprint) -> None:
    assert tuple(package.name for package in here.packages) == PACKAGES
    assert here.version("numpy")
    assert here.version("nothing") is None


def test_fingerprint_is_plain_json(here: Fingerprint) -> None:
    plain = json.loads(json.dumps(here.as_dict()))
    assert plain["packages"] == [{"name": p.name, "version": p.version} for p in here.packages]


@pytest.mark.parametrize(
    ("quota", "cores"),
    [(None, 4), (8.0, 4), (2.0, 2), (2.5, 2), (0.5, 1)],
)
def test_usable_cores(planted: Fingerprint, quota: float | None, cores: int) -> None:
    fields = {name: getattr(planted, name) for name in planted.__dataclass_fields__}
    assert Fingerprint(**{**fields, "affinity": (0, 1, 2, 3), "cpu_quota": quota}).usable_cores == cores


def test_packages_are_found_by_name(planted: Fingerprint) -> None:
    fields = {name: getattr(planted, name) for name in planted.__dataclass_fields__}
    machine = Fingerprint(**{**fields, "packages": (Package("torch", "2.8.0"), Package("numba", None))})
    assert (machine.version("torch"), machine.version("numba")) == ("2.8.0", None)


def cpu_list(cpus: set[int]) -> str:
    """Ranges where neighbours follow each other, as the kernel writes them."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


@given(st.sets(st.integers(0, 300)))
def test_cpu_lists_are_read_as_the_kernel_writes_them(cpus: set[int]) -> None:
    assert parse_cpu_list(cpu_list(cpus)) == tuple(sorted(cpus))


UNLIMITED = CgroupLimits(None, None, None)

V2 = {
    "proc/self/cgroup": "0::/slice/job",
    "sys/fs/cgroup/slice/job/cpu.max": "max 100000",
    "sys/fs/cgroup/slice/job/memory.max": "max",
}
V1 = {
    "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n0::/",
    "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1",
    "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712",
}


@pytest.mark.parametrize("files", [{}, V1, V2], ids=["none", "v1", "v2"])
def test_no_limits(files: dict[str, str], tmp_path: Path) -> None:
    assert read_cgroup(plant(tmp_path, files)) == UNLIMITED


def test_limits_of_version_2(tmp_path: Path) -> None:
    job = "sys/fs/cgroup/slice/job"
    limits = {f"{job}/cpu.max": "150000 100000", f"{job}/memory.max": str(4 * GIB)}
    used = {f"{job}/memory.current": str(3 * GIB), f"{job}/memory.stat": f"anon 7\ninactive_file {GIB}"}
    assert read_cgroup(plant(tmp_path, V2 | limits | used)) == CgroupLimits(1.5, 4 * GIB, 2 * GIB)


def test_limits_of_version_1(tmp_path: Path) -> None:
    memory = "sys/fs/cgroup/memory/job"
    limits = {"sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "400000", f"{memory}/memory.limit_in_bytes": str(4 * GIB)}
    used = {f"{memory}/memory.usage_in_bytes": str(3 * GIB), f"{memory}/memory.stat": f"total_inactive_file {GIB}"}
    assert read_cgroup(plant(tmp_path, V1 | limits | used)) == CgroupLimits(4.0, 4 * GIB, 2 * GIB)


def test_limits_of_a_group_above_count(tmp_path: Path) -> None:
    above = {"sys/fs/cgroup/slice/cpu.max": "200000 100000", "sys/fs/cgroup/slice/job/cpu.max": "300000 100000"}
    assert read_cgroup(plant(tmp_path, V2 | above)).cpu_quota == 2.0


def test_a_path_of_the_host_is_not_needed(tmp_path: Path) -> None:
    inside = {"proc/self/cgroup": "0::/docker/abc", "sys/fs/cgroup/cpu.max": "50000 100000"}
    assert read_cgroup(plant(tmp_path, inside)).cpu_quota == 0.5
