"""How much memory this process holds, and numbers of bytes as people read them."""

import re
from pathlib import Path

_STATUS = Path("/proc/self/status")
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_LEAST_SHOWN = 0.05  # of a unit, with one decimal


def resident_bytes() -> int:
    """Returns the memory that this process holds at this moment."""
    import psutil  # here, because whoever only writes sizes does without it

    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Returns the most memory that this process has held: getrusage would count its starter's too."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else resident_bytes()


def format_size(num_bytes: float) -> str:
    """Writes a number of bytes in the unit that fits it: no size is 0.0 of anything."""
    for least, unit, name in ((1e9, 1e9, "GB"), (1e5, 1e6, "MB"), (1e3, 1e3, "kB")):
        if num_bytes >= least:
            return f"{num_bytes / unit:,.{2 if name == 'GB' else 1}f} {name}"
    return f"{num_bytes:,.0f} bytes"


def format_distinct_sizes(larger: int, smaller: int) -> tuple[str, str]:
    """Writes both in one unit, small enough that two different numbers of bytes never read the same.

    A smaller one that would read 0.0 has a unit of its own.
    """
    for unit, name in _UNITS:
        if larger < unit:
            continue
        if 0 < smaller < unit * _LEAST_SHOWN:
            return f"{larger / unit:,.1f} {name}", format_distinct_sizes(smaller, 0)[0]
        for decimals in (1, 2):
            texts = tuple(f"{size / unit:,.{decimals}f} {name}" for size in (larger, smaller))
            if larger == smaller or texts[0] != texts[1]:
                return texts[0], texts[1]
    return f"{larger:,} bytes", f"{smaller:,} bytes"
