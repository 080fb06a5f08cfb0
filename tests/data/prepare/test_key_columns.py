"""Columns that are carried along, and rows without a label: what parsers make of them; `prepare` ignores the former."""

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.data.prepare.bad_rows import BadRowAdvice, BadRows, Mistake
from dqrm_cpu.data.prepare.buffers import MemoryBlock, RowBuffers
from dqrm_cpu.data.prepare.parse.columns import ColumnParser
from dqrm_cpu.data.prepare.parse.parser import ParsedBlock, TextParser
from dqrm_cpu.data.prepare.row_layout import CRITEO_LAYOUT, Field, FieldRole, Layout
from dqrm_cpu.data.prepare.schema_file import read_schema
from dqrm_cpu.data.prepare.sources.parquet import ParquetReader
from dqrm_cpu.data.prepare.sources.raw_file import SourcePosition, examine
from dqrm_cpu.errors import DataError
from folders import files_of
from nasty_rows import block_of
from preparing import prepared

FIELDS = (
    Field(FieldRole.KEY, "request"),
    Field(FieldRole.INTEGER, "hour"),
    Field(FieldRole.KEY, "place"),
    Field(FieldRole.KEY, "user"),
    Field(FieldRole.TEXT, "site"),
    Field(FieldRole.KEY, "last"),
)
SCHEMA = """
delimiter = ","
header = true
label = "click"
integers = ["hour"]
categories = ["site"]
"""


def parsed_text(text: str, layout: Layout) -> ParsedBlock:
    buffers = RowBuffers(layout, MemoryBlock.of_bytes(0))
    return TextParser(layout, most_bad=1 << 40, keeps_text=False).parse(block_of(text.encode()), buffers)


def key_rows(parsed: ParsedBlock) -> list[tuple[str, ...]]:
    return [tuple(column.cell(row).decode() for column in parsed.keys) for row in range(parsed.rows)]


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=20)
HOURS = st.one_of(st.integers(0, 23).map(str), st.just(""), st.just("noon"))


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(WORDS, HOURS, WORDS, WORDS, WORDS, WORDS), max_size=20),
    quotes=st.booleans(),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_cells_of_good_rows_are_kept_as_they_stand(rows: list[tuple[str, ...]], quotes: bool, ending: str) -> None:
    if not quotes:
        rows = [tuple(cell.replace(",", ";").replace('"', "'") for cell in row) for row in rows]
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL if quotes else csv.QUOTE_MINIMAL, lineterminator=ending).writerows(rows)
    parsed = parsed_text(out.getvalue(), Layout(FIELDS, ",", quotes=quotes))
    good = [row for row in rows if row[1] != "noon"]
    assert key_rows(parsed) == [(row[0], row[2], row[3], row[5]) for row in good]
    assert parsed.bad_lines.tolist() == [k for k, row in enumerate(rows) if row[1] == "noon"]


def test_what_is_read_may_be_carried_along_too() -> None:
    layout = Layout(FIELDS, ",", carried=("hour", "site"))
    parsed = parsed_text("a,5,b,c,x,d\ne,f\ng,noon,h,i,y,j\nk,,l,m,,n\n", layout)
    assert layout.keys == ("request", "hour", "place", "user", "site", "last")
    assert key_rows(parsed) == [("a", "5", "b", "c", "x", "d"), ("k", "", "l", "m", "", "n")]
    assert [(bad.line, bad.field, Mistake(bad.mistake)) for bad in parsed.bad] == [
        (1, 1, Mistake.BAD_INTEGER),
        (2, 1, Mistake.BAD_INTEGER),
    ]
    plain = parsed_text("a,5,b,c,x,d\nk,,l,m,,n\n", Layout(FIELDS, ","))
    assert plain.buffers.keys[0, :2].tolist() == parsed.buffers.keys[0, :2].tolist()


