"""One shard: what is written comes back, and nothing else is believed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.data.store import layout
from dqrm_cpu.data.store.few_rows import first_rows
from dqrm_cpu.data.store.layout import DamagedShardError
from dqrm_cpu.data.store.manifest import Manifest, ShardFile
from dqrm_cpu.data.store.shard import MappedShard
from dqrm_cpu.data.store.stored_rows import StoredRows
from dqrm_cpu.data.store.writer import write_bags, write_shard
from dqrm_cpu.errors import DataError
from stored import SCHEMA, TABLE_ROWS, finish, random_bags, random_rows, same_rows

NAME = "train-0.shard"


def one_shard(folder: Path, count: int = 100) -> ShardFile:
    return write_shard(folder, NAME, SCHEMA, *random_rows(count))


def data_set(folder: Path, *shards: ShardFile) -> Manifest:
    return finish(folder, {"train": shards, "validation": (), "test": ()})


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@settings(max_examples=15)
@given(
    shards=st.lists(st.sampled_from([1, 63, 64, 100, 8191, 8192, 8193, 16384]), min_size=1, max_size=3),
    data=st.data(),
)
def test_any_range_comes_back(shards: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("shards")
    rows = random_rows(sum(shards))
    bounds = np.cumsum([0, *shards])
    files = [
        write_shard(folder, f"{k}.shard", SCHEMA, *rows.at(slice(bounds[k], bounds[k + 1]))) for k in range(len(shards))
    ]
    stored = StoredRows(folder, data_set(folder, *files), "train")
    start = data.draw(st.integers(0, sum(shards)))
    stop = data.draw(st.integers(start, sum(shards)))
    assert same_rows(stored.rows(start, stop), rows.at(slice(start, stop)))
    chosen = np.asarray(data.draw(st.lists(st.integers(0, sum(shards) - 1), max_size=50)), np.int64)
    assert same_rows(stored.take(chosen), rows.at(chosen))
    few = first_rows(folder, data_set(folder, *files), "train", stop)
    assert np.array_equal(few.dense, rows.dense[:stop])
    assert np.array_equal([of_table for _, of_table in few.bags], rows.ids[:, :stop])
    assert all(np.array_equal(sizes, np.ones(stop)) for sizes, _ in few.bags)


@settings(max_examples=10)
@given(count=st.sampled_from([1, 5, 8193]), seed=st.integers(0, 9), data=st.data())
def test_bags_come_back(count: int, seed: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bags")
    rows, (ids, offsets) = random_rows(count), random_bags(count, seed)
    file = write_bags(folder, NAME, SCHEMA, rows.label, rows.dense, ids, offsets)
    stored = StoredRows(folder, data_set(folder, file), "train")
    start = data.draw(st.integers(0, count))
    batch = stored.rows(start, count)
    assert batch.offsets is not None
    found, bounds = batch.ids.numpy(), batch.offsets.numpy()
    for table in range(len(TABLE_ROWS)):
        for row in range(start, min(count, start + 20)):
            mine = table * (count - start) + row - start
            theirs = table * count + row
            want = ids[offsets[theirs] : offsets[theirs + 1]]
            np.testing.assert_array_equal(found[bounds[mine] : bounds[mine + 1]], want)
    np.testing.assert_array_equal(batch.dense.numpy(), rows.dense[start:])
    few = first_rows(folder, data_set(folder, file), "train", start)
    assert np.array_equal(few.dense, rows.dense[:start])
    for table, (sizes, of_table) in enumerate(few.bags):
        bounds = offsets[table * count : table * count + start + 1]
        assert np.array_equal(sizes, np.diff(bounds))
        assert np.array_equal(of_table, ids[bounds[0] : bounds[-1]])


def test_ids_take_as_few_bytes_as_their_largest_needs(tmp_path: Path) -> None:
    shard = MappedShard(tmp_path / NAME, one_shard(tmp_path))
    assert shard.id_bytes.tolist() == [1, 2, 4, 1]


def test_an_empty_shard_can_be_read(tmp_path: Path) -> None:
    stored = StoredRows(tmp_path, data_set(tmp_path, one_shard(tmp_path, 0)), "train")
    assert stored.rows(0, 0).ids.shape == (4, 0)


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    file = one_shard(tmp_path)
    assert file.bytes == (tmp_path / NAME).stat().st_size
    assert (file.rows, file.clicks) == (100, int(random_rows(100).label.sum()))


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    one_shard(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("section", list(layout.Section)[:3])
def test_a_flipped_bit_is_found_when_its_block_is_read(tmp_path: Path, section: layout.Section) -> None:
    file = one_shard(tmp_path, 9000)
    header = MappedShard(tmp_path / NAME, file).header
    flip(tmp_path / NAME, int(header.sections[1, section]["offset"]) + 5)
    stored = StoredRows(tmp_path, data_set(tmp_path, file), "train")
    stored.rows(0, 8192)
    with pytest.raises(DamagedShardError, match=rf"{NAME}: the {section.name.lower()} section of block 1 \(rows 8,192"):
        stored.rows(0, 8193)


@pytest.mark.parametrize("place", [0, 9, 20, 40, 70, 100])
def test_a_flipped_bit_in_the_header_is_found(tmp_path: Path, place: int) -> None:
    file = one_shard(tmp_path)
    flip(tmp_path / NAME, place)
    with pytest.raises(DataError, match=NAME):
        MappedShard(tmp_path / NAME, file)


@pytest.mark.parametrize("size", [0, 10, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    file = one_shard(tmp_path)
    content = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(content[:size])
    with pytest.raises(DamagedShardError, match=r"bytes"):
        MappedShard(tmp_path / NAME, file)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    file = one_shard(tmp_path)
    (tmp_path / NAME).write_bytes(bytes(file.bytes))
    with pytest.raises(DamagedShardError, match="is no shard"):
        MappedShard(tmp_path / NAME, file)


def test_another_shard_of_the_same_size_is_refused(tmp_path: Path) -> None:
    file = one_shard(tmp_path)
    write_shard(tmp_path, NAME, SCHEMA, *random_rows(100, seed=5))
    with pytest.raises(DamagedShardError, match="not the file that its manifest names"):
        MappedShard(tmp_path / NAME, file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    file = one_shard(tmp_path)
    (tmp_path / NAME).unlink()
    with pytest.raises(DamagedShardError, match=f"{NAME} is missing"):
        MappedShard(tmp_path / NAME, file)


def test_a_later_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dqrm_cpu.data.store.writer.VERSION", layout.VERSION + 1)
    file = one_shard(tmp_path)
    with pytest.raises(DataError, match=r"has format 2, this version reads 1"):
        MappedShard(tmp_path / NAME, file)


def test_an_id_beyond_its_table_is_found_before_any_row_is_read(tmp_path: Path) -> None:
    manifest = replace(data_set(tmp_path, one_shard(tmp_path)), table_rows=(256, 65_536, 2_999_999, 1))
    with pytest.raises(DamagedShardError, match="column wide has id 2999999"):
        StoredRows(tmp_path, manifest, "train").rows(0, 1)


def test_rows_beyond_the_end_are_refused(tmp_path: Path) -> None:
    stored = StoredRows(tmp_path, data_set(tmp_path, one_shard(tmp_path)), "train")
    with pytest.raises(DataError, match="rows 90 to 101 of a part of 100"):
        stored.rows(90, 101)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.full(100, 2, np.uint8)}, "label 2"),
        ({"dense": np.full((100, 3), np.nan, np.float32)}, "nan in d0"),
        ({"dense": np.zeros((100, 2), np.float32)}, "dense is float32"),
        ({"ids": np.full((4, 100), -1, np.int32)}, "column narrow has id -1"),
        ({"ids": np.zeros((4, 100), np.int64)}, "ids is int64"),
    ],
)
def test_what_cannot_be_right_is_not_written(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_shard(tmp_path, NAME, SCHEMA, **{**random_rows(100)._asdict(), **change})
    assert list(tmp_path.iterdir()) == []


def test_more_shards_than_may_be_mapped_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dqrm_cpu.data.store.stored_rows.MOST_MAPPED", 2)
    rows = random_rows(50)
    files = [write_shard(tmp_path, f"{k}.shard", SCHEMA, *rows.at(slice(10 * k, 10 * k + 10))) for k in range(5)]
    stored = StoredRows(tmp_path, data_set(tmp_path, *files), "train")
    for start in (0, 35, 5, 40, 12):
        assert same_rows(stored.rows(start, start + 10), rows.at(slice(start, start + 10)))
    assert same_rows(stored.rows(0, 50), rows)
