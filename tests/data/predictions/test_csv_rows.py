"""Lines of predictions against Python's own csv module and float."""

import csv
import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.data.predictions.csv_rows import csv_header, csv_lines
from dqrm_cpu.data.prepare.parse.key_cells import KeyCells

CELLS = st.text(st.characters(codec="utf-8"), max_size=12) | st.text(',"\r\na', max_size=6)
PROBABILITIES = (
    st.floats(0.0, 1.0, width=32)
    | st.floats(0.0, 2.0**-10, width=32)
    | st.sampled_from([0.0, 1.0, 0.1, 0.01, 1e-4, 1e-5, 1e-38, 1e-45, 0.99999994, 0.09999999, 0.5])
)


def column(cells: list[str]) -> KeyCells:
    encoded = [cell.encode() for cell in cells]
    offsets = np.cumsum([0, *map(len, encoded)])
    return KeyCells(np.frombuffer(b"".join(encoded), np.uint8), offsets.astype(np.int64))


@settings(max_examples=200)
@given(data=st.data(), rows=st.integers(0, 12), columns=st.integers(0, 3))
def test_the_csv_module_reads_what_was_written(data: st.DataObject, rows: int, columns: int) -> None:
    keys = [data.draw(st.lists(CELLS, min_size=rows, max_size=rows)) for _ in range(columns)]
    values = np.array(data.draw(st.lists(PROBABILITIES, min_size=rows, max_size=rows)), np.float32)
    written = bytes(csv_lines([column(cells) for cells in keys], values))
    found = list(csv.reader(io.StringIO(written.decode(), newline="")))
    assert [row[:-1] for row in found] == [[cells[k] for cells in keys] for k in range(rows)]
    assert [np.float32(row[-1]) for row in found] == values.tolist()
    assert written.count(b"\n") >= rows


def test_numbers_look_as_people_write_them() -> None:
    values = np.array([0.25, 1.0, 0.0, 0.1, 3e-4, 1e-5, 0.999999999], np.float32)
    lines = bytes(csv_lines([], values)).decode().splitlines()
    assert lines == [
        *("0.250000000", "1.00000000", "0", "0.100000001", "0.000300000014", "9.99999975e-06", "1.00000000"),
    ]


def test_names_are_quoted_where_they_must_be() -> None:
    assert csv_header(['a "b"', "c,d", "e"]) == b'"a ""b""","c,d",e\n'
