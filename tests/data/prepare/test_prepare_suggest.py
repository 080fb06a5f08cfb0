"""`prepare --suggest`: a schema that prepares the file as it is, each role with its reason."""

import csv
import json
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dqrm_cpu.cli.main import main
from dqrm_cpu.data.prepare import sample as sampling
from dqrm_cpu.data.prepare.sample import read_sample
from dqrm_cpu.data.prepare.schema_file import read_schema
from dqrm_cpu.data.prepare.sources.raw_file import examine
from dqrm_cpu.data.prepare.sources.text_stream import first_line
from dqrm_cpu.data.prepare.suggest import suggest_schema
from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.errors import DataError
from preparing import criteo_text, prepared

ROWS = 600


def columns_of(chance: random.Random) -> dict[str, list[Any]]:
    def some(make: Callable[[], Any], share: float = 0.0) -> list[Any]:
        return [None if chance.random() < share else make() for _ in range(ROWS)]

    return {
        "request": [f"r-{k:05d}" for k in range(ROWS)],
        "clicked": some(lambda: chance.randrange(2)),
        "flag": some(lambda: chance.randrange(2)),
        "created_at": [f"2024-01-{k // 30 + 1:02d} 10:00:{k % 60:02d}" for k in range(ROWS)],
        "ts": [1_700_000_000 + 60 * k for k in range(ROWS)],
        "price": some(lambda: round(chance.uniform(0, 99), 2), 0.1),
        "visits": some(lambda: int(chance.paretovariate(0.5)) % 10**6, 0.1),
        "hour": some(lambda: chance.randrange(24)),
        "campaign_id": some(lambda: 100 * chance.randrange(200)),
        "site": some(lambda: f"site {chance.randrange(30)}, \u00fc", 0.1),
        "country": ["DE"] * ROWS,
        "nothing": [None] * ROWS,
    }


ROLES = {
    "label": ["clicked"],
    "decimals": ["price"],
    "integers": ["visits"],
    "categories": ["flag", "hour", "campaign_id", "site"],
    "keys": ["request"],
}


def write(path: Path, columns: dict[str, list[Any]], delimiter: str, header: bool = True) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        rows = [[("" if cell is None else cell) for cell in row] for row in zip(*columns.values(), strict=True)]
        writer.writerows([list(columns), *rows] if header else rows)
    return path


def roles_of(text: str) -> dict[str, list[str]]:
    document = tomllib.loads(text)
    label = {"label": [document["label"]]}
    return label | {role: document[role] for role in list(ROLES)[1:] if role in document}


def suggested(path: Path) -> str:
    sample, advanced = read_sample(examine(str(path))), list[int]()
    text = suggest_schema(sample, str(path), advanced.append)
    assert len(sample.names) - 1 == sum(advanced)
    return text


def require_prepares(path: Path, text: str, rows: int) -> None:
    """The schema prepares every row of the file as it is."""
    with TemporaryDirectory(dir=path.parent) as name:
        schema = Path(name) / "schema.toml"
        schema.write_text(text)
        names = list(pq.read_schema(path).names) if path.suffix == ".parquet" else None
        layout = read_schema(schema, "" if names else first_line(examine(str(path))), names)
        manifest = prepared([path], Path(name) / "out", layout=layout)
        assert sum(manifest.num_rows(part) for part in manifest.parts) == rows


@pytest.mark.parametrize("form", ["comma", "tab", "semicolon", "parquet"])
def test_every_column_gets_the_role_that_its_values_and_name_say(tmp_path: Path, form: str) -> None:
    columns = columns_of(random.Random(1))
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        columns |= {"place": [{"lat": 1.5}] * ROWS}
        pq.write_table(pa.table(columns), path)
    else:
        write(path, columns, {"comma": ",", "tab": "\t", "semicolon": ";"}[form])
    text = suggested(path)
    assert roles_of(text) == ROLES
    for name, reason in (
        ("clicked", "yes; its name says so"),
        ("request", "it names the row"),
        ("created_at", "a time: 2024-01-01"),
        ("ts", "a time: seconds"),
        ("country", "every row has 'DE'"),
        ("nothing", "it is empty"),
        ("campaign_id", "that its name calls a code"),
        ("hour", "rather codes than amounts, 24 different values, 0 to 23"),
        *([("place", "it holds structures")] if form == "parquet" else []),
    ):
        line = next(line for line in text.splitlines() if f'"{name}"' in line or line.startswith(f"# {name}:"))
        assert reason in line
    require_prepares(path, text, ROWS)


