"""Splits by the time of the rows: training first, then validation, then the test, in whatever order rows stand."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.data.prepare.output import time_split
from dqrm_cpu.data.prepare.parse.columns import read_cells
from dqrm_cpu.data.prepare.request import VocabularySettings
from dqrm_cpu.data.prepare.row_layout import FieldRole
from dqrm_cpu.data.prepare.schema_file import read_schema, read_time_split
from dqrm_cpu.data.store.manifest import Manifest
from dqrm_cpu.errors import ConfigError, DataError
from preparing import prepared, rows_of

NAMES = ["ts", "click", "price", "row"]
SCHEMA = """
header = true
delimiter = ","
label = "click"
decimals = ["price"]
categories = ["row"]
[transforms]
price = "standard"
[split]
by = "time"
column = "ts"
"""
DATES = 'validation = "2024-01-06"\ntest = 2024-01-07T00:00:00Z\n'
ROWS = 240
START = datetime(2024, 1, 1, tzinfo=UTC)


def times_of(seed: int = 1) -> list[datetime]:
    """Times within eight days, in no order."""
    seconds = np.random.default_rng(seed).integers(0, 8 * 86_400, ROWS)
    return [START + timedelta(seconds=int(second)) for second in seconds]


def prepare_times(
    folder: Path, times: list[Any], split: str = DATES, kind: str = "csv", **options: Any
) -> tuple[Manifest, dict[str, list[int]]]:
    """Prepares rows with these times; returns the numbers of the rows of each part, in the order in which they lie."""
    folder.mkdir(exist_ok=True)
    columns = {
        "ts": times,
        "click": [k % 2 for k in range(len(times))],
        "price": [float(k) for k in range(len(times))],
        "row": [f"row {k}" for k in range(len(times))],
    }
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join([",".join(NAMES), *lines]) + "\n")
    (folder / "schema.toml").write_text(SCHEMA + split)
    layout = read_schema(folder / "schema.toml", ",".join(NAMES), NAMES if kind == "parquet" else None)
    options = {"time_split": read_time_split(folder / "schema.toml"), **options}
    manifest = prepared([path], folder / "out", layout=layout, **options)
    rows = {}
    for part in ("train", "validation", "test"):
        label, _, ids = rows_of(folder / "out", part)
        rows[part] = (ids[:, 0] - 1).tolist()
        assert label.tolist() == [k % 2 for k in rows[part]]
    return manifest, rows


def expected_parts(times: list[datetime]) -> dict[str, list[int]]:
    validation, test = datetime(2024, 1, 6, tzinfo=UTC), datetime(2024, 1, 7, tzinfo=UTC)
    part = ["test" if time >= test else "validation" if time >= validation else "train" for time in times]
    return {name: [k for k, of_row in enumerate(part) if of_row == name] for name in ("train", "validation", "test")}


@pytest.mark.parametrize("form", ["date and time", "zones", "seconds", "milliseconds", "parquet", "parquet days"])
def test_rows_go_where_their_time_says(tmp_path: Path, form: str) -> None:
    times = times_of()
    forms: dict[str, list[Any]] = {
        "date and time": [time.replace(tzinfo=None) for time in times],
        "zones": [time.astimezone(timezone(timedelta(hours=-5))).isoformat() for time in times],
        "seconds": [int(time.timestamp()) for time in times],
        "milliseconds": [int(time.timestamp() * 1000) for time in times],
        "parquet": times,
        "parquet days": [time.date() for time in times],
    }
    manifest, rows = prepare_times(tmp_path / "a", forms[form], kind="parquet" if "parquet" in form else "csv")
    wanted = expected_parts(times)
    assert sorted(rows["train"]) == wanted["train"]
    assert (rows["validation"], rows["test"]) == (wanted["validation"], wanted["test"])
    assert manifest.schema.dense == ("price",)
    mean, deviation = manifest.transforms[0].numbers
    assert mean == pytest.approx(np.mean(wanted["train"]))
    dense = rows_of(tmp_path / "a" / "out", "train")[1][:, 0]
    np.testing.assert_allclose(dense, (np.array(rows["train"]) - mean) / deviation, rtol=1e-5, atol=1e-6)


def test_rows_of_the_very_time_of_a_split_are_behind_it_in_nanoseconds_too(tmp_path: Path) -> None:
    begin = datetime(2024, 1, 7, 10, 0, tzinfo=UTC)
    for second in range(4):
        test = begin + timedelta(seconds=second)
        cells = [int((test + timedelta(seconds=step)).timestamp()) * 10**9 for step in (-2, -1, 0, 1)]
        _, rows = prepare_times(tmp_path / str(second), cells, f'test = "{test.isoformat()}"\n')
        assert (sorted(rows["train"]), rows["test"]) == ([0, 1], [2, 3])


def test_blocks_shards_and_workers_change_nothing(tmp_path: Path) -> None:
    times = [time.isoformat() for time in times_of()]
    _, wanted = prepare_times(tmp_path / "a", times, block_bytes=1 << 20)
    _, again = prepare_times(tmp_path / "b", times, block_bytes=300, workers=1)
    assert again == wanted
    _, small = prepare_times(tmp_path / "c", times, block_bytes=500, shard_rows=7)
    assert {name: sorted(rows) for name, rows in small.items()} == {name: sorted(r) for name, r in wanted.items()}
    assert (small["validation"], small["test"]) == (wanted["validation"], wanted["test"])


def test_rows_of_training_are_what_they_are_without_the_others(tmp_path: Path) -> None:
    times = times_of()
    _, rows = prepare_times(tmp_path / "a", [time.isoformat() for time in times])
    assert rows["train"] != sorted(rows["train"])  # shuffled


def test_shares_take_the_latest_rows(tmp_path: Path) -> None:
    numbers = np.random.default_rng(3).permutation(ROWS).tolist()
    _, rows = prepare_times(tmp_path / "a", numbers, "validation = 0.1\ntest = 0.2\n")
    assert sorted(numbers[k] for k in rows["test"]) == list(range(192, 240))
    assert sorted(numbers[k] for k in rows["validation"]) == list(range(168, 192))
    _, rows = prepare_times(tmp_path / "b", numbers, "test = 0.25\n")
    assert (len(rows["train"]), rows["validation"], len(rows["test"])) == (180, [], 60)
    _, rows = prepare_times(tmp_path / "c", [k // 100 for k in range(ROWS)], "validation = 0.1\n")
    assert rows["validation"] == list(range(200, ROWS)), "rows of one time stay together"


def test_shares_of_many_rows_are_found_by_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_split, "SAMPLE_ROWS", 100)
    numbers = np.random.default_rng(3).permutation(ROWS).tolist()
    _, rows = prepare_times(tmp_path / "a", numbers, "validation = 0.2\n")
    # Five deviations of a share of 0.2 in a sample of 100.
    assert abs(len(rows["validation"]) / ROWS - 0.2) < 5 * (0.2 * 0.8 / 100) ** 0.5


def test_numbers_that_are_no_times_are_compared_as_they_are(tmp_path: Path) -> None:
    numbers = [24_010_100 + 100 * (k % 7) + k % 24 for k in range(ROWS)]
    _, rows = prepare_times(tmp_path / "a", numbers, "validation = 24010500\n")
    assert rows["validation"] == [k for k in range(ROWS) if numbers[k] >= 24_010_500]


def test_the_order_of_sorted_sources_is_kept_on_request(tmp_path: Path) -> None:
    times = sorted(times_of())
    cells = [time.isoformat() for time in times]
    _, rows = prepare_times(tmp_path / "a", cells, f'{DATES}order = "time"\n', block_bytes=300, shard_rows=50)
    assert rows == expected_parts(times)
    with pytest.raises(DataError, match="row 2 has an earlier time than the one before it"):
        prepare_times(tmp_path / "b", [cells[1], cells[0], *cells[2:]], f'{DATES}order = "time"\n')


def test_rare_categories_are_counted_over_training_rows(tmp_path: Path) -> None:
    times = [time.isoformat() for time in times_of()]
    folder = tmp_path / "a"
    folder.mkdir()
    text = [f"{time},1,2,{'often' if k % 3 else 'late'}" for k, time in enumerate(times)]
    wanted = expected_parts(times_of())
    text = [line if k in wanted["train"] else line.replace("often", "late") for k, line in enumerate(text)]
    kept = [line.replace("late", "once") if k in wanted["train"] else line for k, line in enumerate(text)]
    (folder / "rows.csv").write_text("\n".join([",".join(NAMES), *kept]) + "\n")
    (folder / "schema.toml").write_text(SCHEMA + DATES)
    layout = read_schema(folder / "schema.toml", ",".join(NAMES))
    manifest = prepared(
        [folder / "rows.csv"], folder / "out", layout=layout, vocabulary=VocabularySettings(min_count=2),
        time_split=read_time_split(folder / "schema.toml"),
    )  # fmt: skip
    assert manifest.table_rows == (3,)  # missing, often and once; late is in no training row
    assert rows_of(folder / "out", "test")[2].max() == 0


@pytest.mark.parametrize(
    "cell", ["", "yesterday", "2024-02-30", "2024-01-01 25:00", "2024-01-01T10:00+99:00", "nan", "1e39"]
)
def test_a_row_without_a_time_is_a_bad_one(tmp_path: Path, cell: str) -> None:
    times = [time.isoformat() for time in times_of()]
    with pytest.raises(DataError, match="line 12, field 1: not a time: a date such as 2024-01-06"):
        prepare_times(tmp_path / "a", [*times[:10], cell, *times[11:]])


@pytest.mark.parametrize("number", [None, float("nan"), float("inf"), -1e39])
def test_a_number_that_is_no_time_is_a_bad_one_in_parquet(tmp_path: Path, number: float | None) -> None:
    times = [time.timestamp() for time in times_of()]
    with pytest.raises(DataError, match="not a time: a date such as 2024-01-06"):
        prepare_times(tmp_path / "a", [*times[:10], number, *times[11:]], kind="parquet")


def test_parts_without_rows_are_an_error(tmp_path: Path) -> None:
    times = [time.isoformat() for time in times_of()]
    with pytest.raises(DataError, match=r"there are no test rows \(240 train, 0 validation, 0 test\)"):
        prepare_times(tmp_path / "a", times, 'test = "2025-01-01"\n')
    with pytest.raises(DataError, match="there are no train rows"):
        prepare_times(tmp_path / "b", times, 'test = "2023-01-01"\n')


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("", "wants validation, test or both"),
        ("validation = 0.1\ntest = 5\n", "both as shares, dates or numbers"),
        ("validation = 0.5\ntest = 0.5\n", "wants rows to train on"),
        ('validation = "2024-01-07"\ntest = "2024-01-06"\n', "the test behind the validation"),
        ('validation = "soon"\n', "split validation is 'soon'; want a share"),
        ("validation = true\n", "split validation is True"),
        ('validation = 0.1\norder = "random"\n', "there are shuffled and time"),
        ("validation = 0.1\ntets = 0.1\n", "unknown key 'tets' in split"),
    ],
)
def test_mistakes_in_a_split_are_named(tmp_path: Path, split: str, message: str) -> None:
    (tmp_path / "schema.toml").write_text(SCHEMA + split)
    with pytest.raises(ConfigError, match=message):
        read_schema(tmp_path / "schema.toml", ",".join(NAMES))


def test_the_column_of_the_time_has_no_other_role(tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text(SCHEMA.replace('column = "ts"', 'column = "price"\ntest = 0.1'))
    with pytest.raises(ConfigError, match="column 'price' stands in two places"):
        read_schema(tmp_path / "schema.toml", ",".join(NAMES))


@settings(deadline=None)
@given(
    moments=st.lists(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)), min_size=1, max_size=20),
    style=st.sampled_from(["T", " "]),
    offset=st.none() | st.integers(-1439, 1439),
)
def test_dates_are_read_as_python_reads_them(moments: list[datetime], style: str, offset: int | None) -> None:
    zone = UTC if offset is None else timezone(timedelta(minutes=offset))
    texts = [moment.replace(tzinfo=None if offset is None else zone).isoformat(style) for moment in moments]
    text = "".join(f"{cell}\n" for cell in texts).encode() + bytes(64)
    offsets = np.cumsum([0, *(len(cell) + 1 for cell in texts)])
    keys, values, kinds = np.zeros(len(texts), np.uint64), np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    memory = np.frombuffer(text, np.uint8).copy()
    read_cells(int(FieldRole.TIME), memory.ctypes.data, offsets, -np.inf, keys, values, kinds)
    assert kinds.tolist() == [1] * len(texts)
    wanted = [(moment.replace(tzinfo=zone) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() for moment in moments]
    np.testing.assert_allclose(values, wanted, rtol=1e-15, atol=2e-6)
