"""Columns with several values in a cell: their bags against plain Python, in text and in Parquet, wherever it stops."""

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bag_oracle import LIMITS, NAMES, SCHEMA, ExpectedBags, TaggedRow, expect_bags, tagged_columns, tagged_text
from dqrm_cpu.data.prepare.bag_records import RecordBags
from dqrm_cpu.data.prepare.output.fit import given_transforms
from dqrm_cpu.data.prepare.preparation import prepare
from dqrm_cpu.data.prepare.request import PrepareRequest, VocabularySettings
from dqrm_cpu.data.prepare.resume import WORK_FOLDER
from dqrm_cpu.data.prepare.row_layout import Field, Layout
from dqrm_cpu.data.prepare.schema_file import read_schema, read_time_split
from dqrm_cpu.data.prepare.spool import read_records, read_spool_file
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import require_vocabulary
from dqrm_cpu.data.store.manifest import Manifest, read_manifest
from dqrm_cpu.data.store.stored_rows import StoredRows
from dqrm_cpu.errors import ConfigError, DataError
from folders import files_of
from preparing import prepared, request_for
from test_prepare_restart import interrupted_at


def layout_of(folder: Path, text: str = SCHEMA, *, parquet: bool = False) -> Layout:
    (folder / "schema.toml").write_text(text)
    return read_schema(folder / "schema.toml", ",".join(NAMES), list(NAMES) if parquet else None)


def rows_of(out: Path, part: str) -> list[TaggedRow]:
    manifest = read_manifest(out)
    count, tables = manifest.num_rows(part), manifest.schema.num_tables
    if not count:
        return []
    batch = StoredRows(out, manifest, part).rows(0, count)
    assert batch.offsets is not None
    bags = np.split(batch.ids.numpy(), batch.offsets.numpy()[1:-1])
    ids = [tuple(tuple(bags[t * count + i].tolist()) for t in range(tables)) for i in range(count)]
    prices = batch.dense.numpy()[:, 0]
    return [TaggedRow(int(label), price, row) for label, price, row in zip(batch.label, prices, ids, strict=True)]


def require_expected(out: Path, manifest: Manifest, expected: ExpectedBags) -> None:
    assert {part: rows_of(out, part) for part in expected.parts} == expected.parts
    assert manifest.table_rows == expected.table_rows
    columns = {column.name: column for column in manifest.columns[1:]}
    assert {name: columns[name].cut for name in columns} == {"site": None, **expected.cut}
    for counted in ("missing", "distinct", "rare"):
        assert {name: getattr(column, counted) for name, column in columns.items()} == getattr(expected, counted)


@pytest.mark.parametrize("min_count", [1, 3])
def test_rows_with_tags_are_as_the_csv_module_reads_them(tmp_path: Path, min_count: int) -> None:
    (tmp_path / "log.csv").write_text(text := tagged_text(tagged_columns(900)))
    options = {"vocabulary": VocabularySettings(min_count=min_count), "seed": 7, "shard_rows": 150}
    manifest = prepared([tmp_path / "log.csv"], tmp_path / "out", layout=layout_of(tmp_path), **options)
    expected = expect_bags(text, 7, 150, min_count)
    require_expected(tmp_path / "out", manifest, expected)
    assert min(expected.cut["topics"], expected.missing["tags"]) > 0
    assert (expected.rare["tags"] > 0) == (min_count > 1)


WORDS = st.text(st.sampled_from("ab|, 70.\u00fc'"), max_size=5)
VALUES = WORDS | st.sampled_from(["NaN", "null", "\\N", "True", "47.0"])
TEXTS = st.lists(VALUES, max_size=5).map("|".join), st.lists(VALUES, max_size=5).map(",".join)


LINES = st.tuples(st.sampled_from("01"), st.just("7"), st.just("2.5"), VALUES, *TEXTS)


@settings(max_examples=25)
@given(lines=st.lists(LINES, min_size=1, max_size=25), block_bytes=st.integers(60, 400))
def test_any_cells_are_as_the_csv_module_reads_them(lines: list[tuple[str, ...]], block_bytes: int) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([NAMES, *lines])
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "log.csv").write_bytes(out.getvalue().encode())
        options = {"block_bytes": block_bytes, "shard_rows": 9}
        manifest = prepared([folder / "log.csv"], folder / "out", layout=layout_of(folder), **options)
        require_expected(folder / "out", manifest, expect_bags(out.getvalue(), 1, 9))


def bytes_of(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(out).items() if name.endswith((".shard", ".npy"))}


