"""What a preparation will need, told before it starts rather than when it is out of it."""

import shutil

from dqrm_cpu.data.prepare.request import Request
from dqrm_cpu.errors import DataError

_SMALLEST_BLOCK, _LARGEST_BLOCK = 8 << 20, 128 << 20
_MOST_STEPS = 8192
_BYTES_PER_FIELD = 4.5  # of text, with what ends the field: less than any data set met so far, so that rows are many
_SPARE = 1.05


def block_bytes_for(text_bytes: int) -> int:
    """Text read at once: small enough for the caches, large enough that there are not too many files in the spool."""
    return min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, -(-text_bytes // _MOST_STEPS)))


def disk_bytes(request: Request, text_bytes: int) -> int:
    """About the most that a preparation takes on disk: rows on their way, and shards beside them at the end."""
    layout = request.settings.layout
    rows = text_bytes / (_BYTES_PER_FIELD * len(layout.fields))
    record = 4 * (layout.schema.num_dense + layout.schema.num_tables + 1)
    return int(2 * _SPARE * rows * record)


def require_space(request: Request, text_bytes: int) -> None:
    """DataError when the disk is too small."""
    needed, free = disk_bytes(request, text_bytes), shutil.disk_usage(request.out).free
    if needed > free:
        raise DataError(
            f"preparing {text_bytes / 1e9:,.1f} GB of text takes up to {needed / 1e9:,.1f} GB on the disk of "
            f"{request.out}, and {free / 1e9:,.1f} GB are free; make room or give an --out elsewhere"
        )
    request.note(f"up to {_size(needed)} of disk while it runs, {free / 1e9:,.1f} GB are free")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"
