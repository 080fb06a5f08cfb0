"""What the control groups of this process leave it: cores and memory (cgroup v1 and v2)."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_MOUNT = "sys/fs/cgroup"
# v1 writes a limit of nearly 2^63 where there is none.
_UNLIMITED_BYTES = 2**60


@dataclass(frozen=True)
class CgroupLimits:
    """The limits that the control groups set; None where nothing is limited."""

    cpu_quota: float | None  # in cores
    memory_limit_bytes: int | None
    memory_free_bytes: int | None  # of the limit


def read_cgroup(root: Path = Path("/")) -> CgroupLimits:
    """Returns the tightest limits of this process's groups and of all groups above them."""
    paths = _group_paths(root)
    quotas = [quota for folder in _folders(root, paths, "cpu") if (quota := _cpu_quota(folder)) is not None]
    memory = [limits for folder in _folders(root, paths, "memory") if (limits := _memory(folder)) is not None]
    return CgroupLimits(
        min(quotas, default=None),
        min((limit for limit, _ in memory), default=None),
        min((free for _, free in memory), default=None),
    )


def usable_cores(root: Path = Path("/")) -> int:
    """Counts the threads of this process that can really run at once."""
    return threads_at_once(len(os.sched_getaffinity(0)), read_cgroup(root).cpu_quota)


def threads_at_once(allowed: int, cpu_quota: float | None) -> int:
    """Counts the threads that can run at once on so many cores, cut by the control group's quota."""
    return allowed if cpu_quota is None else max(1, min(allowed, int(cpu_quota)))


def default_threads(cores: int, environ: Mapping[str, str]) -> int:
    """Returns the usable cores, or OMP_NUM_THREADS where fewer: batch systems that do not pin tell the share so."""
    asked = environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(cores, int(asked)) if asked.isdigit() and int(asked) else cores


def _group_paths(root: Path) -> dict[str, PurePosixPath]:
    """Maps each controller to its path; the unified hierarchy of v2 stands under the empty name."""
    paths = {}
    for line in read_if_there(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = PurePosixPath(path)
    return paths


def _folders(root: Path, paths: dict[str, PurePosixPath], controller: str) -> Iterator[Path]:
    # Inside a container the path may be the host's, of which only the upper folders are mounted here.
    for name, mount in ((controller, root / _MOUNT / controller), ("", root / _MOUNT)):
        if name in paths:
            inner = paths[name].relative_to("/")
            yield from (mount / folder for folder in (inner, *inner.parents))


def _cpu_quota(folder: Path) -> float | None:
    quota, _, period = read_if_there(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = read_if_there(folder / "cpu.cfs_quota_us"), read_if_there(folder / "cpu.cfs_period_us")
    if not quota or quota == "max" or int(quota) <= 0 or not period:
        return None
    return int(quota) / int(period)


def _memory(folder: Path) -> tuple[int, int] | None:
    """Returns the limit and what is left of it; file pages that the kernel would drop count as left."""
    limit = read_if_there(folder / "memory.max") or read_if_there(folder / "memory.limit_in_bytes")
    if not limit or limit == "max" or int(limit) > _UNLIMITED_BYTES:
        return None
    used = int(read_if_there(folder / "memory.current") or read_if_there(folder / "memory.usage_in_bytes") or 0)
    stat = dict(line.split() for line in read_if_there(folder / "memory.stat").splitlines())
    droppable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return int(limit), int(limit) - max(used - droppable, 0)


def read_if_there(path: Path) -> str:
    """Returns the text of a file, empty where there is none: which of /proc and /sys exist depends on the machine."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
