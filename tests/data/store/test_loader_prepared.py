"""Batches of prepared rows: the same for any number of shares, from any place on, whatever was read before."""

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.data.batch import Batch, rank_shares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import open_data
from dqrm_cpu.data.store import order, read_ahead
from dqrm_cpu.data.store.layout import DamagedShardError
from dqrm_cpu.data.store.manifest import PART_NAMES
from dqrm_cpu.data.store.writer import write_bags, write_shard
from dqrm_cpu.errors import DataError
from stored import SCHEMA, Rows, config_of, finish, random_bags, random_rows, same_rows, write_data_set
from tiny import CPU

SHARD_ROWS = [500, 300, 234]
NUM_ROWS = sum(SHARD_ROWS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prepared")
    write_data_set(path, SHARD_ROWS)
    return path


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, groups and windows out of a thousand rows."""
    monkeypatch.setattr(read_ahead, "CHUNK_ROWS", 128)
    monkeypatch.setattr(order, "GROUP_ROWS", 16)
    monkeypatch.setattr(order, "WINDOW_GROUPS", 4)
    monkeypatch.setattr(order, "_COUNTED_ROWS", 64)


def loader(folder: Path, batch_size: int, rank: int = 0, size: int = 1, simulated: int = 1, **data: object) -> Loader:
    part = open_data(config_of(folder, batch_size, **data)).train
    return Loader(part, batch_size, rank_shares(rank, size, simulated), CPU, cache_bytes=1 << 30)


def numbers(batches: list[Batch]) -> list[int]:
    """The rows' own numbers; they are stored in the first dense column."""
    return [int(value) for batch in batches for value in batch.dense[:, 0]]


def epoch(one: Loader, number: int = 0) -> list[int]:
    first = number * one.num_batches
    return [row for k in range(first, first + one.num_batches) for row in numbers(one.batches(k))]


@pytest.mark.parametrize("batch_size", [1, 7, 128, 1000, 5000])
def test_batches_hold_the_rows_in_order(folder: Path, batch_size: int) -> None:
    one, rows = loader(folder, batch_size), random_rows(NUM_ROWS)
    for number in range(one.num_batches):
        (batch,) = one.batches(number)
        start = number * batch_size
        assert same_rows(batch, rows.at(slice(start, min(start + batch_size, NUM_ROWS))))
        assert one.global_size(number) == batch.size


@pytest.mark.parametrize("data", [{}, {"reshuffle": True}, {"sub_sample_rate": 0.5}])
@settings(max_examples=6)
@given(batch_size=st.integers(1, 200), size=st.integers(1, 5))
def test_any_number_of_ranks_sees_the_same_batches(
    folder: Path, data: dict[str, Any], batch_size: int, size: int
) -> None:
    alone = loader(folder, batch_size, **data)
    ranks = [loader(folder, batch_size, rank, size, **data) for rank in range(size)]
    simulated = loader(folder, batch_size, simulated=size, **data)
    for number in range(alone.num_batches + 2):
        shares = [one.batches(number)[0] for one in ranks]
        together = numbers(shares)
        assert together == numbers(alone.batches(number))
        assert [numbers([share]) for share in shares] == [numbers([share]) for share in simulated.batches(number)]


@pytest.mark.parametrize("data", [{}, {"reshuffle": True}, {"sub_sample_rate": 0.5, "reshuffle": True}])
@settings(max_examples=6)
@given(asked=st.lists(st.integers(0, 99), min_size=1, max_size=12))
def test_a_batch_does_not_depend_on_what_was_read_before(folder: Path, data: dict[str, Any], asked: list[int]) -> None:
    jumping = loader(folder, 32, **data)
    for number in asked:
        assert numbers(jumping.batches(number)) == numbers(loader(folder, 32, **data).batches(number))


def test_a_batch_stays_while_the_next_one_is_used(folder: Path) -> None:
    one = loader(folder, 128)
    for number in (0, 1, 5, 2, 3, 0):
        held = one.batches(number)[0]
        want = held.dense.clone(), held.ids.clone(), held.label.clone()
        one.batches((number + 3) % one.num_batches)
        for _ in range(20):  # gives a wrong writer time to write
            threading.Event().wait(0.001)
        assert all(map(torch.equal, (held.dense, held.ids, held.label), want))


def test_copies_of_batches_stay_together(folder: Path) -> None:
    # The last batch of an epoch is smaller: ids of it read as of a full one would name rows of other tables.
    one, first, count = loader(folder, 100), 3, 19
    copies = one.copies(first, count)
    for number, (copy,) in enumerate(copies, first):
        (want,) = loader(folder, 100).batches(number)
        assert all(map(torch.equal, (copy.dense, copy.ids, copy.label), (want.dense, want.ids, want.label)))
    assert len({batch.size for (batch,) in copies}) == 2


def test_reshuffled_epochs_are_permutations_that_differ(folder: Path) -> None:
    one = loader(folder, 50, reshuffle=True)
    epochs = [epoch(one, number) for number in range(3)]
    assert all(sorted(rows) == list(range(NUM_ROWS)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3


def test_a_seed_decides_the_order() -> None:
    def rows(seed: int) -> list[int]:
        made = order.Order(1000, seed, reshuffle=True, sub_sample_rate=0, labels=None)
        numbers: list[int] = made.rows(0, 0, 1000).tolist()
        return numbers

    assert rows(1) == rows(1) != rows(2)


def test_rows_of_a_batch_come_from_all_over(folder: Path) -> None:
    rows = np.asarray(epoch(loader(folder, 64, reshuffle=True)))
    distances = np.abs(rows - np.arange(NUM_ROWS))
    # Of a random permutation, the mean distance is a third of the number of rows.
    assert distances.mean() > NUM_ROWS / 5


@pytest.mark.parametrize("reshuffle", [False, True])
def test_sub_sampling_leaves_out_negative_rows_only(folder: Path, reshuffle: bool) -> None:
    label = random_rows(NUM_ROWS).label
    kept = epoch(loader(folder, 50, sub_sample_rate=0.4, reshuffle=reshuffle))
    left_out = np.setdiff1d(np.arange(NUM_ROWS), kept)
    assert len(kept) == len(set(kept)) == NUM_ROWS - left_out.size
    assert not label[left_out].any()
    share = left_out.size / (label == 0).sum()
    # Five standard deviations of a binomial share.
    assert abs(share - 0.4) < 5 * np.sqrt(0.4 * 0.6 / (label == 0).sum())


def test_a_higher_rate_leaves_out_more_of_the_same(folder: Path) -> None:
    some, more = (set(epoch(loader(folder, 50, sub_sample_rate=rate))) for rate in (0.3, 0.7))
    assert more < some


def test_sub_sampling_stays_the_same_in_every_epoch(folder: Path) -> None:
    one = loader(folder, 50, sub_sample_rate=0.5, reshuffle=True)
    assert sorted(epoch(one, 0)) == sorted(epoch(one, 1))


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    rows = random_rows(100)
    silent = Rows(np.zeros(100, np.uint8), rows.dense, rows.ids)
    parts = {part: (write_shard(tmp_path, f"{part}.shard", SCHEMA, *silent),) for part in PART_NAMES}
    finish(tmp_path, parts)
    with pytest.raises(DataError, match=r"data\.sub_sample_rate 1\.0 leaves no training row"):
        open_data(config_of(tmp_path, sub_sample_rate=1.0))


def test_damage_reaches_the_caller_when_its_batch_is_asked_for(tmp_path: Path) -> None:
    write_data_set(tmp_path, [8192, 8192])
    one = loader(tmp_path, 128)
    path = tmp_path / "train-1.shard"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    for number in range(64):
        one.batches(number)
    with pytest.raises(DamagedShardError, match=r"train-1\.shard: the ids section of block 0"):
        one.batches(64)


def test_a_loader_goes_on_after_an_error(tmp_path: Path) -> None:
    write_data_set(tmp_path, [500])
    one = loader(tmp_path, 128)
    hidden = (tmp_path / "train-0.shard").rename(tmp_path / "hidden")
    with pytest.raises(DamagedShardError, match="missing"):
        one.batches(0)
    hidden.rename(tmp_path / "train-0.shard")
    assert numbers(one.batches(0)) == list(range(128))


def test_bags_are_loaded_too(tmp_path: Path) -> None:
    rows, (ids, offsets) = random_rows(300), random_bags(300, 1)
    parts = {
        part: (write_bags(tmp_path, f"{part}.shard", SCHEMA, rows.label, rows.dense, ids, offsets),)
        for part in PART_NAMES
    }
    finish(tmp_path, parts)
    one = loader(tmp_path, 64)
    for number in range(one.num_batches):
        (batch,) = one.batches(number)
        assert batch.offsets is not None
        for table in range(SCHEMA.num_tables):
            first, after = (table * 300 + number * 64 + k for k in (0, batch.size))
            low, high = int(batch.offsets[table * batch.size]), int(batch.offsets[(table + 1) * batch.size])
            np.testing.assert_array_equal(batch.ids[low:high].numpy(), ids[offsets[first] : offsets[after]])


def test_the_thread_ends_with_its_loader(folder: Path) -> None:
    before = set(threading.enumerate())
    one = loader(folder, 32)
    one.batches(0)
    (thread,) = set(threading.enumerate()) - before
    del one
    gc.collect()
    thread.join(timeout=20)
    assert not thread.is_alive()
