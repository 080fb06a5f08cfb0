"""Checks of memory: does the run fit, and do its tables get huge pages."""

from collections.abc import Mapping

from dqrm_cpu.doctor.finding import Finding, Verdict
from dqrm_cpu.profile.hardware import Fingerprint

_GB = 1e9
_HUGE_PAGES_FILE = "/sys/kernel/mm/transparent_hugepage/enabled"
# Below this share of what is free, other processes and the page cache still have room.
_COMFORTABLE_SHARE = 0.9


def check_memory(machine: Fingerprint, preset: str, parts: Mapping[str, int]) -> Finding:
    """The estimated need of one process, by part, against what is there."""
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
    """Random rows of a table of gigabytes miss the TLB at almost every lookup with 4 KiB pages."""
    if machine.huge_pages in ("always", "madvise"):
        return Finding("huge pages", Verdict.OK, f"{machine.huge_pages}; the tables ask for them")
    if not machine.huge_pages:
        return Finding("huge pages", Verdict.NOTE, "the kernel has no transparent huge pages")
    mend = f"echo madvise | sudo tee {_HUGE_PAGES_FILE}"
    return Finding("huge pages", Verdict.WARNING, "off: lookups in large tables will be slower", mend)
