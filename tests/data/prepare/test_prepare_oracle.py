"""What `prepare` makes of lines, against the csv module: ids, labels, logarithms, order, counts, all of them exact."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.data.prepare.request import VocabularySettings
from dqrm_cpu.data.store.manifest import Manifest
from prepare_oracle import Expected, expect
from preparing import criteo_text, files_of, prepared, rows_of


def require_equal(out: Path, manifest: Manifest, expected: Expected) -> None:
    assert list(manifest.table_rows) == expected.table_rows
    for part, rows in expected.parts.items():
        label, dense, ids = rows_of(out, part)
        assert label.tolist() == [row.label for row in rows]
        assert ids.tolist() == [row.keys for row in rows]
        wanted = np.array([row.dense for row in rows], np.float32).reshape(dense.shape)
        assert np.array_equal(dense.view(np.uint32), wanted.view(np.uint32)), part
    for column in manifest.columns:
        assert column.missing == expected.missing[column.name], column.name
        assert column.clamped in (None, expected.clamped[column.name])


@pytest.mark.parametrize(
    ("min_count", "modulus"), [(1, 0), (2, 0), (1, 50), (3, 700)], ids=("plain", "rare", "folded", "both")
)
def test_thousand_rows_are_as_the_csv_module_reads_them(tmp_path: Path, min_count: int, modulus: int) -> None:
    (tmp_path / "train.txt").write_text(text := criteo_text(1000))
    vocabulary = VocabularySettings(min_count=min_count, max_ind_range=modulus)
    options = {"vocabulary": vocabulary, "seed": 7, "shard_rows": 150}
    manifest = prepared([tmp_path / "train.txt"], tmp_path / "out", **options)
    require_equal(tmp_path / "out", manifest, expect(text, 7, 150, min_count, modulus))


INTEGERS = st.one_of(
    st.just(""),
    st.integers(-(2**31), 2**31 - 1).map(str),
    st.integers(0, 99_999_999).map(str),
    st.sampled_from(["-0", "007", "0000000000012", "2147483647", "-2147483648", "9999999", "10000000"]),
)
HASHES = st.one_of(
    st.just(""),
    st.integers(0, 2**32 - 1).map("{:08x}".format),
    st.integers(0, 2**32 - 1).map("{:X}".format),
    st.sampled_from(["0", "00000000", "f", "ffffffff", "FFFFFFFF", "00000001", "1"]),
)
LINES = st.tuples(
    st.sampled_from("01"), st.lists(INTEGERS, min_size=13, max_size=13), st.lists(HASHES, min_size=26, max_size=26)
).map(lambda line: "\t".join([line[0], *line[1], *line[2]]))


@settings(max_examples=25)
@given(lines=st.lists(LINES, min_size=1, max_size=30), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
def test_nasty_but_valid_lines_are_as_the_csv_module_reads_them(lines: list[str], end: str, last: bool) -> None:
    text = end.join(lines) + (end if last else "")
    with TemporaryDirectory() as folder:
        path, out = Path(folder) / "train.txt", Path(folder) / "out"
        path.write_bytes(text.encode())
        manifest = prepared([path], out, block_bytes=700, shard_rows=8)
        require_equal(out, manifest, expect(text, 1, 8))


def test_workers_and_blocks_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(criteo_text(600))
    for name, workers, block_bytes in (("a", 1, 1 << 20), ("b", 2, 1 << 10), ("c", 3, 5000)):
        prepared([tmp_path / "train.txt"], tmp_path / name, workers=workers, block_bytes=block_bytes, shard_rows=100)
    shards = [{k: v for k, v in files_of(tmp_path / name).items() if k != "manifest.json"} for name in "abc"]
    assert shards[0] == shards[1] == shards[2]


def test_a_seed_changes_the_order_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(criteo_text(300))
    for seed in (1, 2):
        prepared([tmp_path / "train.txt"], tmp_path / str(seed), seed=seed)
    first, second = (rows_of(tmp_path / str(seed), "train")[2].tolist() for seed in (1, 2))
    assert first != second
    assert sorted(first) == sorted(second)
    for part in ("validation", "test"):
        assert np.array_equal(rows_of(tmp_path / "1", part)[2], rows_of(tmp_path / "2", part)[2])
