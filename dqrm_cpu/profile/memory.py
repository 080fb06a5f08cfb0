"""How much memory this process holds."""

import re
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """At this moment."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """The most since the process began, of its own: getrusage would count its starter's."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else resident_bytes()
