"""A value means the same in text and in Parquet, whatever program wrote it."""

import csv
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.data.prepare.schema_file import read_schema
from dqrm_cpu.errors import ConfigError, DataError
from preparing import prepared, rows_of

SCHEMA = """
header = true
delimiter = ";"
label = "click"
integers = ["hour"]
decimals = ["price"]
hashes = ["row", "device"]
categories = ["site"]
"""
NAMES = ("row", "click", "hour", "price", "device", "site")
GOOD = {"click": "1", "hour": "5", "price": "0.5", "device": "ff", "site": "a"}
BAD = "bad"

# Column, cell as text, the same as Parquet types it (None: null), what it is: a number, a category's name, or BAD.
TABLE: list[tuple[str, str, list[Any], Any]] = [
    *[("click", text, [], 1) for text in ("1", "1.0", "1.", "1.000", "1e0", "True", "TRUE", "t", "yes", "Y")],
    *[("click", text, [], 0) for text in ("0", "0.0", "-0.0", "False", "false", "F", "no", "NO", "n")],
    ("click", "1", [1, 1.0, True], 1),
    ("click", "0", [0, 0.0, False], 0),
    *[("click", text, [], BAD) for text in ("", "nan", "null", "2", "4.5", "-1", "click", "ye", "inf", "truely")],
    ("click", "4.5", [4.5, math.nan, math.inf, 2, None], BAD),
    ("hour", "47", [47, 47.0], 47),
    ("hour", "47.0", [], 47),
    ("hour", "-3.000", [-3.0], -3),
    ("hour", "2147483647.0", [2**31 - 1, 2147483647.0], 2**31 - 1),
    ("hour", "true", [True], 1),
    ("hour", "False", [False], 0),
    *[("hour", text, [], None) for text in ("", "NaN", "nan", "NULL", "null", "Null", "\\N")],
    ("hour", "", [None, math.nan], None),
    ("hour", "2147483648.0", [2147483648.0, 2**31], BAD),
    *[("hour", text, [], BAD) for text in ("47.5", "47.0.", "4 7", "1e3", "yes", "none", "n", "nanan", "+1", "inf")],
    ("hour", "47.5", [47.5, math.inf], BAD),
    ("price", "0.1", [0.1], 0.1),
    ("price", "1e+16", [1e16], 1e16),
    ("price", "12", [12, 12.0], 12),
    ("price", "True", [True], 1),
    *[("price", text, [], None) for text in ("", "NaN", "null", "\\N")],
    ("price", "", [None, math.nan], None),
    *[("price", text, [], BAD) for text in ("inf", "-inf", "1e+-5", "1,5", "0x1", "yes")],
    ("price", "inf", [math.inf, -math.inf], BAD),
    ("device", "FF", [255, 255.0], 255),
    *[("device", text, [], None) for text in ("", "NaN", "null", "\\N")],
    ("device", "", [None], None),
    *[("device", text, [], BAD) for text in ("xyz", "123456789", "0x1", "f.0")],
    ("site", "47", [47, 47.0], "47"),
    ("site", "47.0", [], "47"),
    ("site", "-47.00", [], "-47"),
    ("site", "47.5", [47.5], "47.5"),
    ("site", "True", [True], "true"),
    ("site", "true", [], "true"),
    ("site", "1.2.0", [], "1.2.0"),
    ("site", ".0", [], ".0"),
    ("site", "-.0", [], "-.0"),
    ("site", "v1.0", [], "v1.0"),
    ("site", "no", [], "no"),
    ("site", "none", [], "none"),
    *[("site", text, [], None) for text in ("", "NaN", "null", "NULL", "\\N")],
    ("site", "", [None, math.nan], None),
]


def write(path: Path, column: str, cells: list[Any]) -> None:
    """Writes a row per cell of the column in question; `row` counts them."""
    count = len(cells)
    columns = {"row": [f"{k + 1:x}" for k in range(count)], **{name: [good] * count for name, good in GOOD.items()}}
    columns[column] = cells
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def outcomes(folder: Path, column: str, cells: list[Any], suffix: str, schema: str = SCHEMA) -> tuple[list[Any], int]:
    """What became of each cell, BAD, a number or the key of a category (0: missing), and how many are missing."""
    path = folder / f"rows{suffix}"
    write(path, column, cells)
    (folder / "schema.toml").write_text(schema)
    layout = read_schema(folder / "schema.toml", ";".join(NAMES), None if suffix == ".csv" else list(NAMES))
    with TemporaryDirectory(dir=folder) as name:
        out = Path(name)
        manifest = prepared([path], out, layout=layout, split="none", bad_rows="skip")
        label, dense, ids = rows_of(out, "train")
        keys = [np.load(out / "vocabulary" / f"{t:03d}.npy").tolist() for t in range(3)]
    found: list[Any] = [BAD] * len(cells)
    for k, number in enumerate(ids[:, 0].tolist()):
        values = {"click": int(label[k]), "hour": float(dense[k, 0]), "price": float(dense[k, 1])}
        for t, name in ((1, "device"), (2, "site")):
            values[name] = keys[t][ids[k, t] - 1] if ids[k, t] else 0
        found[keys[0][number - 1] - 1] = values[column]
    missing = {statistics.name: statistics.missing for statistics in manifest.columns}
    return found, missing.get(column) or 0


