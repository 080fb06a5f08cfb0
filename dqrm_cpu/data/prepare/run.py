"""One preparation from beginning to end, or from where it was interrupted."""

import contextlib
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.bad_rows import BadRows
from dqrm_cpu.data.prepare.categories import Categories, MemoryLimit
from dqrm_cpu.data.prepare.collect import Collector
from dqrm_cpu.data.prepare.estimate import arena_bytes, block_bytes_for, require_memory, require_space
from dqrm_cpu.data.prepare.frequency import find_rare, keep_all
from dqrm_cpu.data.prepare.memory import Arena
from dqrm_cpu.data.prepare.raw_files import estimate_text_bytes
from dqrm_cpu.data.prepare.request import Advance, Request
from dqrm_cpu.data.prepare.resume import WORK_FOLDER, exclusive, recover, work_folder
from dqrm_cpu.data.prepare.scan import Scanner
from dqrm_cpu.data.prepare.split import Split, shard_jobs, split_rows
from dqrm_cpu.data.prepare.spool import Step
from dqrm_cpu.data.prepare.summary import manifest_of, rows_per_source
from dqrm_cpu.data.prepare.vocabulary_files import identity_of, load_vocabulary, save_vocabulary
from dqrm_cpu.data.prepare.write import write_shards
from dqrm_cpu.data.store.manifest import FILE_NAME as MANIFEST_FILE
from dqrm_cpu.data.store.manifest import Manifest, ShardFile, read_manifest, write_manifest
from dqrm_cpu.errors import DataError

READING, WRITING = "reading", "writing"


def prepare(request: Request, restart: bool = False) -> Manifest:
    """Does what is left of a request; returns the manifest of the complete data set."""
    if not restart and (request.out / MANIFEST_FILE).exists():
        return _complete(request)
    text_bytes = [estimate_text_bytes(source) for source in request.sources]
    require_memory(request, sum(text_bytes))
    folder = work_folder(request, restart)
    with exclusive(folder):
        return _prepare(request, folder, text_bytes)


def _prepare(request: Request, folder: Path, text_bytes: list[int]) -> Manifest:
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    layout, schema = request.settings.layout, request.settings.layout.schema
    key_type = np.dtype("<u8" if layout.has_text else "<u4")
    settings = request.settings.vocabulary
    memory = MemoryLimit(request.means.memory_bytes, folder, request.note)
    categories = Categories(settings, key_type, schema.categorical, memory, request.means.workers)
    if settings.kind == "given":
        categories.use(list(load_vocabulary(Path(settings.directory)).keys))
    block_bytes = request.means.block_bytes or block_bytes_for(_known_bytes(request, text_bytes))
    arena = Arena.of_bytes(arena_bytes(request.settings, request.means.workers, block_bytes))
    steps = _read(request, spool, categories, text_bytes, block_bytes, arena)
    arena.clear()
    return _finish(request, folder, steps, categories, arena)


def _complete(request: Request) -> Manifest:
    manifest = read_manifest(request.out)
    if manifest.settings.get("request") != request.digest():
        raise DataError(
            f"{request.out} holds a data set that was prepared from other sources or with other settings; "
            "give another --out, or --restart to replace it"
        )
    shutil.rmtree(request.out / WORK_FOLDER, ignore_errors=True)
    request.note(f"{request.out} is prepared already; --restart does it again")
    return manifest


