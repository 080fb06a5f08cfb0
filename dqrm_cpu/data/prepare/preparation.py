"""One preparation from beginning to end, or from where it was interrupted."""

import contextlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.files import require_name_in_utf8
from dqrm_cpu.data.prepare.bad_rows import BadRows
from dqrm_cpu.data.prepare.buffers import MemoryBlock
from dqrm_cpu.data.prepare.estimate import (
    arena_bytes,
    block_bytes_for,
    estimate_text_bytes,
    require_memory,
    require_space,
)
from dqrm_cpu.data.prepare.output.admission import admit
from dqrm_cpu.data.prepare.output.rare import count_cells, keep_all
from dqrm_cpu.data.prepare.output.shards import SpoolReader, write_shards
from dqrm_cpu.data.prepare.output.split import BinSplit, ShardJob, Split, shard_jobs, split_rows, time_jobs
from dqrm_cpu.data.prepare.output.summary import manifest_of, rows_per_source
from dqrm_cpu.data.prepare.output.time_split import TimeParts, find_parts
from dqrm_cpu.data.prepare.request import Advance, PrepareRequest
from dqrm_cpu.data.prepare.resume import SPOOL_FOLDER, WORK_FOLDER, lock_work_folder, recover, work_folder
from dqrm_cpu.data.prepare.scan import Scanner, ScanPosition
from dqrm_cpu.data.prepare.spool import SpoolFile
from dqrm_cpu.data.prepare.vocabulary.history import History, history_of_nothing
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import (
    SavedVocabulary,
    history_of,
    identity_of,
    identity_of_vocabulary,
    load_vocabulary,
    save_vocabulary,
)
from dqrm_cpu.data.prepare.vocabulary.vocabulary import Categories, MemoryLimit
from dqrm_cpu.data.store.manifest import FILE_NAME as MANIFEST_FILE
from dqrm_cpu.data.store.manifest import Manifest, ShardFile, read_manifest, write_manifest
from dqrm_cpu.data.store.transform import BUCKETS
from dqrm_cpu.errors import ConfigError, DataError

READING, WRITING = "reading", "writing"


def prepare(request: PrepareRequest, restart: bool = False) -> Manifest:
    """Does what is left of a request; returns the manifest of the complete data set."""
    if not restart and (request.out / MANIFEST_FILE).exists():
        return _complete(request)
    for recorded in (*(source.path for source in request.sources), request.settings.vocabulary.directory):
        require_name_in_utf8(recorded, ConfigError)
    text_bytes = [estimate_text_bytes(source) for source in request.sources]
    require_memory(request, sum(text_bytes))
    folder = work_folder(request, restart)
    with lock_work_folder(folder):
        return _prepare(request, folder, text_bytes)


def _complete(request: PrepareRequest) -> Manifest:
    manifest = read_manifest(request.out)
    if manifest.settings.get("request") != request.digest():
        raise ConfigError(
            f"{request.out} holds a data set that was prepared from other sources or with other settings; "
            "give another --out, or --restart to replace it"
        )
    shutil.rmtree(request.out / WORK_FOLDER, ignore_errors=True)
    request.note(f"{request.out} is prepared already; --restart does it again")
    return manifest


def _prepare(request: PrepareRequest, folder: Path, text_bytes: list[int]) -> Manifest:
    settings, resources = request.settings, request.resources
    layout, vocabulary = settings.layout, settings.vocabulary
    key_type = np.dtype("<u8" if layout.has_text else "<u4")
    limit = MemoryLimit(resources.memory_bytes, folder, request.note)
    categories = Categories(vocabulary, key_type, layout.raw.categorical, limit, resources.workers)
    before = load_vocabulary(Path(vocabulary.directory)) if vocabulary.directory else None
    if before is not None:
        categories.use(list(before.keys[: layout.raw.num_tables]))
    # How much standard input holds cannot be known beforehand.
    total_bytes = 0 if any(source.kind == "stdin" for source in request.sources) else sum(text_bytes)
    block_bytes = resources.block_bytes or block_bytes_for(total_bytes)
    arena = MemoryBlock.of_bytes(arena_bytes(settings, resources.workers, block_bytes))
    spool = folder / SPOOL_FOLDER
    spool.mkdir(exist_ok=True)
    files, position = recover(request, spool, categories)
    if files:
        request.note(f"going on behind row {position.row:,}")
    else:
        require_space(request, sum(text_bytes))
    scanner = Scanner(request, spool, categories, _bad_rows(request, files), arena)
    _read(request, files, scanner, position, block_bytes, total_bytes)
    arena.clear()
    return _write(request, folder, files, categories, arena, before)


def _bad_rows(request: PrepareRequest, files: list[SpoolFile]) -> BadRows:
    """Returns the bad rows that were met before an interruption, to be added to."""
    settings = request.settings
    count = sum(file.header.bad_lines for file in files)
    kept_bytes = files[-1].header.quarantined if files else 0
    return BadRows(settings.bad_rows, settings.max_bad_rows, request.out, count, kept_bytes)


def _read(
    request: PrepareRequest,
    files: list[SpoolFile],
    scanner: Scanner,
    position: ScanPosition,
    block_bytes: int,
    total_bytes: int,
) -> None:
    """Runs the first pass: adds to `files` what the sources hold from a position on."""
    finished = [file.header.after.offset for file in files if file.header.ends_source]
    with contextlib.closing(scanner.scan(position, block_bytes)) as scanned:
        for file in scanned:
            files.append(file)
            header = file.header
            done = sum(finished[: header.after.source]) + header.after.offset
            if header.ends_source:
                finished.append(header.after.offset)
            request.advance(Advance(READING, header.first_row + header.rows, done, max(total_bytes, done)))
    if not any(file.header.rows for file in files):
        raise DataError("there is not a single row in the sources; is it the right file, and --format or --schema?")


