"""On which cores, with which libraries and whose memory a step is measured."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dqrm_cpu.errors import DeviceError
from dqrm_cpu.lab.scaling.core_bindings import core_bindings, core_counts, core_places, installed_libraries


def two_sockets(root: Path, cores: int) -> None:
    """Plants two sockets of `cores` cores with two threads each; the second threads are numbered behind all cores."""
    for cpu in range(4 * cores):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        core = cpu % (2 * cores)
        for name, value in (("physical_package_id", core // cores), ("core_id", core % cores), ("die_id", 0)):
            (folder / name).write_text(f"{value}\n")


def test_a_core_is_taken_once_and_sockets_one_after_the_other(tmp_path: Path) -> None:
    two_sockets(tmp_path, 3)
    found = core_places(range(12), tmp_path)
    assert [(place.socket, place.cpu) for place in found] == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (1, 5)]
    assert [place.cpu for place in core_places((2, 5, 8, 9), tmp_path)] == [2, 5, 9]


def test_the_cores_of_this_machine_are_among_those_that_it_may_use() -> None:
    affinity = os.sched_getaffinity(0)
    assert {place.cpu for place in core_places(tuple(affinity))} <= affinity


@pytest.mark.parametrize(
    ("of_sockets", "expected"),
    [([1], (1,)), ([2], (1, 2)), ([6], (1, 2, 4, 6)), ([8], (1, 2, 4, 8)), ([56, 56], (1, 2, 4, 8, 16, 32, 56, 112))],
)
def test_cores_double_within_a_socket(of_sockets: list[int], expected: tuple[int, ...]) -> None:
    assert core_counts(of_sockets) == expected


def test_all_cores_are_measured_with_each_library_and_with_memory_of_all_nodes(tmp_path: Path) -> None:
    two_sockets(tmp_path, 2)
    found = core_bindings(core_places(range(8), tmp_path), [("jemalloc", "libjemalloc.so.2")], num_nodes=2)
    assert [(one.name, one.cpus, one.sockets) for one in found] == [
        ("1_core", (0,), 1),
        ("2_cores", (0, 1), 1),
        ("4_cores_2_sockets", (0, 1, 2, 3), 2),
        ("4_cores_2_sockets_jemalloc", (0, 1, 2, 3), 2),
        ("4_cores_2_sockets_interleaved", (0, 1, 2, 3), 2),
    ]
    assert [one.is_usual for one in found] == [True, True, True, False, False]
    assert (found[3].preload, found[4].interleaved) == ("libjemalloc.so.2", True)


def test_a_library_beside_python_is_preferred(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libiomp5.so").write_text("")
    assert ("iomp5", str(tmp_path / "lib" / "libiomp5.so")) in list(installed_libraries(tmp_path))


_INTERLEAVE = """
from dqrm_cpu.lab.scaling.bound_process import interleave_memory
interleave_memory([0])
print(open("/proc/self/numa_maps").read().split()[1])
"""


@pytest.mark.long
def test_the_kernel_interleaves_the_memory_of_a_process() -> None:
    done = subprocess.run([sys.executable, "-c", _INTERLEAVE], capture_output=True, text=True)
    assert done.stdout == "interleave:0\n" or "memory cannot be interleaved here" in done.stderr


def test_nodes_that_do_not_exist_are_refused() -> None:
    from dqrm_cpu.lab.scaling.bound_process import interleave_memory

    with pytest.raises(DeviceError, match="set_mempolicy"):
        interleave_memory([63])
