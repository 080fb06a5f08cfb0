"""What a preparation will need, told before it starts rather than when it is out of it."""

import shutil

from dqrm_cpu.data.prepare.blocks import text_buffer_bytes
from dqrm_cpu.data.prepare.layout import Layout
from dqrm_cpu.data.prepare.parse import row_bytes
from dqrm_cpu.data.prepare.request import Request, Settings
from dqrm_cpu.errors import DataError

_SMALLEST_BLOCK, _LARGEST_BLOCK = 8 << 20, 128 << 20
_MOST_STEPS = 8192
_BYTES_PER_FIELD = 4.5  # of text, with what ends the field: less than any data set met so far, so that rows are many
_SPARE = 1.05
_RUNTIME_BYTES = 150 << 20  # Python, numba and the compiled kernels
_ROUNDING_BYTES = 1 << 16
_ORDER_BYTES = 24  # of a row, while a shard is put in order


def block_bytes_for(text_bytes: int) -> int:
    """Text read at once: small enough for the caches, large enough that there are not too many files in the spool."""
    return min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, -(-text_bytes // _MOST_STEPS)))


def disk_bytes(request: Request, text_bytes: int) -> int:
    """About the most that a preparation takes on disk: rows on their way, and shards beside them at the end."""
    return int(2 * _SPARE * _rows_in(request.settings.layout, text_bytes) * _record_bytes(request.settings.layout))


def buffer_bytes(settings: Settings, workers: int, text_bytes: int) -> int:
    """About what a preparation takes in memory beside its vocabularies, which --memory-budget bounds."""
    order = workers * settings.shard_rows * _ORDER_BYTES
    return _RUNTIME_BYTES + arena_bytes(settings, workers, block_bytes_for(text_bytes)) + order


def arena_bytes(settings: Settings, workers: int, block_bytes: int) -> int:
    """Enough for all blocks that are being read at a time, and then for all shards that are being written."""
    layout = settings.layout
    reading = num_row_buffers(workers) * rows_bytes(layout, block_bytes)
    reading += num_text_buffers(workers) * text_buffer_bytes(block_bytes)
    records = _SPARE * settings.shard_rows + _rows_in(layout, block_bytes)
    return int(max(reading, workers * records * _record_bytes(layout))) + _ROUNDING_BYTES


def num_row_buffers(workers: int) -> int:
    """Blocks that are parsed, wait for their ids, or are written."""
    return 2 * workers + 1


def num_text_buffers(workers: int) -> int:
    """Blocks that are read or parsed."""
    return workers + 2


def rows_bytes(layout: Layout, block_bytes: int) -> int:
    """About what the rows of a block take."""
    schema = layout.schema
    key_bytes = 8 if layout.has_text else 4
    return int(_rows_in(layout, block_bytes) * row_bytes(schema.num_dense, schema.num_tables, key_bytes))


def require_memory(request: Request, text_bytes: int) -> None:
    """DataError when the machine, or the control group that this process is in, has too little."""
    means = request.means
    if not means.available_bytes or means.force:
        return
    buffers = buffer_bytes(request.settings, means.workers, text_bytes)
    budget = 0 if request.settings.vocabulary.kind == "hash" else means.memory_bytes
    if buffers + budget > means.available_bytes:
        raise DataError(
            f"preparing takes about {size_of(buffers)} of memory with {means.workers} workers, and up to "
            f"{size_of(budget)} for vocabularies, but {size_of(means.available_bytes)} are free; give a smaller "
            "--memory-budget, fewer --workers or a smaller --shard-rows, or start nevertheless with --force"
        )


def _rows_in(layout: Layout, text_bytes: int) -> float:
    return text_bytes / (_BYTES_PER_FIELD * len(layout.fields))


def _record_bytes(layout: Layout) -> int:
    return 4 * (layout.schema.num_dense + layout.schema.num_tables + 1)


def require_space(request: Request, text_bytes: int) -> None:
    """DataError when the disk is too small."""
    needed, free = disk_bytes(request, text_bytes), shutil.disk_usage(request.out).free
    if needed > free and not request.means.force:
        raise DataError(
            f"preparing {text_bytes / 1e9:,.1f} GB of text takes up to {needed / 1e9:,.1f} GB on the disk of "
            f"{request.out}, and {free / 1e9:,.1f} GB are free; make room, give an --out elsewhere, "
            "or start nevertheless with --force"
        )
    request.note(f"up to {size_of(needed)} of disk while it runs, {free / 1e9:,.1f} GB are free")


def size_of(num_bytes: int) -> str:
    """For a person."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"
