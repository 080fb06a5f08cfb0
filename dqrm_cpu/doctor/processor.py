"""Checks of the processor: model, instruction sets, cores, threads, NUMA."""

from collections.abc import Mapping

from dqrm_cpu.doctor.finding import Finding, Verdict
from dqrm_cpu.profile.hardware import Fingerprint

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that override how many threads a library starts."""


def check_cpu(machine: Fingerprint) -> Finding:
    """Model, sockets and the last cache."""
    last = max(machine.caches, key=lambda cache: cache.level, default=None)
    cache = f", L{last.level} {last.size_kib / 1024:g} MiB per {last.shared_by_cpus} CPUs" if last else ""
    found = f"{machine.cpu_model}, {_count(machine.sockets, 'socket')}, {_count(machine.cores, 'core')}{cache}"
    if machine.architecture != "x86_64":
        return Finding("cpu", Verdict.WARNING, f"{found} ({machine.architecture})", "use an x86-64 machine")
    return Finding("cpu", Verdict.OK, found)


def check_isa(machine: Fingerprint) -> Finding:
    """The kernels are written for AVX-512 and fall back on what the compiler finds."""
    found = " ".join(machine.isa) or "no AVX2"
    if "avx512f" in machine.isa:
        return Finding("isa", Verdict.OK, found)
    mend = "use a Xeon Scalable (2017 or later) for full speed"
    return Finding("isa", Verdict.NOTE if "avx2" in machine.isa else Verdict.WARNING, f"{found}, no AVX-512", mend)


def check_cores(machine: Fingerprint) -> Finding:
    """How many of the machine's CPUs this process may use."""
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
    """Threads asked for (0: as many as cores) and in the environment, against the cores that are there."""
    usable = machine.usable_cores
    wanted = {"train.threads": threads} if threads else {}
    for name in THREAD_VARIABLES:
        text = environment.get(name, "").split(",")[0]
        if text and not (text.isdigit() and int(text)):
            return Finding("threads", Verdict.WARNING, f"{name}={environment[name]} is no number", f"unset {name}")
        if text:
            wanted[name] = int(text)
    found = ", ".join(f"{name}={count}" for name, count in wanted.items()) or f"{usable}, one per usable core"
    over = [name for name, count in wanted.items() if count > usable]
    if over:
        mend = " and ".join(_set_threads(name, usable) for name in over)
        return Finding("threads", Verdict.WARNING, f"{found}: more than {_count(usable, 'usable core')}", mend)
    under = [name for name, count in wanted.items() if count < usable]
    if under:
        mend = " and ".join(_set_threads(name, usable) for name in under)
        return Finding("threads", Verdict.NOTE, f"{found}: fewer than {_count(usable, 'usable core')}", mend)
    return Finding("threads", Verdict.OK, found)


def check_numa(machine: Fingerprint) -> Finding:
    """A process that spans memory nodes reads half of its tables across the link between them."""
    nodes = [node for node in machine.numa_nodes if node.cpus]
    used = [node for node in nodes if set(node.cpus) & set(machine.affinity)]
    if len(used) <= 1:
        where = f", this process runs on node {used[0].number}" if used and len(nodes) > 1 else ""
        return Finding("numa", Verdict.OK, f"{_count(max(len(nodes), 1), 'node')}{where}")
    mend = "one process per node: numactl --cpunodebind=0 --membind=0 COMMAND, or mpirun with a rank per node"
    return Finding("numa", Verdict.NOTE, f"this process spans {len(used)} of {len(nodes)} nodes", mend)


def _set_threads(name: str, usable: int) -> str:
    return f"--train.threads {usable}" if name == "train.threads" else f"export {name}={usable}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
