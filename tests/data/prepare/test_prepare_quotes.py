"""Fields in double quotes, against the csv module."""

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dqrm_cpu.data.prepare.row_layout import Field, FieldRole, Layout
from dqrm_cpu.errors import DataError
from preparing import prepared, rows_of

LAYOUT = Layout(
    (
        Field(FieldRole.LABEL),
        Field(FieldRole.TEXT, "site"),
        Field(FieldRole.INTEGER, "hour"),
        Field(FieldRole.TEXT, "app"),
    ),
    delimiter=",",
    quotes=True,
)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=12)
LINES = st.tuples(st.sampled_from("01"), WORDS, st.integers(0, 99).map(str), WORDS)


def written(lines: list[tuple[str, ...]], quoting: Literal[0, 1, 2, 3]) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=quoting, lineterminator="\n").writerows(lines)
    return text.getvalue()


def numbered(words: list[str]) -> list[int]:
    """Numbers words as they appear; what means a missing value has 0."""
    known: dict[str, int] = {"": 0}
    missing = [not word or word == "\\N" or word.lower() in {"nan", "null"} for word in words]
    return [0 if none else known.setdefault(word, len(known)) for none, word in zip(missing, words, strict=True)]


@settings(max_examples=25)
@given(
    lines=st.lists(LINES, min_size=1, max_size=12),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@example(lines=[("0", "", "0", "NULL"), ("1", "\\N", "1", "nan ")], quoting=csv.QUOTE_MINIMAL)
def test_quoted_fields_are_as_the_csv_module_reads_them(
    lines: list[tuple[str, ...]], quoting: Literal[0, 1, 2, 3]
) -> None:
    text = written(lines, quoting)
    rows = list(csv.reader(io.StringIO(text)))
    with TemporaryDirectory() as name:
        source = Path(name) / "train.csv"
        source.write_bytes(text.encode())
        prepared([source], Path(name) / "out", layout=LAYOUT, split="none", shard_rows=1 << 20)
        _, dense, ids = rows_of(Path(name) / "out", "train")
    found = sorted(
        zip(np.expm1(dense[:, 0]).round().astype(int).tolist(), ids[:, 0].tolist(), ids[:, 1].tolist(), strict=True)
    )
    sites, apps = numbered([row[1] for row in rows]), numbered([row[3] for row in rows])
    assert found == sorted(zip((int(row[2]) for row in rows), sites, apps, strict=True))


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        ('1,"a,5,b', 2, "does not close on its line"),
        ('1,"a"b,5,c', 2, "behind the closing quote"),
        ('1,a,"x",b', 3, "not a whole number"),
        ('"1",a,5', 3, "the line ends here"),
    ],
)
def test_a_mistake_names_its_line_and_field(tmp_path: Path, line: str, field: int, message: str) -> None:
    source = tmp_path / "train.csv"
    source.write_text(f'0,"a ""quoted"" word",1,b\n{line}\n')
    with pytest.raises(DataError, match=rf"line 2, field {field}: .*{message}"):
        prepared([source], tmp_path / "out", layout=LAYOUT, split="none")


def test_bad_lines_are_kept_as_they_were(tmp_path: Path) -> None:
    source = tmp_path / "train.csv"
    bad = '1,"open,5,b\n'
    source.write_text('0,"a,b",1,c\n' + bad + "1,d,2,e\n")
    manifest = prepared([source], tmp_path / "out", layout=LAYOUT, split="none", bad_rows="quarantine")
    assert (tmp_path / "out" / "bad-rows.txt").read_text() == bad
    assert manifest.num_rows("train") == 2


def test_a_byte_that_separates_fields_inside_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "train.csv"
    source.write_bytes(b"0,a\xffb,1,c\n")
    with pytest.raises(DataError, match="255"):
        prepared([source], tmp_path / "out", layout=LAYOUT, split="none")
