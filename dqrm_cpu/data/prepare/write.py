"""Second pass: shards out of the spool, several at a time; a shard that is done is noted and not done again."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.base.files import unwritable
from dqrm_cpu.data.prepare.collect import Collector, Workspace
from dqrm_cpu.data.prepare.memory import Arena
from dqrm_cpu.data.prepare.split import ShardJob
from dqrm_cpu.data.store.layout import ALIGNMENT
from dqrm_cpu.data.store.manifest import PART_NAMES, ShardFile
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.data.store.writer import RowBlock, write_blocks
from dqrm_cpu.errors import DataError


def write_shards(
    out: Path,
    notes: Path,
    schema: Schema,
    jobs: Sequence[ShardJob],
    collector: Collector,
    workers: int,
    arena: Arena,
    advance: Callable[[int], None],
) -> dict[str, tuple[ShardFile, ...]]:
    """All shards of all parts; `advance` hears of the rows of each."""
    notes.mkdir(exist_ok=True)
    each = arena.left // workers - ALIGNMENT
    spaces: SimpleQueue[Workspace] = SimpleQueue()
    for _ in range(workers):
        spaces.put(Workspace(schema, arena.part(each)))

    def write(job: ShardJob) -> ShardFile:
        with contextlib.ExitStack() as lent:
            space = spaces.get()
            lent.callback(spaces.put, space)
            rows = collector.collect(job, space)

            def blocks() -> Iterator[RowBlock]:
                yield from rows.blocks
                lent.close()  # another shard may have the memory while this one is forced to the disk

            shard = write_blocks(out / job.name, schema, rows.num_rows, rows.largest_id, blocks())
        note = notes / f"{job.name}.json"
        try:
            note.write_text(json.dumps(asdict(shard)))
        except OSError as error:
            raise unwritable(note, error, DataError) from error
        return shard

    done = dict(_finished(out, notes, jobs))
    advance(sum(shard.rows for shard in done.values()))
    with ThreadPoolExecutor(2 * workers, "dqrm-prepare") as pool:
        left = [pool.submit(write, job) for job in jobs if job.name not in done]
        try:
            for future in as_completed(left):
                shard = future.result()
                done[shard.name] = shard
                advance(shard.rows)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {part: tuple(done[job.name] for job in jobs if job.part == part) for part in PART_NAMES}


def _finished(out: Path, notes: Path, jobs: Sequence[ShardJob]) -> Iterator[tuple[str, ShardFile]]:
    """Shards of an earlier attempt: noted, there, and of the size that was noted."""
    for job in jobs:
        try:
            shard = decoded(read_json(notes / f"{job.name}.json"), ShardFile)
            if shard.name == job.name and (out / job.name).stat().st_size == shard.bytes:
                yield job.name, shard
        except (OSError, UnreadableError):  # it was never noted, or not to its end: the shard is written again
            continue
