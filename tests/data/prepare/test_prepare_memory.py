"""The memory that stages of a preparation hand on to each other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dqrm_cpu.data.prepare.buffers import MemoryBlock
from dqrm_cpu.data.prepare.preparation import prepare
from dqrm_cpu.data.prepare.resume import WORK_FOLDER
from dqrm_cpu.errors import DataError
from folders import files_of
from killed_preparation import OPTIONS
from preparing import criteo_text, prepared, request_for

BYTES, WORDS = np.dtype(np.uint8), np.dtype(np.uint32)


def test_nobody_has_what_another_one_has() -> None:
    arena = MemoryBlock.of_bytes(1000)
    part = arena.part(300)
    arrays = [part.take((5, 7), WORDS), part.take((3,), BYTES), arena.take((10,), WORDS), arena.take((400,), WORDS)]
    for k, array in enumerate(arrays):
        array[:] = k
    for k, array in enumerate(arrays):
        assert (array == k).all()
        assert array.ctypes.data % 4 == 0


def test_what_was_taken_can_be_taken_again() -> None:
    arena = MemoryBlock.of_bytes(1000)
    first = arena.take((200,), WORDS)
    assert not np.shares_memory(first, arena.take((200,), WORDS))
    arena.clear()
    assert np.shares_memory(first, arena.take((100,), WORDS))


def test_blocks_of_any_size_come_to_the_same(tmp_path: Path) -> None:
    """Also those with more rows, and those with fewer, than there was memory made ready for."""
    (tmp_path / "train.txt").write_text(criteo_text(900))
    found = []
    for k, block_bytes in enumerate((300, 5_000, 1 << 20)):
        prepared([tmp_path / "train.txt"], tmp_path / f"{k}", **{**OPTIONS, "block_bytes": block_bytes})
        found.append(files_of(tmp_path / f"{k}"))
    assert all(files == found[0] for files in found)


def test_a_spool_that_is_cut_while_shards_are_written_is_told(tmp_path: Path) -> None:
    """And ends it, though every worker meets it at once."""
    (tmp_path / "train.txt").write_text(criteo_text(900))
    spool = tmp_path / "out" / WORK_FOLDER / "spool"

    def cut(_: object) -> None:
        if (spool.parent / "done").exists():
            for path in spool.glob("*.rows"):
                path.write_bytes(b"")

    request = request_for([tmp_path / "train.txt"], tmp_path / "out", **{**OPTIONS, "shard_rows": 50})
    with pytest.raises(DataError, match="shorter than it was"):
        prepare(replace(request, advance=cut))