def cells_of(column: str, wanted_type: type | None) -> list[tuple[Any, Any]]:
    """The cells of a column as text, or as values of one type, each with what it is."""
    if wanted_type is None:
        return [(text, wanted) for name, text, _, wanted in TABLE if name == column]
    rows = [(value, wanted) for name, _, values, wanted in TABLE if name == column for value in values]
    return [(value, wanted) for value, wanted in rows if value is None or type(value) is wanted_type]


def require(
    column: str, cells: list[tuple[Any, Any]], found: list[Any], num_missing: int, known: dict[Any, Any]
) -> None:
    """Compares with the table; `known` has the key of each name of a category."""
    for (cell, wanted), value in zip(cells, found, strict=True):
        if wanted == BAD or value == BAD or column == "click":
            assert (cell, value) == (cell, wanted)
        elif column in ("hour", "price"):
            assert (cell, value) == (cell, float(np.float32(math.log(max(wanted or 0, 0) + 1))))
        else:
            assert value == (0 if wanted is None else known.setdefault(wanted, value)), cell
    assert known.get(255, 255) == 255
    assert num_missing == sum(wanted is None for _, wanted in cells)
    assert len(set(known.values())) == len(known)


@pytest.mark.parametrize("column", GOOD)
def test_every_format_and_type_gives_what_the_table_says(tmp_path: Path, column: str) -> None:
    known: dict[Any, Any] = {}
    for suffix, kind in ((".csv", None), (".parquet", None), *((".parquet", kind) for kind in (int, float, bool))):
        cells = cells_of(column, kind)
        if any(cell is not None for cell, _ in cells):
            require(column, cells, *outcomes(tmp_path, column, [cell for cell, _ in cells], suffix), known)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_ratings_become_clicks_by_a_threshold(tmp_path: Path, suffix: str) -> None:
    schema = f"{SCHEMA}positive = 3.5\n"
    ratings = ["1", "3", "3.4999", "3.5", "4", "5.0", "-2", "", "good", "1e3", "yes"]
    wanted = [0, 0, 0, 1, 1, 1, 0, BAD, BAD, 1, 0]
    assert outcomes(tmp_path, "click", ratings, suffix, schema)[0] == wanted
    numbers = [1.0, 3.5, 3.25, 5.0, math.nan, None]
    assert outcomes(tmp_path, "click", numbers, ".parquet", schema)[0] == [0, 1, 0, 1, BAD, BAD]


def test_a_label_that_is_another_number_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    for suffix, cell in ((".csv", "4"), (".parquet", 4)):
        write(tmp_path / f"rows{suffix}", "click", [cell])
        (tmp_path / "schema.toml").write_text(SCHEMA)
        layout = read_schema(tmp_path / "schema.toml", ";".join(NAMES), None if suffix == ".csv" else list(NAMES))
        with pytest.raises(DataError, match=r"neither 0 nor 1 but another number; .*`positive = 4` in the schema"):
            prepared([tmp_path / f"rows{suffix}"], tmp_path / suffix, layout=layout)


def test_a_threshold_is_a_number(tmp_path: Path) -> None:
    for value in ('"4"', "true", "inf", "nan"):
        (tmp_path / "schema.toml").write_text(f"{SCHEMA}positive = {value}\n")
        with pytest.raises(ConfigError, match="positive must be a number"):
            read_schema(tmp_path / "schema.toml", ";".join(NAMES))


@settings(max_examples=20)
@given(
    prices=st.lists(st.none() | st.floats(0, 1e15) | st.integers(0, 10**6).map(float), min_size=1, max_size=50),
    hours=st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), min_size=50, max_size=50),
)
def test_numbers_are_the_same_as_python_writes_them_and_as_parquet_holds_them(
    prices: list[float | None], hours: list[int | None]
) -> None:
    """A column of whole numbers with a missing one is floats in Parquet, and 47.0 in text: as pandas has it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        for column, cells in (("price", prices), ("hour", [None if h is None else float(h) for h in hours])):
            text = ["" if cell is None else repr(cell) for cell in cells]
            typed = pa.array(cells, pa.float64()).to_pylist()
            from_text = outcomes(folder, column, text, ".csv")
            assert from_text == outcomes(folder, column, [math.nan if c is None else c for c in typed], ".parquet")
            wanted = [float(np.float32(math.log(max(cell or 0.0, 0.0) + 1))) for cell in cells]
            assert from_text[0] == pytest.approx(wanted, rel=1e-7)
            assert from_text[1] == sum(cell is None for cell in cells)