@pytest.mark.parametrize("form", ["comma", "tab", "parquet"])
def test_cells_with_several_values_are_recognized(tmp_path: Path, form: str) -> None:
    chance = random.Random(4)
    genres = [chance.sample([f"genre {n}" for n in range(18)], chance.randrange(1, 6)) for _ in range(ROWS)]
    words = [chance.sample([str(n) for n in range(90)], chance.randrange(40)) for _ in range(ROWS)]
    lists: dict[str, list[Any]] = {"genres": genres, "words": [row or None for row in words]}
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        pq.write_table(
            pa.table(columns_of(chance) | lists | {"none": pa.array([[]] * ROWS, pa.list_(pa.string()))}), path
        )
    else:
        separators = {"genres": "|", "words": ","}
        texts = {name: [separators[name].join(row or []) for row in column] for name, column in lists.items()}
        write(path, columns_of(chance) | texts, {"comma": ",", "tab": "\t"}[form])
    text = suggested(path)
    document = tomllib.loads(text)
    most = max(map(len, words))
    assert document["multi"] == {
        "genres": {} if form == "parquet" else "|",
        "words": {"limit": most} | ({} if form == "parquet" else {"separator": ","}),
    }
    reason = "lists" if form == "parquet" else "several values with '|' between them"
    assert f'"genres",  # {reason}: 18 different ones, up to 5 in a cell\n' in text
    assert f"up to {most} in a cell, " in text
    require_prepares(path, text, ROWS)


def test_files_without_a_header_get_names_for_their_fields(tmp_path: Path) -> None:
    columns = columns_of(random.Random(2))
    path = write(tmp_path / "rows.tsv", columns, "\t", header=False)
    text = suggested(path)
    names = {name: f"c{k + 1}" for k, name in enumerate(columns)}
    document = tomllib.loads(text)
    assert document["fields"] == list(names.values())
    assert (document["header"], document["label"]) == (False, names["clicked"])
    require_prepares(path, text, ROWS)


def test_criteos_files_are_understood(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(criteo_text(300))
    text = suggested(tmp_path / "train.txt")
    document = tomllib.loads(text)
    assert document["label"] == "c1"
    assert set(document["categories"]) >= {f"c{k}" for k in range(15, 41)}
    require_prepares(tmp_path / "train.txt", text, 300)


def test_ratings_become_labels_with_a_threshold(tmp_path: Path) -> None:
    chance = random.Random(3)
    columns: dict[str, list[Any]] = {
        "user": [f"u{chance.randrange(50)}" for _ in range(ROWS)],
        "rating": [chance.randrange(1, 6) for _ in range(ROWS)],
        "price": [chance.random() for _ in range(ROWS)],
    }
    path = write(tmp_path / "ratings.csv", columns, ",")
    text = suggested(path)
    assert tomllib.loads(text)["positive"] == 4
    require_prepares(path, text, ROWS)


def test_rows_beyond_the_sample_may_be_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "SAMPLE_ROWS", 100)
    columns: dict[str, list[Any]] = {
        "click": [k % 2 for k in range(ROWS)],
        "visits": [(k * 7919) % 1000 if k < 300 else k + 0.5 for k in range(ROWS)],
        "site": [f"site {k % 9}" for k in range(ROWS)],
    }
    path = write(tmp_path / "rows.csv", columns, ",")
    text = suggested(path)
    assert "from the first 100 rows" in text
    assert tomllib.loads(text)["decimals"] == ["visits"]
    require_prepares(path, text, ROWS)


def test_a_number_or_a_category_is_found_where_there_seems_to_be_none(tmp_path: Path) -> None:
    codes = {
        "click": [k % 2 for k in range(ROWS)],
        "hour": [k % 24 for k in range(ROWS)],
        "day": [k % 7 for k in range(ROWS)],
    }
    path = write(tmp_path / "codes.csv", codes, ",")
    document = tomllib.loads(suggested(path))
    assert (document["decimals"], document["categories"]) == (["hour"], ["day"])
    numbers: dict[str, list[Any]] = {
        "click": codes["click"],
        "a": [k / 7 for k in range(ROWS)],
        "b": [k / 3 for k in range(ROWS)],
    }
    path = write(tmp_path / "numbers.csv", numbers, ",")
    text = suggested(path)
    assert tomllib.loads(text)["transforms"] == {"b": "buckets"}
    require_prepares(path, text, ROWS)


