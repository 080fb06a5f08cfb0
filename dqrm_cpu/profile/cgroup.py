"""What the control groups of this process leave it: cores and memory (cgroup v1 and v2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_MOUNT = "sys/fs/cgroup"
# v1 writes a limit of nearly 2^63 where there is none.
_UNLIMITED_BYTES = 2**60


@dataclass(frozen=True)
class CgroupLimits:
    """None where nothing is limited."""

    cpu_quota: float | None  # in cores
    memory_limit_bytes: int | None
    memory_free_bytes: int | None  # of the limit


def read_cgroup(root: Path = Path("/")) -> CgroupLimits:
    """The tightest limits of this process's groups and of all groups above them."""
    paths = _group_paths(root)
    quotas = [quota for folder in _folders(root, paths, "cpu") if (quota := _cpu_quota(folder)) is not None]
    memory = [found for folder in _folders(root, paths, "memory") if (found := _memory(folder)) is not None]
    return CgroupLimits(
        min(quotas, default=None),
        min((limit for limit, _ in memory), default=None),
        min((free for _, free in memory), default=None),
    )


def _group_paths(root: Path) -> dict[str, PurePosixPath]:
    """Controller to path; the unified hierarchy of v2 under the empty name."""
    paths = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
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
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if not quota or quota == "max" or int(quota) <= 0 or not period:
        return None
    return int(quota) / int(period)


def _memory(folder: Path) -> tuple[int, int] | None:
    """Limit and what is left of it; file pages that the kernel would drop count as left."""
    limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
    if not limit or limit == "max" or int(limit) > _UNLIMITED_BYTES:
        return None
    used = int(_read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes") or 0)
    stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
    droppable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return int(limit), int(limit) - max(used - droppable, 0)


def _read(path: Path) -> str:
    """Empty when the file is not there: which files exist depends on version and controller."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
