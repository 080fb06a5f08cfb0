"""What other programs prepared, written here in their layouts, becomes the same rows in ours."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dqrm_cpu.data.store.foreign import blocks
from dqrm_cpu.data.store.foreign.convert import convert, open_foreign
from dqrm_cpu.data.store.manifest import Manifest, read_manifest
from dqrm_cpu.data.store.shard import verify
from dqrm_cpu.data.store.stored_rows import StoredRows
from dqrm_cpu.errors import DataError

NUM_ROWS = 1000
LARGEST = 70_000


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards a part."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 300)


class Raw:
    """Integers, ids and labels as the other programs hold them; some integers are negative."""

    def __init__(self, rows: int = NUM_ROWS, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.integers = random.integers(-2, 100_000, (rows, 13), np.int32)
        self.ids = random.integers(0, LARGEST, (rows, 26), np.int32)
        self.label = random.integers(0, 2, rows, np.int32)

    def logs(self) -> NDArray[np.float32]:
        logs: NDArray[np.float32] = np.log(np.maximum(self.integers, 0).astype(np.float32) + 1)
        return logs


def write_npz(folder: Path, raw: Raw, days: list[int] | None = None) -> Path:
    path = folder / "kaggleAdDisplayChallenge_processed.npz"
    counts = np.full(26, LARGEST, np.int32)
    np.savez_compressed(path, X_cat=raw.ids, X_int=raw.integers, y=raw.label, counts=counts)
    if days:
        np.savez(folder / "train_day_count.npz", total_per_file=np.asarray(days))
    return path


def write_bins(folder: Path, raw: Raw, parts: dict[str, slice]) -> Path:
    rows = np.concatenate([raw.label[:, None], raw.integers, raw.ids], axis=1).astype("<i4")
    for part, chosen in parts.items():
        rows[chosen].tofile(folder / f"terabyte_processed_{part}.bin")
    return folder


def write_days(folder: Path, raw: Raw, days: list[slice], sparse: str = "sparse") -> Path:
    for day, rows in enumerate(days):
        with np.errstate(divide="ignore"):
            dense = np.log(raw.integers[rows] + 3, dtype=np.float32)
        np.save(folder / f"day_{day}_dense.npy", dense)
        np.save(folder / f"day_{day}_{sparse}.npy", raw.ids[rows])
        np.save(folder / f"day_{day}_labels.npy", raw.label[rows, None])
    return folder


def converted(source: Path, out: Path, max_ind_range: int = 0) -> Manifest:
    counted: list[int] = []
    foreign = open_foreign(source)
    manifest = convert(foreign, out, max_ind_range, counted.append)
    assert sum(counted) == foreign.num_rows == sum(map(manifest.num_rows, manifest.parts))
    assert verify(out, manifest, lambda _: None) == []
    return manifest


def assert_part(out: Path, part: str, raw: Raw, start: int, stop: int, tolerance: float = 0) -> None:
    manifest = read_manifest(out)
    assert manifest.num_rows(part) == stop - start
    batch = StoredRows(out, manifest, part).rows(0, stop - start)
    np.testing.assert_array_equal(batch.label.numpy(), raw.label[start:stop])
    np.testing.assert_array_equal(batch.ids.numpy(), raw.ids[start:stop].T)
    np.testing.assert_allclose(batch.dense.numpy(), raw.logs()[start:stop], rtol=tolerance)


def test_npz_holds_out_the_last_of_seven_days(tmp_path: Path) -> None:
    raw = Raw()
    manifest = converted(write_npz(tmp_path, raw), tmp_path / "out")
    # 1000 rows are 6 days of 143 and one of 142.
    assert_part(tmp_path / "out", "train", raw, 0, 858)
    assert_part(tmp_path / "out", "test", raw, 858, 929)
    assert_part(tmp_path / "out", "validation", raw, 929, 1000)
    assert manifest.table_rows == (LARGEST,) * 26
    assert len(manifest.parts["train"]) == 3


def test_npz_with_a_file_of_day_lengths(tmp_path: Path) -> None:
    raw = Raw()
    converted(write_npz(tmp_path, raw, days=[500, 400, 100]), tmp_path / "out")
    assert_part(tmp_path / "out", "train", raw, 0, 900)


def test_bins_by_part(tmp_path: Path) -> None:
    raw = Raw()
    parts = {"train": slice(0, 700), "test": slice(700, 800), "val": slice(800, 1000)}
    manifest = converted(write_bins(tmp_path, raw, parts), tmp_path / "out")
    assert_part(tmp_path / "out", "train", raw, 0, 700)
    assert_part(tmp_path / "out", "validation", raw, 800, 1000)
    assert_part(tmp_path / "out", "test", raw, 700, 800)
    assert manifest.table_rows == tuple(int(column.max()) + 1 for column in raw.ids.T)


def test_bins_without_a_validation_file(tmp_path: Path) -> None:
    raw = Raw()
    converted(write_bins(tmp_path, raw, {"train": slice(0, 701), "test": slice(701, 1000)}), tmp_path / "out")
    assert_part(tmp_path / "out", "test", raw, 701, 851)
    assert_part(tmp_path / "out", "validation", raw, 851, 1000)


def test_counts_beside_the_bins_are_the_table_sizes(tmp_path: Path) -> None:
    write_bins(tmp_path, Raw(), {"train": slice(0, 700), "test": slice(700, 1000)})
    np.savez(tmp_path / "day_fea_count.npz", counts=np.full(26, 99_999))
    assert converted(tmp_path, tmp_path / "out").table_rows == (99_999,) * 26


@pytest.mark.parametrize("sparse", ["sparse", "sparse_contig_freq"])
def test_days_of_npy(tmp_path: Path, sparse: str) -> None:
    raw = Raw()
    converted(write_days(tmp_path, raw, [slice(0, 350), slice(350, 900), slice(900, 1000)], sparse), tmp_path / "out")
    # The logarithm was rounded once in float32 when it was written.
    assert_part(tmp_path / "out", "train", raw, 0, 900, tolerance=1e-6)
    assert_part(tmp_path / "out", "test", raw, 900, 950, tolerance=1e-6)


def test_negative_integers_are_counted(tmp_path: Path) -> None:
    raw = Raw()
    for name, write in (("npz", write_npz), ("npy", lambda f, r: write_days(f, r, [slice(0, 900), slice(900, 1000)]))):
        (tmp_path / name).mkdir()
        manifest = converted(write(tmp_path / name, raw), tmp_path / f"{name}-out")
        assert [column.clamped for column in manifest.columns[:13]] == (raw.integers < 0).sum(axis=0).tolist()


def test_hashes_are_folded_when_asked(tmp_path: Path) -> None:
    raw = Raw()
    raw.ids = raw.ids - 35_000
    source = write_bins(tmp_path, raw, {"train": slice(0, 700), "test": slice(700, 1000)})
    with pytest.raises(DataError, match="fold them with --max-ind-range"):
        converted(source, tmp_path / "refused")
    converted(source, tmp_path / "out", max_ind_range=1000)
    raw.ids = raw.ids % 1000
    assert_part(tmp_path / "out", "train", raw, 0, 700)


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    source = write_npz(tmp_path, Raw())
    converted(source, tmp_path / "out")
    with pytest.raises(DataError, match="holds a data set already"):
        converted(source, tmp_path / "out")


def test_an_interrupted_conversion_leaves_no_data_set(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    source = write_npz(tmp_path, Raw())
    with pytest.raises(KeyboardInterrupt):
        convert(open_foreign(source), tmp_path / "out", 0, stop)
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        read_manifest(tmp_path / "out")
    converted(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["missing", "other.npz", "empty"])
def test_nothing_that_can_be_converted(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.npz").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=name):
        open_foreign(tmp_path / name)


def test_a_bin_cut_short(tmp_path: Path) -> None:
    write_bins(tmp_path, Raw(), {"train": slice(0, 700), "test": slice(700, 1000)})
    path = tmp_path / "terabyte_processed_train.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="no multiple of 160"):
        open_foreign(tmp_path)


def test_labels_that_are_none(tmp_path: Path) -> None:
    raw = Raw()
    raw.label[10] = 7
    with pytest.raises(DataError, match="label 7 at row 10"):
        converted(write_npz(tmp_path, raw), tmp_path / "out")