def _write(
    request: PrepareRequest,
    folder: Path,
    files: list[SpoolFile],
    categories: Categories,
    arena: MemoryBlock,
    before: SavedVocabulary | None,
) -> Manifest:
    """Runs the second pass: writes shards, vocabulary and manifest, and removes what was needed on the way."""
    settings, schema, raw = request.settings, request.settings.layout.schema, request.settings.layout.raw
    time_parts, split, jobs, bins = _divided(request, files)
    num_keys = [vocabulary.num_keys for vocabulary in categories.vocabularies]
    admission = None
    if settings.vocabulary.is_counted:
        counts = count_cells(files, settings.layout, num_keys, split.train, settings.seed, time_parts, bins)
        history_before = _history(request, before)
        admission = admit(
            counts, categories.vocabularies, history_before, settings.vocabulary, request.zero_rows[: raw.num_tables]
        )
    remap = keep_all(raw.num_tables) if admission is None else admission.remap
    keys = [remap.kept(t, vocabulary.keys) for t, vocabulary in enumerate(categories.vocabularies)]
    reader = SpoolReader(files, settings.layout, split.train, settings.seed, remap, time_parts, bins)
    transforms = reader.fit(arena) if settings.transforms is None else settings.transforms
    arena.clear()
    reader.use(transforms)
    buckets = [transform.num_buckets for transform in transforms if transform.kind == BUCKETS]
    if settings.vocabulary.kind != "hash":
        keys += [np.arange(1, count + 1, dtype=categories.key_type) for count in buckets]
    history = None if admission is None else admission.history
    parts = _write_files(request, folder, split, jobs, reader, arena, keys, history)
    table_rows = tuple(1 + int(column.size) for column in keys)
    if settings.vocabulary.kind == "hash":
        table_rows = (*(settings.vocabulary.hash_rows,) * raw.num_tables, *(1 + count for count in buckets))
    distinct: list[int | None] = [*num_keys] if settings.vocabulary.kind == "exact" else [None] * raw.num_tables
    identity = identity_of(settings, keys, transforms)
    parent = None
    if before is not None and settings.vocabulary.kind == "grown":
        parent = identity_of_vocabulary(schema, before, transforms)
    manifest = manifest_of(request, files, table_rows, distinct, remap, admission, parts, identity, transforms, parent)
    write_manifest(request.out, manifest)
    with ThreadPoolExecutor(request.resources.workers, "dqrm-remove") as pool:
        list(pool.map(Path.unlink, [file.path for file in files]))
    shutil.rmtree(folder)
    return manifest


def _history(request: PrepareRequest, before: SavedVocabulary | None) -> History:
    """Reads the history of the vocabulary to grow from; of the first data set there is none."""
    settings, num_columns = request.settings, request.settings.layout.raw.num_tables
    if before is None:
        return history_of_nothing([0] * num_columns, np.dtype("<u8" if settings.layout.has_text else "<u4"), 0)
    found = history_of(Path(settings.vocabulary.directory), before)
    if found is None:
        found = history_of_nothing([c.size for c in before.keys[:num_columns]], before.keys[0].dtype, 1)
    if len(found.columns) != num_columns:
        raise DataError(f"{settings.vocabulary.directory} has the history of other columns; prepare it once more")
    return found


class _Divided(NamedTuple):
    """The rows of each part, and the shards that they go to."""

    time_parts: TimeParts | None
    split: Split
    jobs: list[ShardJob]
    bins: BinSplit | None  # where chance decides


def _divided(request: PrepareRequest, files: list[SpoolFile]) -> _Divided:
    settings = request.settings
    if settings.random_split is not None:
        bins = BinSplit.of(settings.random_split)
        split = bins.split([file.bounds.astype(np.int64) for file in files])
        return _Divided(None, split, bins.jobs(split, settings.shard_rows), bins)
    if settings.time_split is None:
        split = split_rows(settings.split, rows_per_source(files, len(request.sources)))
        return _Divided(None, split, shard_jobs(split, settings.shard_rows), None)
    time_parts = find_parts(files, settings.layout, settings.time_split, settings.seed)
    keeps_order = settings.time_split.order == "time"
    jobs = time_jobs(time_parts.split, settings.shard_rows, keeps_order)
    return _Divided(time_parts, time_parts.split, jobs, None)


def _write_files(
    request: PrepareRequest,
    folder: Path,
    split: Split,
    jobs: list[ShardJob],
    reader: SpoolReader,
    arena: MemoryBlock,
    keys: list[NDArray[Any]],
    history: History | None,
) -> dict[str, tuple[ShardFile, ...]]:
    """Writes the shards of each part, and the vocabulary beside them."""
    schema, workers = request.settings.layout.schema, request.resources.workers
    rows = split.train + split.test + split.validation
    row_bytes = 4 * (schema.num_dense + schema.num_tables + 1)
    written = 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        request.advance(Advance(WRITING, written, written * row_bytes, rows * row_bytes))

    with ThreadPoolExecutor(1, "dqrm-vocabulary") as beside:
        max_ind_range = request.settings.vocabulary.max_ind_range
        saved = beside.submit(save_vocabulary, request.out, schema.categorical, max_ind_range, keys, history)
        parts = write_shards(request.out, folder / "done", schema, jobs, reader, workers, arena, advance)
        saved.result()
    found = {part: sum(shard.rows for shard in shards) for part, shards in parts.items()}
    if found != asdict(split):
        raise DataError(f"notes on finished shards are damaged ({found}); begin anew with --restart")
    return parts
