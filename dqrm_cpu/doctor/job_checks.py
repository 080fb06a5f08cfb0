"""Checks of a job: are its ranks where they should be, and do they reach each other and the run folder."""

import math
from collections.abc import Iterator
from pathlib import Path

from dqrm_cpu.base.hardware import fingerprint
from dqrm_cpu.base.memory import format_size
from dqrm_cpu.base.wording import counted
from dqrm_cpu.comm.sharding.placement import most_held_rows
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.doctor.finding import Finding, Verdict
from dqrm_cpu.doctor.job_facts import JobFacts, RankFacts, read_job
from dqrm_cpu.model.size import estimate_memory, model_bytes

_GB = 1e9
_CLOCK_TOLERANCE_S = 0.5
# A data centre's network takes tens of microseconds and moves more than 10 Gb/s; below this something is wrong with it.
_SLOW_LATENCY_S = 1e-3
_SLOW_BYTES_PER_S = 0.5e9
_SHOWN_AT_MOST = 4


def examine_job(config: Config, transport: Transport, folder: Path) -> list[Finding]:
    """Gathers the facts of all ranks and goes through the checks; every rank calls it and has the same findings."""
    job = read_job(transport, fingerprint(), folder)
    # The best checkpoint is kept beside the newest ones, and the next is written before the oldest goes.
    weights = model_bytes(config).fp32 * (2 if config.train.average_snapshots else 1)
    checkpoints = (config.train.keep_checkpoints + 2) * weights
    held_rows = most_held_rows(config, transport.size)
    return check_job(job, estimate_memory(config, transport.size, held_rows).total_bytes, checkpoints, folder)


def check_job(job: JobFacts, rank_bytes: int, checkpoint_bytes: int, folder: Path) -> list[Finding]:
    """Makes all checks of a job, in the order of a report; the bytes are what a rank and the run folder must hold."""
    return [
        check_ranks(job),
        check_affinity(job),
        check_threads(job),
        check_numa(job),
        check_clocks(job),
        check_transport(job),
        check_latency(job),
        check_bandwidth(job),
        check_memory(job, rank_bytes),
        check_run_folder(job, folder),
        check_disk(job, checkpoint_bytes, folder),
    ]


def check_ranks(job: JobFacts) -> Finding:
    """Shows where ranks run; unlike hosts make all wait for the slowest."""
    found = f"{counted(len(job.ranks), 'rank')} on " + ", ".join(
        f"{host} ({len(ranks)})" for host, ranks in job.hosts.items()
    )
    versions = {rank.version for rank in job.ranks}
    if len(versions) > 1:
        mend = "install the same dqrm-cpu on all hosts, or put its environment on a shared file system"
        return Finding("ranks", Verdict.FAIL, f"{found}; versions {', '.join(sorted(versions))}", mend)
    models = {rank.cpu_model for rank in job.ranks}
    if len(models) > 1:
        mend = "sbatch --constraint=FEATURE for hosts of one kind"
        return Finding("ranks", Verdict.WARNING, f"{found}; CPUs differ: {', '.join(sorted(models))}", mend)
    return Finding("ranks", Verdict.OK, found)


def check_affinity(job: JobFacts) -> Finding:
    """Looks for ranks on the same CPUs, which take turns."""
    sizes = sorted({len(rank.affinity) for rank in job.ranks})
    found = f"{'-'.join(str(size) for size in sorted({sizes[0], sizes[-1]}))} CPUs a rank"
    shared = [
        f"ranks {one.rank} and {two.rank} share {counted(len(both), 'CPU')} of {host}"
        for host, ranks in job.hosts.items()
        for one, two, both in _overlaps(ranks)
    ]
    if shared:
        mend = "DQRM_PIN=socket (or numa), or --cpus-per-task so that the ranks of a host fit side by side"
        return Finding("affinity", Verdict.WARNING, f"{found}; {_first(shared)}", mend)
    return Finding("affinity", Verdict.OK, found)


def check_threads(job: JobFacts) -> Finding:
    """Holds OMP_NUM_THREADS of each rank against its CPUs."""
    wrong = []
    for rank in job.ranks:
        text = rank.omp_num_threads.split(",")[0]
        if text.isdigit() and int(text) > rank.usable_cores:
            wrong.append(f"rank {rank.rank}: OMP_NUM_THREADS={text} on {counted(rank.usable_cores, 'usable core')}")
    if wrong:
        mend = "unset OMP_NUM_THREADS, or raise --cpus-per-task to it; training itself takes no more than the cores"
        return Finding("threads", Verdict.NOTE, _first(wrong), mend)
    cores = sorted({rank.usable_cores for rank in job.ranks})
    return Finding("threads", Verdict.OK, f"up to {cores[-1]} a rank, {counted(cores[0], 'core')} at least")


def check_numa(job: JobFacts) -> Finding:
    """Looks for ranks across memory nodes, which read half of their tables over the link between them."""
    spanning = [f"rank {rank.rank} spans {len(rank.numa_nodes)}" for rank in job.ranks if len(rank.numa_nodes) > 1]
    if spanning:
        mend = "tb_nnode.sh has a rank per socket; worth it where every rank's copy of the tables fits"
        return Finding("numa", Verdict.NOTE, f"{_first(spanning)} memory nodes", mend)
    return Finding("numa", Verdict.OK, "each rank has one memory node")


