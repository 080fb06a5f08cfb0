"""Is this machine fit for that run: its processor and memory, then what is installed on it."""

import os
from collections.abc import Mapping
from pathlib import Path

from dqrm_cpu.base.cgroup import read_if_there
from dqrm_cpu.base.hardware import Fingerprint, fingerprint
from dqrm_cpu.base.wording import counted
from dqrm_cpu.config import Config
from dqrm_cpu.data.store.manifest import PART_NAMES, read_manifest
from dqrm_cpu.data.store.run_data import SYNTHETIC
from dqrm_cpu.doctor import libraries, mpi
from dqrm_cpu.doctor.finding import Finding, Verdict
from dqrm_cpu.errors import DataError
from dqrm_cpu.model.size import estimate_memory

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # override how many threads a library starts
_CROWDED_SHARE = 0.25
"""Of the time that some program waits for a core: threads of `train` then hold each other up."""

_GB = 1e9
_HUGE_PAGES_FILE = "/sys/kernel/mm/transparent_hugepage/enabled"
# Below this share of what is free, other processes and the page cache still have room.
_COMFORTABLE_SHARE = 0.9


def examine(config: Config) -> list[Finding]:
    """Gathers the facts of this machine and goes through all checks, in the order of a report."""
    machine = fingerprint()
    library, launchers = mpi.read_library(), mpi.read_launchers(os.environ.get("PATH", os.defpath))
    mpi_required = config.comm.transport == "mpi"
    return [
        check_cpu(machine),
        check_isa(machine),
        check_cores(machine),
        check_threads(machine, os.environ, config.train.threads),
        check_load(read_if_there(Path("/proc/pressure/cpu")), os.getloadavg()[0], machine.logical_cpus),
        check_numa(machine),
        check_memory(machine, config.preset, estimate_memory(config).parts),
        check_huge_pages(machine),
        libraries.check_openmp(libraries.read_openmp()),
        mpi.check_library(library, mpi_required),
        mpi.check_launcher(library, launchers, mpi_required),
        libraries.check_oneccl(machine, libraries.read_oneccl()),
        libraries.check_ipex(machine),
        libraries.check_gpu(machine, config.device),
        *check_data(config.data.source),
    ]


def check_data(source: str) -> list[Finding]:
    """Looks whether the data set can be read; generated clicks need nothing."""
    if source == SYNTHETIC:
        return []
    try:
        manifest = read_manifest(Path(source))
    except DataError as error:
        return [Finding("data", Verdict.FAIL, str(error), "--data DIR, where dqrm-cpu prepare wrote a data set")]
    rows = ", ".join(f"{manifest.num_rows(part):,} {part}" for part in PART_NAMES)
    return [Finding("data", Verdict.OK, f"{source} has {rows} rows")]


def check_cpu(machine: Fingerprint) -> Finding:
    """Shows model, sockets and the last cache."""
    last = max(machine.caches, key=lambda cache: cache.level, default=None)
    cache = f", L{last.level} {last.size_kib / 1024:g} MiB per {last.shared_by_cpus} CPUs" if last else ""
    found = f"{machine.cpu_model}, {counted(machine.sockets, 'socket')}, {counted(machine.cores, 'core')}{cache}"
    if machine.architecture != "x86_64":
        return Finding("cpu", Verdict.WARNING, f"{found} ({machine.architecture})", "use an x86-64 machine")
    return Finding("cpu", Verdict.OK, found)


def check_isa(machine: Fingerprint) -> Finding:
    """Looks for AVX-512: the kernels are written for it and fall back on what the compiler finds."""
    found = " ".join(machine.isa) or "no AVX2"
    if "avx512f" in machine.isa:
        return Finding("isa", Verdict.OK, found)
    mend = "use a Xeon Scalable (2017 or later) for full speed"
    return Finding("isa", Verdict.NOTE if "avx2" in machine.isa else Verdict.WARNING, f"{found}, no AVX-512", mend)


def check_cores(machine: Fingerprint) -> Finding:
    """Counts how many of the machine's CPUs this process may use."""
    allowed, present, quota = len(machine.affinity), machine.logical_cpus, machine.cpu_quota
    found = f"this process may use {allowed} of {present} CPUs"
    if quota is not None and quota < allowed:
        mend = f"raise the container's CPU limit, or pass --train.threads {machine.usable_cores}"
        return Finding("cores", Verdict.WARNING, f"{found}, cut to the time of {quota:g} by its control group", mend)
    if allowed == 1 and present > 1:
        # Plain mpirun may pin each rank to one core, and a batch system gives one unless asked for more.
        mend = f"taskset -c 0-{present - 1} COMMAND, or mpirun -genv I_MPI_PIN_DOMAIN=omp, or srun --cpus-per-task"
        return Finding("cores", Verdict.WARNING, found, mend)
    return Finding("cores", Verdict.OK, found)