@pytest.mark.parametrize("kind", ["list", "large_list", "text"])
def test_parquet_gives_the_bytes_that_its_text_gives(tmp_path: Path, kind: str) -> None:
    columns = tagged_columns(300)
    (tmp_path / "log.csv").write_text(tagged_text(columns))
    arrays = {name: pa.array(values) for name, values in columns.items()}
    for name in LIMITS:
        if kind == "large_list":
            arrays[name] = arrays[name].cast(pa.large_list(pa.string()))
        if kind == "text":
            rows = list(csv.DictReader(io.StringIO(tagged_text(columns))))
            arrays[name] = pa.array([row[name] for row in rows]).dictionary_encode()
    pq.write_table(pa.table(arrays), tmp_path / "log.parquet", row_group_size=90)
    text = prepared([tmp_path / "log.csv"], tmp_path / "text", layout=layout_of(tmp_path), block_bytes=1 << 11)
    layout = layout_of(tmp_path, parquet=True)
    parquet = prepared([tmp_path / "log.parquet"], tmp_path / "parquet", layout=layout, block_bytes=1 << 11)
    assert bytes_of(tmp_path / "parquet") == bytes_of(tmp_path / "text")
    assert parquet.columns == text.columns


def test_numbers_in_lists_are_the_categories_that_their_text_is(tmp_path: Path) -> None:
    table: dict[str, list[Any]] = {
        "click": [0, 1, 0, 1, 0],
        "ts": [1] * 5,
        "price": [1.0] * 5,
        "site": ["a"] * 5,
        "tags": [[47, 1], [], None, [1, 47, 47], [5]],
        "topics": [[True]] * 5,
    }
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    layout = layout_of(tmp_path, SCHEMA.replace('tags = "|"', "tags = {}"), parquet=True)
    prepared([tmp_path / "log.parquet"], tmp_path / "out", layout=layout, split="none")
    assert sorted(row.ids[1] for row in rows_of(tmp_path / "out", "train")) == [(), (), (1, 2), (2, 1), (3,)]


def stepwise(folder: Path, name: str) -> PrepareRequest:
    options: dict[str, Any] = {"shard_rows": 100, "bad_rows": "skip", "vocabulary": VocabularySettings(min_count=2)}
    return request_for([folder / "log.csv"], folder / name, layout=layout_of(folder), block_bytes=1 << 11, **options)


def test_it_goes_on_after_a_stop_with_the_same_bytes(tmp_path: Path) -> None:
    """Also where power failed, and a step in the middle is damaged."""
    lines = tagged_text(tagged_columns(700)).splitlines()
    lines[300] = "1,1,no number,a,b,c"
    (tmp_path / "log.csv").write_text("\n".join(lines))
    prepare(stepwise(tmp_path, "whole"))
    killed = stepwise(tmp_path, "killed")
    with pytest.raises(KeyboardInterrupt):
        prepare(interrupted_at(killed, rows=400))
    step = tmp_path / "killed" / WORK_FOLDER / "spool" / "000002.rows"
    content = step.read_bytes()
    step.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    prepare(killed)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("place", [2**31, 2**32 - 1])
def test_values_that_are_none_of_the_file_are_refused(tmp_path: Path, place: int) -> None:
    """A spool that was damaged behind its checks: kernels follow what a record says."""
    (tmp_path / "log.csv").write_text(tagged_text(tagged_columns(40)))
    request = stepwise(tmp_path, "out")
    with pytest.raises(KeyboardInterrupt):
        prepare(interrupted_at(request, rows=1))
    file = read_spool_file(tmp_path / "out" / WORK_FOLDER / "spool" / "000000.rows")
    records = np.empty((file.header.rows, file.header.width), np.uint32)
    read_records(file, 0, records)
    bags = RecordBags(request.settings.layout)
    bags.read(file, 0, file.header.rows, records.copy())
    records[3, -2] = place  # the word of the last category
    with pytest.raises(DataError, match="values of bags that are none of its own"):
        bags.read(file, 0, file.header.rows, records)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_and_blocks_change_nothing(tmp_path: Path, workers: int) -> None:
    (tmp_path / "log.csv").write_text(tagged_text(tagged_columns(400)))
    for name, options in (("a", {}), ("b", {"workers": workers, "block_bytes": 700 * workers})):
        prepared([tmp_path / "log.csv"], tmp_path / name, layout=layout_of(tmp_path), shard_rows=90, **options)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_a_split_by_time_leaves_tags_with_their_rows(tmp_path: Path) -> None:
    columns = tagged_columns(500)
    columns["ts"] = [1000 - k % 7 * 100 for k in range(500)]
    (tmp_path / "log.csv").write_text(text := tagged_text(columns))
    layout = layout_of(tmp_path, SCHEMA + '[split]\ncolumn = "ts"\nvalidation = 800\ntest = 1000\n')
    split = read_time_split(tmp_path / "schema.toml")
    prepared([tmp_path / "log.csv"], tmp_path / "out", layout=layout, time_split=split, shard_rows=64)
    expected, times = expect_bags(text, 1, 1).rows, columns["ts"]
    for part, first, end in (("train", 0, 800), ("validation", 800, 1000), ("test", 1000, 1001)):
        wanted = [row for row, time in zip(expected, times, strict=True) if first <= time < end]
        found = rows_of(tmp_path / "out", part)
        assert sorted(map(repr, found)) == sorted(map(repr, wanted))
        assert part == "train" or found == wanted


