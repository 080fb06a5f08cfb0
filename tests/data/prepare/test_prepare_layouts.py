"""Other data sets: commas, headers, strings and decimals, described by a TOML file."""

import csv
import io
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.schema_file import read_schema
from dqrm_cpu.errors import ConfigError, DataError
from nasty_rows import canonical
from preparing import prepared, rows_of

SCHEMA = """
delimiter = ","
header = true
label = "click"
integers = ["hour"]
decimals = ["price"]
hashes = ["device"]
categories = ["site", "app"]
"""
HEADER = "id,site,click,hour,price,device,app"


def layout_of(folder: Path, text: str = SCHEMA, header: str = HEADER) -> Layout:
    path = folder / "schema.toml"
    path.write_text(text)
    return read_schema(path, header)


def test_a_schema_names_the_fields_that_matter(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    roles = [field.role.name for field in layout.fields]
    assert roles == ["IGNORED", "TEXT", "LABEL", "INTEGER", "DECIMAL", "HEX", "TEXT"]
    assert layout.schema.dense == ("hour", "price")
    assert layout.schema.categorical == ("site", "device", "app")


WORDS = st.text(st.characters(codec="utf-8", exclude_characters=',\r\n\0"'), max_size=20)
DECIMALS = st.one_of(
    st.just(""),
    st.floats(-1e6, 1e12, allow_nan=False).map(repr),
    st.sampled_from(["1.", ".5", "1e3", "1E-2", "-0.0", "007.50", "2.5e+2".replace("+", "")]),
)
LINES = st.tuples(WORDS, WORDS, st.sampled_from("01"), st.integers(0, 23).map(str), DECIMALS, st.just("ff"), WORDS)


@settings(max_examples=25)
@given(lines=st.lists(LINES, min_size=1, max_size=20))
def test_commas_and_words_are_as_the_csv_module_reads_them(lines: list[tuple[str, ...]]) -> None:
    text = "\n".join([HEADER, *(",".join(line) for line in lines)]) + "\n"
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "log.csv").write_bytes(text.encode())
        prepared([folder / "log.csv"], folder / "out", layout=layout_of(folder), split="none")
        _, dense, ids = rows_of(folder / "out", "train")
    known: list[dict[bytes, int]] = [{b"": 0}, {b"": 0}, {b"": 0}]
    wanted = []
    for line in list(csv.reader(io.StringIO(text), quoting=csv.QUOTE_NONE))[1:]:
        cells = [canonical(line[k].encode()) for k in (1, 5, 6)]
        row_ids = [ids_of.setdefault(cell, len(ids_of)) for ids_of, cell in zip(known, cells, strict=True)]
        wanted.append((*row_ids, math.log(int(line[3]) + 1), math.log(max(float(line[4] or 0), 0) + 1)))
    wanted.sort()
    found = sorted((*map(int, row), *map(float, numbers)) for row, numbers in zip(ids, dense, strict=True))
    assert [row[:3] for row in found] == [row[:3] for row in wanted]
    np.testing.assert_allclose(
        sorted(row[3:] for row in found), sorted(row[3:] for row in wanted), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,a,0,5,nano,ff,b", "field 5: not a number"),
        ("1,a,0,5,inf,ff,b", "field 5: not a number"),
        ("1,a,0,5,1e,ff,b", "field 5: not a number"),
        ("1,a,0,5,.,ff,b", "field 5: not a number"),
        ("1,a,0,5,1e999999999,ff,b", "field 5: "),
        ("1,a,0,5,1.5,ff", "field 6: the line ends here"),
        ("1,a,0,5,1.5,ff,b,c", "field 7: the line goes on"),
        ("1,a,maybe,5,1.5,ff,b", "field 3: the label"),
        ("1,a,4.5,5,1.5,ff,b", "`positive = 4` in the schema"),
    ],
)
def test_bad_cells_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "log.csv").write_text(f"{HEADER}\n1,a,0,5,1.5,ff,b\n{line}\n")
    with pytest.raises(DataError, match="line 3, ") as caught:
        prepared([tmp_path / "log.csv"], tmp_path / "out", layout=layout_of(tmp_path))
    assert message in str(caught.value)


def test_every_file_has_its_header(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(f"{HEADER}\r\n1,{name},0,5,1.5,ff,b\r\n")
    prepared([tmp_path / "a", tmp_path / "b"], tmp_path / "out", layout=layout_of(tmp_path), split="none")
    assert sorted(rows_of(tmp_path / "out", "train")[2].tolist()) == [[1, 1, 1], [2, 1, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SCHEMA.replace("integers", "intergers"), "unknown key 'intergers'; nearest is integers"),
        (SCHEMA.replace('"hour"', '"hours"'), "'hours' that is no field; nearest is 'hour'"),
        (SCHEMA.replace('"hour"', '"price"'), "'price' stands in two places"),
        (SCHEMA.replace('"click"', '""'), "names no label"),
        (SCHEMA.replace('["hour"]', '"hour"'), "must be a list"),
        (SCHEMA.replace("header = true", ""), "`fields` must list"),
        ("= 1", "is not TOML"),
    ],
)
def test_mistakes_in_a_schema_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layout_of(tmp_path, text)