CELLS: dict[str, st.SearchStrategy[Any]] = {
    "whole": st.integers(-(10**12), 10**12),
    "small": st.integers(0, 3),
    "decimal": st.floats(-1e9, 1e9).map(lambda number: round(number, 3)),
    "text": st.text(st.characters(codec="utf-8", exclude_characters='\r\n\0"', exclude_categories=["Cs"]), max_size=6),
    "answer": st.sampled_from(["yes", "no", "True", "false", "NaN", ""]),
    "tags": st.lists(st.sampled_from("abc"), max_size=3).map("|".join),
}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.data(),
    kinds=st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=4),
    rows=st.integers(2, 40),
    parquet=st.booleans(),
)
def test_whatever_it_suggests_prepares_the_file(
    data: st.DataObject, kinds: list[str], rows: int, parquet: bool
) -> None:
    columns: dict[str, list[Any]] = {"click": [k % 2 for k in range(rows)], "count": [k * 1.5 for k in range(rows)]}
    columns["shop"] = [f"shop {k % 2}" for k in range(rows)]
    for k, kind in enumerate(kinds):
        columns[f"{kind}_{k}"] = data.draw(st.lists(st.none() | CELLS[kind], min_size=rows, max_size=rows))
    with TemporaryDirectory() as name:
        path = Path(name) / ("rows.parquet" if parquet else "rows.csv")
        if parquet:
            pq.write_table(pa.table(columns), path)
        else:
            write(path, columns, ",")
        text = suggested(path)
        assert tomllib.loads(text)["label"] == "click"
        require_prepares(path, text, rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1.5,x\n2.5,y\n", "no column looks like a label"),
        ("click,b\n1,x\n0,y\n", "no column holds numbers"),
        ("click,b\n1,0.5\n0,0.7\n", "one column of numbers and no other"),
        ("just some words\nand others\n", "no fields with a tab, comma"),
        ("", "has no rows"),
        ("click,price\n", "has no rows"),
    ],
)
def test_what_cannot_be_guessed_is_said(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        suggested(tmp_path / "rows.csv")


def test_the_command_writes_the_schema_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.csv", columns_of(random.Random(4)), ",")
    schema = tmp_path / "my schema.toml"
    assert main(["prepare", str(path), "--suggest", str(schema)]) == 0
    printed = capsys.readouterr().out
    assert f"dqrm-cpu prepare {path} --schema '{schema}' --out DIR" in printed
    assert main(["prepare", str(path), "--schema", str(schema), "--out", str(tmp_path / "out")]) == 0
    manifest = read_manifest(tmp_path / "out")
    assert json.dumps(manifest.schema.dense) == '["price", "visits"]'
    assert main(["prepare", str(path), "--suggest", str(schema)]) == 0  # it is there, and the very same
    schema.write_text(changed := schema.read_text() + "# mine")
    assert main(["prepare", str(path), "--suggest", str(schema)]) == 2
    assert schema.read_text() == changed
    assert main(["prepare", str(path), "--suggest", str(tmp_path / "x"), "--out", str(tmp_path / "y")]) == 2
    assert main(["prepare", str(path), "--format", "tsv"]) == 2
    errors = capsys.readouterr().err
    assert "is there already" in errors
    assert "--suggest prepares nothing" in errors
    assert "give --out DIR" in errors


def test_a_label_may_be_wrong_in_a_few_rows_which_are_bad_ones(tmp_path: Path) -> None:
    columns = columns_of(random.Random(3)) | {"clicked": ["?", "", *(k % 2 for k in range(ROWS - 2))]}
    columns["flag"] = ["?"] * 100 + columns["flag"][100:]
    text = suggested(write(tmp_path / "rows.csv", columns, ","))
    assert tomllib.loads(text)["label"] == "clicked"
    assert "in all but 0.33% of the rows, which are bad ones" in text


def test_a_label_may_be_missing_where_no_other_column_has_one(tmp_path: Path) -> None:
    columns = columns_of(random.Random(4))
    del columns["clicked"], columns["flag"]
    columns["opened?"] = ["" if k % 4 == 1 else k % 2 for k in range(ROWS)]
    text = suggested(write(tmp_path / "rows.csv", columns, ";"))
    assert tomllib.loads(text)["label"] == "opened?"
    assert "in all but 25.00% of the rows, which are bad ones (--bad-rows skip)" in text
    with pytest.raises(DataError, match="no column looks like a label"):
        suggested(
            write(tmp_path / "rare.csv", columns | {"opened?": ["" if k % 3 else "yes" for k in range(ROWS)]}, ";")
        )
