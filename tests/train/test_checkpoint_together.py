"""A checkpoint that several ranks write: whole, or not at all and the same error on every rank."""

import errno
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.comm.transports.selection import open_transport
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.checkpoint_files import load_checkpoint
from dqrm_cpu.train.held_tensor import HeldPart, HeldTensor, OwnedPart, Stored
from launching import run_world

WRITER = "dqrm_cpu.train.checkpoint.write_shards"
ROWS, DIM = 10, 3
CUT = 4
"""Rank 0 owns the rows before, rank 1 the others; both hold the last two."""


def whole() -> Tensor:
    return torch.arange(ROWS * DIM, dtype=torch.float32).view(ROWS, DIM)


def held(rank: int) -> HeldTensor:
    """What a rank holds of `whole`."""
    owned = (OwnedPart(0, CUT, 0), OwnedPart(CUT, ROWS - CUT, 1))
    if rank:
        return HeldTensor(whole()[CUT:].clone(), ROWS, (HeldPart(CUT, ROWS - CUT, 0),), owned)
    parts = (HeldPart(0, CUT, 0), HeldPart(ROWS - 2, 2, CUT))
    return HeldTensor(torch.cat([whole()[:CUT], whole()[-2:]]), ROWS, parts, owned)


def alone() -> HeldTensor:
    """All rows in one process, written in two parts."""
    parts = (OwnedPart(0, CUT, 0), OwnedPart(CUT, ROWS - CUT, 0))
    return HeldTensor(whole(), ROWS, (HeldPart(0, ROWS, 0),), parts)


def load(path: Path) -> dict[str, Tensor]:
    into = {"tables": torch.full((ROWS, DIM), torch.nan), "mlps": torch.zeros(5)}
    assert load_checkpoint(path, into) == {"a": 1}
    return into


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save(store: CheckpointStore, step: int) -> None:
    stored: dict[str, Stored] = {"tables": alone(), "mlps": torch.ones(5)}
    store.save_together(SingleTransport(), step, stored, lambda: {"a": 1}, best=True)


def test_one_that_was_written_in_parts_is_read_as_any_other(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1, shard_bytes=2 * 4 * DIM)
    save(store, 7)
    path = store.best()
    assert path is not None
    found = load(path)
    assert torch.equal(found["tables"], whole())
    assert found["mlps"].tolist() == [1] * 5


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_reads_the_rows_that_it_holds(rank: int, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1, shard_bytes=3 * 4 * DIM)
    path = store.save(7, {"tables": whole()}, {}, best=False)
    mine = held(rank)
    expected = mine.tensor.clone()
    mine.tensor.fill_(torch.nan)
    load_checkpoint(path, {"tables": mine})
    assert torch.equal(mine.tensor, expected)


def test_the_shard_of_another_rank_is_not_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1, shard_bytes=2 * 4 * DIM)
    path = store.save(7, {"tables": whole()}, {}, best=False)
    (path / "shard-00000.safetensors").write_bytes(b"damaged")  # rows 0 and 1
    load_checkpoint(path, {"tables": held(1)})
    with pytest.raises(CheckpointError, match="shard-00000"):
        load_checkpoint(path, {"tables": held(0)})


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 7)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WRITER, full)
    with pytest.raises(CheckpointError, match=r"step 8 could not be written: .*No space left.* rank 0 writes"):
        save(store, 8)
    assert names(tmp_path) == ["step-000000007"]


@pytest.mark.mpi
def test_a_rank_that_cannot_write_stops_all_with_one_error(tmp_path: Path) -> None:
    tests = Path(__file__).parent.parent
    script = f"import sys; sys.path[:0] = {[str(tests), str(tests / 'train')]!r}; "
    script += "from test_checkpoint_together import worker; worker()"
    run_world("gloo", ["-c", script, tmp_path], 2, timeout_s=90).check()
    errors = [(tmp_path / f"error.{rank}").read_text() for rank in range(2)]
    assert errors[0] == errors[1]
    assert "Input/output error" in errors[0]
    assert "of what rank 1 writes" in errors[0]
    # The next one was written, by both.
    assert names(tmp_path / "checkpoints") == ["step-000000002"]
    assert torch.equal(load(tmp_path / "checkpoints" / "step-000000002")["tables"], whole())


def worker() -> None:
    """One rank: a checkpoint that rank 1 cannot write, then one that both can."""
    folder = Path(sys.argv[1])
    with open_transport("gloo", timeout_s=60) as transport:
        store = CheckpointStore(folder / "checkpoints", keep=1)
        stored: dict[str, Stored] = {"tables": held(transport.rank), "mlps": torch.from_numpy(np.ones(5, np.float32))}

        def broken(*arguments: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        breaks = patch(WRITER, broken) if transport.rank == 1 else nullcontext()
        with breaks, pytest.raises(CheckpointError) as caught:
            store.save_together(transport, 1, stored, lambda: {"a": 1}, best=False)
        assert caught.value.unanimous
        (folder / f"error.{transport.rank}").write_text(str(caught.value))
        store.save_together(transport, 2, stored, lambda: {"a": 1}, best=False)