@pytest.mark.parametrize("kind", ["given", "grown"])
def test_later_days_have_the_ids_of_the_first(tmp_path: Path, kind: str) -> None:
    first, later = tagged_columns(300, seed=1), tagged_columns(300, seed=2)
    later["tags"][7] = ["new", "tag 1", "newer"]
    layout = layout_of(tmp_path)
    (tmp_path / "1.csv").write_text(tagged_text(first))
    (tmp_path / "2.csv").write_text(tagged_text(later))
    (tmp_path / "both.csv").write_text(tagged_text({name: first[name] + later[name] for name in first}))
    prepared([tmp_path / "1.csv"], tmp_path / "first", layout=layout, split="none")
    both = prepared([tmp_path / "both.csv"], tmp_path / "both", layout=layout, split="none")
    settings = require_vocabulary(tmp_path / "first", layout, 0, kind)
    manifest = prepared([tmp_path / "2.csv"], tmp_path / "later", layout=layout, vocabulary=settings, split="none")
    rows = [row.ids for row in rows_of(tmp_path / "later", "train")]
    if kind == "grown":
        assert manifest.table_rows == both.table_rows
        assert set(rows) <= {row.ids for row in rows_of(tmp_path / "both", "train")}
    else:
        assert manifest.table_rows == read_manifest(tmp_path / "first").table_rows
        assert any(0 in ids[1] and len(ids[1]) == 3 for ids in rows)
        assert manifest.columns[2].unseen


def test_other_limits_than_those_of_the_vocabulary_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(tagged_text(tagged_columns(20)))
    layout = layout_of(tmp_path)
    prepared([tmp_path / "log.csv"], tmp_path / "first", layout=layout)
    assert given_transforms(tmp_path / "first", layout) is None
    with pytest.raises(
        DataError, match=r"up to 2 values in a cell of topics, the schema up to 3 values; \[multi\] must"
    ):
        given_transforms(tmp_path / "first", layout_of(tmp_path, SCHEMA.replace("limit = 2", "limit = 3")))
    with pytest.raises(DataError, match="up to 32 values in a cell of tags, the schema one value"):
        given_transforms(tmp_path / "first", layout_of(tmp_path, SCHEMA.replace('tags = "|"', "")))


def test_hashed_tags_need_no_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(text := tagged_text(tagged_columns(200)))
    vocabulary = VocabularySettings("hash", hash_rows=1000)
    prepared([tmp_path / "log.csv"], tmp_path / "out", layout=layout_of(tmp_path), vocabulary=vocabulary)
    expected = expect_bags(text, 1, 262_144).parts["test"]
    ids: dict[int, int] = {}
    for row, wanted in zip(rows_of(tmp_path / "out", "test"), expected, strict=True):
        assert [len(bag) for bag in row.ids] == [len(bag) for bag in wanted.ids]
        for found, known in zip(row.ids[1], wanted.ids[1], strict=True):
            assert ids.setdefault(known, found) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('price = "|"', "'price', which is none of its categories"),
        ("tags = 5", "'tags' = 5; write what stands between"),
        ("tags = { between = 1 }", "write what stands between"),
        ('tags = "||"', "want one ASCII character"),
        ('tags = ""', "want one ASCII character"),
        ("tags = { limit = 3 }", "want one ASCII character"),
        ('tags = { separator = "|", limit = 0 }', "want 1 to 1,024"),
        ('tags = { separator = "|", limit = true }', "want 1 to 1,024"),
        ("tags = '\"'", "want one ASCII character"),
    ],
)
def test_mistakes_in_the_table_are_named(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layout_of(tmp_path, SCHEMA.replace('tags = "|"', change))


def test_a_separator_that_parts_fields_too_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="also stands between fields; with quotes = true"):
        layout_of(tmp_path, SCHEMA.replace("quotes = true", ""))


def test_a_list_that_is_no_bag_and_a_text_without_a_separator_are_named(tmp_path: Path) -> None:
    table: dict[str, list[Any]] = {
        "click": [0],
        "ts": [1],
        "price": [1.0],
        "site": [["a"]],
        "tags": ["a|b"],
        "topics": [["x"]],
    }
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"column site holds list<.*\[multi\]"):
        prepared([tmp_path / "log.parquet"], tmp_path / "a", layout=layout_of(tmp_path, parquet=True))
    table["site"] = ["a"]
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    layout = layout_of(tmp_path, SCHEMA.replace('tags = "|"', "tags = {}"), parquet=True)
    with pytest.raises(DataError, match=r'tags = "\|"'):
        prepared([tmp_path / "log.parquet"], tmp_path / "b", layout=layout)


def test_a_field_reads_what_it_wrote(tmp_path: Path) -> None:
    for field in layout_of(tmp_path).fields:
        assert Field.from_text(str(field)) == field
    for text in ("bag tags", "bag:200:3 tags", "bag:124:0 tags", "bag:124:3:4 tags"):
        with pytest.raises(DataError, match="is no field"):
            Field.from_text(text)