def check_threads(machine: Fingerprint, environment: Mapping[str, str], threads: int) -> Finding:
    """Holds the threads asked for (0: as many as cores) and those of the environment against the cores."""
    usable = machine.usable_cores
    wanted = {"train.threads": threads} if threads else {}
    for name in _THREAD_VARIABLES:
        text = environment.get(name, "").split(",")[0]
        if text and not (text.isdigit() and int(text)):
            return Finding("threads", Verdict.WARNING, f"{name}={environment[name]} is no number", f"unset {name}")
        if text:
            wanted[name] = int(text)
    found = ", ".join(f"{name}={count}" for name, count in wanted.items()) or f"{usable}, one per usable core"
    over = [name for name, count in wanted.items() if count > usable]
    if over:
        mend = " and ".join(_set_threads(name, usable) for name in over)
        return Finding("threads", Verdict.WARNING, f"{found}: more than {counted(usable, 'usable core')}", mend)
    under = [name for name, count in wanted.items() if count < usable]
    if under:
        mend = " and ".join(_set_threads(name, usable) for name in under)
        return Finding("threads", Verdict.NOTE, f"{found}: fewer than {counted(usable, 'usable core')}", mend)
    return Finding("threads", Verdict.OK, found)


def check_load(pressure: str, load: float, cpus: int) -> Finding:
    """Says what other programs take: `pressure` is /proc/pressure/cpu, empty where the kernel does not count it."""
    found, crowded = f"load {load:.1f} on {counted(cpus, 'CPU')}", load > cpus
    _, _, counts = pressure.partition("some avg10=")
    if counts:
        share = float(counts.split()[0]) / 100
        found, crowded = f"{found}, some program waits for a core {share:.0%} of the time", share > _CROWDED_SHARE
    if not crowded:
        return Finding("load", Verdict.OK, found)
    mend = "stop other programs or give them other CPUs (taskset); train computes with fewer threads meanwhile"
    return Finding("load", Verdict.NOTE, found, mend)


def check_numa(machine: Fingerprint) -> Finding:
    """Looks for a process that spans memory nodes: it reads half of its tables across the link between them."""
    nodes = [node for node in machine.numa_nodes if node.cpus]
    used = [node for node in nodes if set(node.cpus) & set(machine.affinity)]
    if len(used) <= 1:
        where = f", this process runs on node {used[0].number}" if used and len(nodes) > 1 else ""
        return Finding("numa", Verdict.OK, f"{counted(max(len(nodes), 1), 'node')}{where}")
    mend = "one process per node: numactl --cpunodebind=0 --membind=0 COMMAND, or mpirun with a rank per node"
    return Finding("numa", Verdict.NOTE, f"this process spans {len(used)} of {len(nodes)} nodes", mend)


def check_memory(machine: Fingerprint, preset: str, parts: Mapping[str, int]) -> Finding:
    """Holds the estimated need of one process, by part, against what is there."""
    need, free, total = sum(parts.values()), machine.memory_available_bytes, machine.memory_total_bytes
    largest = max(parts, key=lambda name: parts[name])
    limited = " (control group limit)" if machine.memory_limit_bytes is not None else ""
    found = (
        f"{preset} needs {need / _GB:.1f} GB ({largest} {parts[largest] / _GB:.1f}), "
        f"{free / _GB:.1f} of {total / _GB:.1f} GB free{limited}"
    )
    if need > total:
        mend = "a machine with more memory" if preset == "demo" else "--preset demo, or a machine with more memory"
        return Finding("memory", Verdict.FAIL, found, mend)
    if need > free * _COMFORTABLE_SHARE:
        return Finding("memory", Verdict.WARNING, found, "stop other processes first, or --preset demo")
    return Finding("memory", Verdict.OK, found)


def check_huge_pages(machine: Fingerprint) -> Finding:
    """Looks for huge pages: with 4 KiB pages random rows of gigabytes miss the TLB at almost every lookup."""
    if machine.huge_pages in ("always", "madvise"):
        return Finding("huge pages", Verdict.OK, f"{machine.huge_pages}; the tables ask for them")
    if not machine.huge_pages:
        return Finding("huge pages", Verdict.NOTE, "the kernel has no transparent huge pages")
    mend = f"echo madvise | sudo tee {_HUGE_PAGES_FILE}"
    return Finding("huge pages", Verdict.WARNING, "off: lookups in large tables will be slower", mend)


def _set_threads(name: str, usable: int) -> str:
    return f"--train.threads {usable}" if name == "train.threads" else f"export {name}={usable}"