def test_all_bad_lines_have_their_numbers() -> None:
    """Also beyond those that are described one by one, and those that fit into one call of the kernel."""
    lines = ["a,1,b,c,d,e" if k % 3 else "bad" for k in range(20_000)]
    for quotes in (False, True):
        parsed = parsed_text("\n".join(lines) + "\n", Layout(FIELDS, ",", quotes=quotes))
        assert parsed.bad_lines.tolist() == list(range(0, 20_000, 3))


def test_a_line_of_empty_fields_is_a_row_where_nothing_must_be_there() -> None:
    """The shortest row that there is: without a label it has a byte less."""
    parsed = parsed_text(",,,,,\n" * 1000, Layout(FIELDS, ","))
    assert (parsed.rows, parsed.num_bad) == (1000, 0)
    assert set(key_rows(parsed)) == {("", "", "", "")}


@pytest.mark.parametrize("bad_hour", [None, 2.5])
def test_parquet_keeps_the_values_and_their_text(tmp_path: Path, bad_hour: float | None) -> None:
    hours = [1.0, bad_hour, 3.0]
    table = {"request": [7, 8, None], "hour": hours, "place": ["x", "y", "z"], "site": ["a", "b", "c"]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    names = ("request", "hour", "place", "site")
    layout = Layout(tuple(field for field in FIELDS if field.name in names))
    reader = ParquetReader([examine(str(tmp_path / "log.parquet"))], SourcePosition(), 1 << 20, layout)
    (block,) = reader
    parsed = ColumnParser(layout, False).parse(block, RowBuffers(layout, MemoryBlock.of_bytes(0)))
    wanted: list[tuple[Any, ...]] = [("7", "x"), ("8", "y"), ("", "z")]
    values: list[Any] = [7, 8, None]
    if bad_hour is not None:
        del wanted[1], values[1]
    assert key_rows(parsed) == wanted
    assert parsed.keys[0].values.to_pylist() == values
    assert parsed.keys[0].values.type == pa.int64()
    assert parsed.bad_lines.tolist() == ([] if bad_hour is None else [1])


def test_prepare_ignores_them(tmp_path: Path) -> None:
    raw = tmp_path / "log.csv"
    raw.write_text("id,site,click,hour\n" + "".join(f"r{k},s{k % 7},{k % 2},{k % 24}\n" for k in range(500)))
    folders = []
    for name, more in (("plain", ""), ("keyed", 'keys = ["id"]\n')):
        path = tmp_path / f"{name}.toml"
        path.write_text(SCHEMA + more)
        manifest = prepared([raw], tmp_path / name, layout=read_schema(path, "id,site,click,hour"), seed=3)
        folders.append(files_of(tmp_path / name, without="manifest.json"))
    assert folders[0] == folders[1]
    layout = manifest.settings["layout"]
    assert layout["fields"] == ["key id", "text site", "label click", "integer hour"]


def test_rows_without_a_label_are_not_prepared(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("a,1,b,c,d,e\n")
    with pytest.raises(DataError, match="without a label are nothing to train on"):
        prepared([tmp_path / "raw"], tmp_path / "out", layout=Layout(FIELDS, ","))


def test_fields_come_back_from_their_text() -> None:
    fields = (*CRITEO_LAYOUT.fields, Field(FieldRole.IGNORED), Field(FieldRole.TEXT, "a b  c"), *FIELDS)
    assert tuple(Field.from_text(str(field)) for field in fields) == fields
    with pytest.raises(DataError, match="'vector x' is no field"):
        Field.from_text("vector x")


def test_advice_is_that_of_the_command(tmp_path: Path) -> None:
    parsed = parsed_text("a\n", Layout(FIELDS, ","))
    for policy, words in (("stop", "field 1: .*; leave it out$"), ("skip", "; is it the right file[?]$")):
        bad_rows = BadRows(policy, 0, tmp_path, 0, 0, BadRowAdvice("leave it out", "is it the right file?"))
        with pytest.raises(DataError, match=words):
            bad_rows.take(parsed.bad, 1, b"", "f", 0)