def check_clocks(job: JobFacts) -> Finding:
    """Compares clocks: training does not look at them, but logs and file times of hosts should fit together."""
    worst = max(job.ranks, key=lambda rank: abs(rank.clock_offset_s))
    found = f"{abs(worst.clock_offset_s) * 1e3:.1f} ms apart at most (rank {worst.rank})"
    if abs(worst.clock_offset_s) > _CLOCK_TOLERANCE_S:
        return Finding("clocks", Verdict.WARNING, found, f"have NTP set the clock of {worst.host}")
    return Finding("clocks", Verdict.OK, found)


def check_transport(job: JobFacts) -> Finding:
    """Shows what carries gradients, and why that."""
    if len(job.ranks) == 1:
        mend = "start it on every rank: mpirun -n N dqrm-cpu doctor --job, or DQRM_DOCTOR=1 sbatch SCRIPT"
        return Finding("transport", Verdict.WARNING, f"{job.transport}: {job.reason}; nobody to talk to", mend)
    return Finding("transport", Verdict.OK, f"{job.transport}: {job.reason}")


def check_latency(job: JobFacts) -> Finding:
    """Shows how long each of the handful of exchanges in a step takes at least."""
    found = f"{job.link.latency_s * 1e6:.0f} us for a gather of 8 bytes"
    if job.link.latency_s > _SLOW_LATENCY_S:
        mend = "look for other work on the cores, and that the fast network is used (FI_PROVIDER, GLOO_SOCKET_IFNAME)"
        return Finding("latency", Verdict.WARNING, found, mend)
    return Finding("latency", Verdict.OK, found)


def check_bandwidth(job: JobFacts) -> Finding:
    """Shows the bytes that a rank sends in a second while all send to all."""
    rate = job.link.bandwidth_bytes_per_s
    if math.isinf(rate):
        return Finding("bandwidth", Verdict.OK, "one rank sends nothing")
    found = f"{rate / _GB:.2f} GB/s from each rank, all to all"
    if rate < _SLOW_BYTES_PER_S:
        mend = "use the fast network (FI_PROVIDER, GLOO_SOCKET_IFNAME), or --comm.wire int8 --comm.mlp-gradients int8"
        return Finding("bandwidth", Verdict.WARNING, found, mend)
    return Finding("bandwidth", Verdict.OK, found)


def check_memory(job: JobFacts, rank_bytes: int) -> Finding:
    """Holds the need of a host's ranks, each with the tables that it has, against its memory."""
    needs = [(len(ranks) * rank_bytes, _least(ranks), host) for host, ranks in job.hosts.items()]
    need, free, host = min(needs, key=lambda each: each[1] - each[0])
    found = f"{format_size(need)} needed, {format_size(free)} free on {host}, the tightest host"
    if need > free:
        return Finding("memory", Verdict.FAIL, found, "fewer ranks per host, --mem=0, or hosts with more memory")
    return Finding("memory", Verdict.OK, found)


def check_run_folder(job: JobFacts, folder: Path) -> Finding:
    """Looks whether every rank sees what rank 0 writes: checkpoints, which all of them read."""
    blind = [f"rank {rank.rank} on {rank.host}" for rank in job.ranks if not rank.sees_run_folder]
    if blind:
        mend = "put the run folder on a file system that all hosts share, and that rank 0 may write to"
        return Finding("run folder", Verdict.FAIL, f"{folder.absolute()} is not seen by {_first(blind)}", mend)
    return Finding("run folder", Verdict.OK, f"every rank sees what rank 0 writes to {folder.absolute()}")


def check_disk(job: JobFacts, checkpoint_bytes: int, folder: Path) -> Finding:
    """Looks for room for all checkpoints that are kept at once, where rank 0 writes them."""
    free = job.ranks[0].disk_free_bytes
    if free < 0:
        return Finding("disk", Verdict.FAIL, f"{folder.absolute()} cannot be read", "another folder: --run-dir")
    found = f"checkpoints take {format_size(checkpoint_bytes)}, {format_size(free)} are free"
    if checkpoint_bytes > free:
        return Finding("disk", Verdict.FAIL, found, "another folder: --run-dir, or --train.keep-checkpoints 1")
    return Finding("disk", Verdict.OK, found)


def _overlaps(ranks: list[RankFacts]) -> Iterator[tuple[RankFacts, RankFacts, set[int]]]:
    for place, one in enumerate(ranks):
        for two in ranks[place + 1 :]:
            if both := set(one.affinity) & set(two.affinity):
                yield one, two, both


def _least(ranks: list[RankFacts]) -> int:
    return min(rank.memory_available_bytes for rank in ranks)


def _first(items: list[str]) -> str:
    more = len(items) - _SHOWN_AT_MOST
    return "; ".join(items[:_SHOWN_AT_MOST]) + (f"; and {more} more" if more > 0 else "")
