"""The cores of a machine and the settings under which they are measured: how many, on which sockets, what is loaded."""

import ctypes.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

from dqrm_cpu.base.cgroup import read_if_there

ALLOCATORS = ("tcmalloc", "tcmalloc_minimal", "jemalloc")
OPENMP_RUNTIMES = ("iomp5", "omp")


@dataclass(frozen=True)
class CorePlace:
    """A core that this process may use, by the first of its logical CPUs."""

    socket: int
    cpu: int


@dataclass(frozen=True)
class CoreBinding:
    """One setting: the cores that a step runs on, libraries preloaded, and where its memory comes from."""

    name: str
    cpus: tuple[int, ...]
    sockets: int
    preload: str = ""  # path or soname; empty: the libraries as they are installed
    interleaved: bool = False  # pages of memory from all nodes in turn, instead of from that of who touches them first

    @property
    def cores(self) -> int:
        return len(self.cpus)

    @property
    def is_usual(self) -> bool:
        """Says whether this binding sets nothing but the cores that it runs on."""
        return not self.preload and not self.interleaved


def core_places(affinity: Sequence[int], root: Path = Path("/")) -> tuple[CorePlace, ...]:
    """Returns one logical CPU of each core among `affinity`, socket by socket; `root` stands in for that of /sys."""
    first: dict[tuple[int, str, str], int] = {}
    for cpu in sorted(affinity):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        socket = read_if_there(topology / "physical_package_id").strip()
        core = read_if_there(topology / "core_id").strip() or f"cpu{cpu}"
        die = read_if_there(topology / "die_id").strip()
        first.setdefault((int(socket or 0), die, core), cpu)
    return tuple(sorted((CorePlace(key[0], cpu) for key, cpu in first.items()), key=lambda at: (at.socket, at.cpu)))


def core_counts(of_sockets: Sequence[int]) -> tuple[int, ...]:
    """Returns how many cores are measured: powers of two within the first socket, then whole sockets."""
    powers = [1 << power for power in range(of_sockets[0].bit_length()) if 1 << power < of_sockets[0]]
    return (*powers, *accumulate(of_sockets))


def core_bindings(
    places: Sequence[CorePlace], libraries: Sequence[tuple[str, str]], num_nodes: int
) -> tuple[CoreBinding, ...]:
    """Returns all settings: numbers of cores first, then on all cores each library, and memory of all nodes in turn."""
    of_sockets = [len(list(group)) for _, group in groupby(places, key=lambda place: place.socket)]
    usual = [_binding(places[:count]) for count in core_counts(of_sockets)]
    whole = usual[-1]
    found = [
        CoreBinding(f"{whole.name}_{name}", whole.cpus, whole.sockets, preload=library) for name, library in libraries
    ]
    if num_nodes > 1:
        found.append(CoreBinding(f"{whole.name}_interleaved", whole.cpus, whole.sockets, interleaved=True))
    return (*usual, *found)


def _binding(places: Sequence[CorePlace]) -> CoreBinding:
    sockets = len({place.socket for place in places})
    name = f"{len(places)}_core{'s' if len(places) > 1 else ''}{f'_{sockets}_sockets' if sockets > 1 else ''}"
    return CoreBinding(name, tuple(place.cpu for place in places), sockets)


def installed_libraries(prefix: Path = Path(sys.prefix)) -> Iterator[tuple[str, str]]:
    """Yields allocators and OpenMP runtimes that can be preloaded: those beside Python, else those of the system."""
    for name in (*ALLOCATORS, *OPENMP_RUNTIMES):
        beside = sorted((prefix / "lib").glob(f"lib{name}.so*"))
        library = str(beside[0]) if beside else ctypes.util.find_library(name)
        if library:
            yield name, library