def _read(
    request: Request, spool: Path, categories: Categories, text_bytes: list[int], block_bytes: int, arena: Arena
) -> list[Step]:
    steps, position = recover(request, spool, categories)
    if steps:
        request.note(f"going on behind row {position.row:,}")
    else:
        require_space(request, sum(text_bytes))
    policy = request.settings.bad_rows
    bad_before = sum(step.header.bad_lines for step in steps)
    kept_bytes = steps[-1].header.quarantined if steps else 0
    bad_rows = BadRows(policy, request.settings.max_bad_rows, request.out, bad_before, kept_bytes)
    scanner = Scanner(request, spool, categories, bad_rows, arena)
    total, finished = _known_bytes(request, text_bytes), _finished_bytes(steps)
    with contextlib.closing(scanner.scan(position, block_bytes)) as scanned:
        for step in scanned:
            steps.append(step)
            after = step.header.after
            done = sum(finished[: after.source]) + after.offset
            if step.header.ends_source:
                finished.append(after.offset)
            request.advance(Advance(READING, step.header.first_row + step.header.rows, done, max(total, done)))
    if not any(step.header.rows for step in steps):
        raise DataError("there is not a single row in the sources; is --format right?")
    return steps


def _known_bytes(request: Request, text_bytes: list[int]) -> int:
    """Of all sources together; 0 where that cannot be said beforehand."""
    return 0 if any(source.kind == "stdin" for source in request.sources) else sum(text_bytes)


def _finished_bytes(steps: list[Step]) -> list[int]:
    return [step.header.after.offset for step in steps if step.header.ends_source]


def _finish(request: Request, folder: Path, steps: list[Step], categories: Categories, arena: Arena) -> Manifest:
    settings, schema = request.settings, request.settings.layout.schema
    split = split_rows(settings.split, rows_per_source(steps, len(request.sources)))
    num_keys = [vocabulary.num_keys for vocabulary in categories.vocabularies]
    remap = keep_all(schema.num_tables)
    if settings.vocabulary.kind == "exact" and settings.vocabulary.min_count > 1:
        remap = find_rare(steps, schema, num_keys, split.train, settings.seed, settings.vocabulary.min_count)
    keys = [remap.kept(t, vocabulary.keys) for t, vocabulary in enumerate(categories.vocabularies)]
    collector = Collector(steps, schema, split.train, settings.seed, remap)
    rows = split.train + split.test + split.validation
    row_bytes = 4 * (schema.num_dense + schema.num_tables + 1)
    written = 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        request.advance(Advance(WRITING, written, written * row_bytes, rows * row_bytes))

    jobs = shard_jobs(split, settings.shard_rows)
    workers = request.means.workers
    with ThreadPoolExecutor(1, "dqrm-vocabulary") as beside:
        saved = beside.submit(_save, request, keys)
        parts = write_shards(request.out, folder / "done", schema, jobs, collector, workers, arena, advance)
        saved.result()
    _require_all(split, parts)
    identity, table_rows = identity_of(settings, keys), _table_rows(request, keys)
    manifest = manifest_of(request, steps, table_rows, _distinct(request, num_keys), remap, parts, identity)
    write_manifest(request.out, manifest)
    with ThreadPoolExecutor(workers, "dqrm-remove") as pool:
        list(pool.map(Path.unlink, [step.path for step in steps]))
    shutil.rmtree(folder)
    return manifest


def _require_all(split: Split, parts: Mapping[str, tuple[ShardFile, ...]]) -> None:
    """DataError where notes on shards of an earlier attempt speak of other rows than there are."""
    found = {part: sum(shard.rows for shard in shards) for part, shards in parts.items()}
    if found != {"train": split.train, "test": split.test, "validation": split.validation}:
        raise DataError(f"notes on finished shards are damaged ({found}); begin anew with --restart")


def _save(request: Request, keys: list[NDArray[Any]]) -> None:
    if keys:
        settings = request.settings
        save_vocabulary(request.out, settings.layout.schema.categorical, settings.vocabulary.max_ind_range, keys)


def _table_rows(request: Request, keys: list[NDArray[Any]]) -> tuple[int, ...]:
    if request.settings.vocabulary.kind == "hash":
        return (request.settings.vocabulary.hash_rows,) * request.settings.layout.schema.num_tables
    return tuple(1 + int(column.size) for column in keys)


def _distinct(request: Request, num_keys: list[int]) -> list[int | None]:
    if request.settings.vocabulary.kind == "exact":
        return list(num_keys)
    return [None] * request.settings.layout.schema.num_tables
