"""What `prepare` makes of lines, against the csv module: ids, labels, logarithms, order, counts, all of them exact."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.data.prepare.request import VocabularySettings
from folders import files_of
from nasty_rows import nasty_case, prepare_bytes, require_case, require_equal, schema_bytes
from prepare_oracle import expect
from preparing import criteo_text, prepared, rows_of


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


@pytest.mark.parametrize("first", range(0, 30, 15))
def test_nasty_files_give_the_rows_of_the_regular_expressions(tmp_path: Path, first: int) -> None:
    outcomes = []
    for seed in range(first, first + 15):
        (folder := tmp_path / f"{seed}").mkdir()
        outcomes.append(require_case(nasty_case(seed), folder))
    assert set(outcomes) == {"rows", "error"}


CELLS = st.one_of(
    st.sampled_from([b"", b"0", b"1", b"-1", b"1.5", b"-.5e-3", b"ff", b"FFFFFFFF", b"2147483648", b"9" * 30, b"\r"]),
    st.text('0123456789abcdefABCDEF+-.eExX_ \r\0"\u0661\uff11', max_size=12).map(str.encode),
    st.binary(max_size=10),
)
NASTY = st.lists(st.lists(CELLS, min_size=5, max_size=7).map(b",".join), max_size=6).map(b"\n".join)


@settings(max_examples=120)
@given(data=NASTY | st.binary(max_size=60))
def test_nasty_bytes_are_rows_or_bad_lines(data: bytes) -> None:
    prepare_bytes(data)


WORDS = st.sampled_from(["click", "hour", "site", "id", "fields", "header", "label", "delimiter", "quotes", ","])
VALUES = st.recursive(
    st.one_of(WORDS.map(repr), st.sampled_from(["true", "1", "1.5", "9" * 5000, "''", "1979-05-27"])),
    lambda inner: st.lists(inner, max_size=4).map(lambda values: f"[{', '.join(values)}]"),
    max_leaves=6,
)


@settings(max_examples=60)
@given(lines=st.lists(st.tuples(WORDS | st.just("integers") | st.just("categories"), VALUES), max_size=5))
def test_any_schema_is_a_layout_or_a_clear_error(lines: list[tuple[str, str]]) -> None:
    schema_bytes("\n".join(f"{key!r} = {value}" for key, value in lines).encode())
