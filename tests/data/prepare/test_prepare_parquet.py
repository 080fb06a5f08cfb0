"""Parquet files give the same rows as the text of the same values."""

import csv
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dqrm_cpu.cli.main import main
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.schema_file import read_schema
from dqrm_cpu.errors import DataError
from folders import files_of
from preparing import prepared, rows_of

NAMES = ["note", "click", "hour", "price", "device", "site", "user"]
SCHEMA = """
header = true
delimiter = ","
label = "click"
integers = ["hour"]
decimals = ["price"]
hashes = ["device"]
categories = ["site", "user"]
"""


def layout_of(folder: Path) -> Layout:
    (folder / "schema.toml").write_text(SCHEMA)
    return read_schema(folder / "schema.toml", "", NAMES)


def columns_of(num_rows: int, seed: int = 1) -> dict[str, list[Any]]:
    generator = np.random.default_rng(seed)

    def some(values: list[Any]) -> list[Any]:
        return [None if gone else value for value, gone in zip(values, generator.random(num_rows) < 0.2, strict=True)]

    sites = [f"site {n} \u00fc" for n in generator.integers(0, 20, num_rows)]
    return {
        "note": ["x"] * num_rows,
        "click": generator.integers(0, 2, num_rows).tolist(),
        "hour": some(generator.integers(-3, 100_000, num_rows).tolist()),
        "price": some((generator.integers(-10, 4000, num_rows) / 8).tolist()),
        "device": some([f"{n:x}" for n in generator.integers(1, 2**32, num_rows)]),
        "site": some(sites),
        "user": some(generator.integers(0, 2**40, num_rows).tolist()),
    }


def write_both(folder: Path, columns: dict[str, list[Any]], **options: Any) -> tuple[Path, Path]:
    table = pa.table({**columns, "site": pa.array(columns["site"]).dictionary_encode()})
    pq.write_table(table, folder / "rows.parquet", **options)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(NAMES)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(["" if cell is None else cell for cell in row])
    return folder / "rows.parquet", folder / "rows.csv"


def shards(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(out).items() if name.endswith((".shard", ".npy"))}


@pytest.mark.parametrize("block_bytes", [1 << 10, 1 << 20])
def test_parquet_gives_the_bytes_that_its_text_gives(tmp_path: Path, block_bytes: int) -> None:
    layout = layout_of(tmp_path)
    parquet, text = write_both(tmp_path, columns_of(400), row_group_size=150)
    ours = prepared([parquet], tmp_path / "parquet", layout=layout, block_bytes=block_bytes)
    theirs = prepared([text], tmp_path / "text", layout=layout, block_bytes=block_bytes)
    assert shards(tmp_path / "parquet") == shards(tmp_path / "text")
    assert ours.columns == theirs.columns
    assert ours.sources[0].rows == 400


def test_two_files_go_on_after_a_stop_between_and_within_them(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    for k in (1, 2):
        (tmp_path / f"{k}").mkdir()
    sources = [write_both(tmp_path / f"{k}", columns_of(200, seed=k), row_group_size=64)[0] for k in (1, 2)]
    prepared(sources, tmp_path / "whole", layout=layout, block_bytes=1 << 10)
    for most in (3, 7, 9):
        out = tmp_path / f"out-{most}"
        with pytest.raises(StoppedError):
            prepared_until(most, sources, out, layout)
        prepared(sources, out, layout=layout, block_bytes=1 << 10)
        assert shards(out) == shards(tmp_path / "whole")


class StoppedError(Exception):
    """Stands for a kill."""


def prepared_until(most: int, sources: list[Path], out: Path, layout: Layout) -> None:
    from dataclasses import replace

    from dqrm_cpu.data.prepare.preparation import prepare
    from preparing import request_for

    steps = 0

    def advance(_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == most:
            raise StoppedError

    prepare(replace(request_for(sources, out, layout=layout, block_bytes=1 << 10), advance=advance))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("click", 2, "field 2: the label is neither 0 nor 1 but another number; .*`positive = 4` in the schema"),
        ("click", None, "field 2: the label is neither 0 nor 1, true nor false, yes nor no, but empty"),
        ("hour", 2**31, "field 3: a number that does not fit"),
        ("hour", 0.5, "field 3: not a whole number"),
        ("price", float("inf"), "field 4: not a number"),
        ("device", "xyz", "field 5: not a hexadecimal hash"),
        ("device", "123456789", "field 5: a hash of more than 8 digits"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, column: str, value: Any, message: str) -> None:
    columns = columns_of(10)
    columns[column][4] = value
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=f"line 5, {message}"):
        prepared([tmp_path / "rows.parquet"], tmp_path / "out", layout=layout_of(tmp_path))
    manifest = prepared(
        [tmp_path / "rows.parquet"], tmp_path / "skip", layout=layout_of(tmp_path), bad_rows="skip", split="none"
    )
    assert manifest.num_rows("train") == 9


def test_numbers_may_be_hashes(tmp_path: Path) -> None:
    columns = {**columns_of(3), "device": [255, None, 2**32 - 1]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    prepared([tmp_path / "rows.parquet"], tmp_path / "out", layout=layout_of(tmp_path), split="none")
    assert sorted(rows_of(tmp_path / "out", "train")[2][:, 0].tolist()) == [0, 1, 2]
    assert np.load(tmp_path / "out" / "vocabulary" / "000.npy").tolist() == [255, 2**32 - 1]


def test_columns_that_are_neither_numbers_nor_text_are_refused(tmp_path: Path) -> None:
    columns = {**columns_of(3), "hour": [datetime(2024, 1, day) for day in (1, 2, 3)]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="column hour holds timestamp"):
        prepared([tmp_path / "rows.parquet"], tmp_path / "out", layout=layout_of(tmp_path))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        prepared([path], tmp_path / "out", layout=layout_of(tmp_path))


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(arguments)
    return status, capsys.readouterr().err


@pytest.fixture
def without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def hide() -> None:
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)

    return hide


def test_the_command_says_how_to_get_pyarrow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without_pyarrow: Callable[[], None]
) -> None:
    layout_of(tmp_path)
    pq.write_table(pa.table(columns_of(3)), tmp_path / "rows.parquet")
    without_pyarrow()
    schema = str(tmp_path / "schema.toml")
    status, message = run(
        ["prepare", str(tmp_path / "rows.parquet"), "--schema", schema, "--out", str(tmp_path / "out")], capsys
    )
    assert status != 0
    assert "pip install 'dqrm-cpu[parquet]'" in message
