"""What memory and disk a preparation will need, estimated before it starts."""

import shutil

from dqrm_cpu.base.memory import format_size
from dqrm_cpu.data.prepare.buffers import row_bytes
from dqrm_cpu.data.prepare.request import PrepareRequest, Settings
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.sources.raw_file import RawFile
from dqrm_cpu.data.prepare.sources.text_blocks import text_buffer_bytes
from dqrm_cpu.data.prepare.sources.text_stream import measure_packing
from dqrm_cpu.errors import DataError

_SMALLEST_BLOCK, _LARGEST_BLOCK = 8 << 20, 128 << 20
_MOST_FILES = 8192
_BYTES_PER_FIELD = 4.5  # of text, with what ends the field: less than any data set met so far, so that rows are many
_VALUES_PER_BAG = 2  # of a text of so many bytes: each has one, and something between it and the next
_SPARE = 1.05
_RUNTIME_BYTES = 150 << 20  # Python, numba and the compiled kernels
_ROUNDING_BYTES = 1 << 16
_ORDER_BYTES = 24  # of a row, while a shard is put in order


def estimate_text_bytes(file: RawFile) -> int:
    """Estimates how much text a file holds: compressed ones are measured by their first megabyte."""
    if file.kind in ("plain", "stdin"):
        return max(file.bytes, 0)
    if file.kind == "parquet":
        from dqrm_cpu.data.prepare.sources.parquet import estimate_bytes  # needs an optional package

        return estimate_bytes(file.path)
    text, packed = measure_packing(file)
    return int(file.bytes * text / max(packed, 1))


def block_bytes_for(text_bytes: int) -> int:
    """Chooses how much text is read at once: little enough for the caches, enough for a spool of not too many files."""
    return min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, -(-text_bytes // _MOST_FILES)))


def disk_bytes(request: PrepareRequest, text_bytes: int) -> int:
    """Estimates the most that a preparation takes on disk: the spool, and the shards beside it at the end."""
    layout = request.settings.layout
    row = _record_bytes(layout) + 4 * (1 + _VALUES_PER_BAG) * len(layout.bags)
    return int(2 * _SPARE * _rows_in(layout, text_bytes) * row)


def buffer_bytes(settings: Settings, workers: int, text_bytes: int) -> int:
    """Estimates what a preparation takes in memory beside its vocabularies, which --memory-budget bounds."""
    layout, block_bytes = settings.layout, block_bytes_for(text_bytes)
    order = workers * settings.shard_rows * _ORDER_BYTES
    # In a shard: of the file that is read, and of the rows; in a block: keys, ids, and where the texts are.
    bags = workers * settings.shard_rows * 8 * (1 + _VALUES_PER_BAG)
    bags += int(num_row_buffers(workers) * _rows_in(layout, block_bytes)) * (8 + 28 * _VALUES_PER_BAG)
    return _RUNTIME_BYTES + arena_bytes(settings, workers, block_bytes) + order + bags * len(layout.bags)


def arena_bytes(settings: Settings, workers: int, block_bytes: int) -> int:
    """Returns enough for all blocks that are read at a time, and then for all shards that are written at a time."""
    layout = settings.layout
    reading = num_row_buffers(workers) * rows_bytes(layout, block_bytes)
    reading += num_text_buffers(workers) * text_buffer_bytes(block_bytes)
    records = _SPARE * settings.shard_rows + _rows_in(layout, block_bytes)
    return int(max(reading, workers * records * _record_bytes(layout))) + _ROUNDING_BYTES


def num_row_buffers(workers: int) -> int:
    """Counts the blocks that are parsed, wait for their ids, or are written at a time."""
    return 2 * workers + 1


def num_text_buffers(workers: int) -> int:
    """Counts the blocks that are read or parsed at a time."""
    return workers + 2


def rows_bytes(layout: Layout, block_bytes: int) -> int:
    """Estimates what the rows of a block take."""
    schema = layout.raw
    key_bytes = 8 if layout.has_text else 4
    return int(_rows_in(layout, block_bytes) * row_bytes(schema.num_dense, schema.num_tables, key_bytes))


def require_memory(request: PrepareRequest, text_bytes: int) -> None:
    """Raises DataError when the machine, or the control group that this process is in, has too little memory."""
    resources = request.resources
    if not resources.available_bytes or resources.force:
        return
    buffers = buffer_bytes(request.settings, resources.workers, text_bytes)
    budget = 0 if request.settings.vocabulary.kind == "hash" else resources.memory_bytes
    if buffers + budget > resources.available_bytes:
        raise DataError(
            f"preparing takes about {format_size(buffers)} of memory with {resources.workers} workers, and up to "
            f"{format_size(budget)} for vocabularies, but {format_size(resources.available_bytes)} are free; give a "
            "smaller --memory-budget, fewer --workers or a smaller --shard-rows, or start nevertheless with --force"
        )


def _rows_in(layout: Layout, text_bytes: int) -> float:
    return text_bytes / (_BYTES_PER_FIELD * len(layout.fields))


def _record_bytes(layout: Layout) -> int:
    return 4 * (layout.raw.num_dense + layout.raw.num_tables + 1)


def require_space(request: PrepareRequest, text_bytes: int) -> None:
    """Raises DataError when the disk is too small."""
    needed, free = disk_bytes(request, text_bytes), shutil.disk_usage(request.out).free
    if needed > free and not request.resources.force:
        raise DataError(
            f"preparing {format_size(text_bytes)} of text takes up to {format_size(needed)} on the disk of "
            f"{request.out}, and {format_size(free)} are free; make room, give an --out elsewhere, "
            "or start nevertheless with --force"
        )
    request.note(f"up to {format_size(needed)} of disk while it runs, {format_size(free)} are free")
