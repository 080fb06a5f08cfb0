"""`weight` in a schema: numbers from 0 on beside the rows, in text and Parquet; a row without one is a bad row."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import dqrm_cpu
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.schema_file import read_schema
from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.data.store.stored_rows import StoredRows
from dqrm_cpu.errors import ConfigError, DataError
from folders import files_of
from preparing import prepared
from scoring import SMALL, succeed

NAMES = ["importance", "click", "hour", "price", "site"]
SCHEMA = """
header = true
delimiter = ","
label = "click"
weight = "importance"
integers = ["hour"]
decimals = ["price"]
categories = ["site"]

[transforms]
hour = "buckets"
price = "standard"
"""
WEIGHTS = ["0", "1", "2.5", "1e-3", "true", "3.0", "-0", "7e37", "1e40"]
READ = [0.0, 1.0, 2.5, 1e-3, 1.0, 3.0, 0.0, 7e37, float(np.finfo(np.float32).max)]


def layout_of(folder: Path, text: str = SCHEMA) -> Layout:
    (folder / "schema.toml").write_text(text)
    return read_schema(folder / "schema.toml", "", NAMES)


def lines_of(weights: list[str]) -> str:
    rows = [f"{weight},{k % 2},{k},{k / 2},s{k % 3}" for k, weight in enumerate(weights)]
    return "\n".join([",".join(NAMES), *rows]) + "\n"


def weights_by_price(out: Path) -> list[float]:
    """The weights of the rows in their order in the source: prices rise."""
    manifest = read_manifest(out)
    batch = StoredRows(out, manifest, "train").rows(0, manifest.num_rows("train"))
    assert batch.weight is not None
    assert batch.dense.shape[1] == 1
    found: list[float] = batch.weight[batch.dense[:, 0].argsort()].tolist()
    return found


@pytest.mark.parametrize("kind", ["csv", "texts", "numbers"])
def test_weights_are_stored_beside_the_rows(tmp_path: Path, kind: str) -> None:
    (tmp_path / "log.csv").write_text(lines_of(WEIGHTS))
    prepared([tmp_path / "log.csv"], tmp_path / "csv", layout=layout_of(tmp_path), split="none")
    weights: list[Any] = list(READ) if kind == "numbers" else WEIGHTS
    count = range(len(READ))
    table = {"importance": weights, "click": [k % 2 for k in count], "hour": list(count)}
    table |= {"price": [k / 2 for k in count], "site": [f"s{k % 3}" for k in count]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    if kind != "csv":
        prepared([tmp_path / "log.parquet"], tmp_path / kind, layout=layout_of(tmp_path), split="none")
    assert weights_by_price(tmp_path / kind) == [float(np.float32(weight)) for weight in READ]
    shards = [{name: c for name, c in files_of(tmp_path / one).items() if "shard" in name} for one in ("csv", kind)]
    assert shards[0] == shards[1]
    manifest = read_manifest(tmp_path / kind)
    assert manifest.schema.dense == ("price", "importance")
    assert manifest.schema.weight == "importance"
    statistics = manifest.columns[1]
    assert (statistics.missing, statistics.minimum) == (0, 0.0)


@pytest.mark.parametrize("weight", ["", "-1", "inf", "nan", "NaN", "null", "much", "1e999"])
def test_what_is_no_weight_makes_a_bad_row(tmp_path: Path, weight: str) -> None:
    (tmp_path / "log.csv").write_text(lines_of(["1", weight, "2"]))
    with pytest.raises(DataError, match="line 3, field 1: not a weight: a number from 0 on"):
        prepared([tmp_path / "log.csv"], tmp_path / "out", layout=layout_of(tmp_path))
    number = {"": None, "null": None, "much": None, "1e999": float("inf")}.get(weight, weight)
    weights = [1.0, None if number is None else float(number), 2.0]
    table = {"importance": weights, "click": [0, 1, 1], "hour": [1, 2, 3], "price": [0.0, 0.5, 1.0], "site": ["a"] * 3}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    prepared(
        [tmp_path / "log.parquet"], tmp_path / "parquet", layout=layout_of(tmp_path), bad_rows="skip", split="none"
    )
    assert weights_by_price(tmp_path / "parquet") == [1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SCHEMA.replace('"importance"', '"click"'), "'click' stands in two places"),
        (SCHEMA.replace('["price"]', '["price", "importance"]'), "'importance' stands in two places"),
        (SCHEMA.replace('"importance"', '"importence"'), "nearest is 'importance'"),
        (SCHEMA.replace('"importance"', "1"), "weight must be text"),
        (SCHEMA.replace('decimals = ["price"]', "").replace('price = "standard"', ""), "a number beside its weight"),
    ],
)
def test_mistakes_about_weights_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layout_of(tmp_path, text)


def test_a_run_counts_weights_and_scores_rows_with_and_without_them(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    weights = [f"{weight:.3f}" for weight in generator.gamma(2, 1, 700)]
    text = lines_of(weights)
    (tmp_path / "log.csv").write_text(text)
    (tmp_path / "schema.toml").write_text(SCHEMA)
    data, run = tmp_path / "data", tmp_path / "run"
    succeed("prepare", tmp_path / "log.csv", "--schema", tmp_path / "schema.toml", "--out", data)
    shown = succeed("data", "show", data)
    assert "weights in importance" in shown
    assert "importance  weight" in shown
    assert "importance" in succeed("data", "head", data)
    succeed("train", "--data", data, "--run-dir", run, *SMALL)
    names, *rows = [line.split(",") for line in text.splitlines()]
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    scores = []
    for order in (NAMES, ["site", "price", "hour"], ["price", "click", "site", "importance", "hour"]):
        lines = [order, *zip(*(columns[name] for name in order), strict=True)]
        (tmp_path / "new.csv").write_text("\n".join(map(",".join, lines)) + "\n")
        succeed("predict", run, tmp_path / "new.csv", "--out", tmp_path / "scores.csv", "--overwrite")
        scores.append((tmp_path / "scores.csv").read_text())
    assert scores[0] == scores[1] == scores[2]


def test_rows_without_a_header_have_weights_where_the_prepared_ones_had(tmp_path: Path) -> None:
    """Whatever the weight of a row to be scored says, it is not looked at."""
    body = lines_of(["1"] * 70).partition("\n")[2]
    (tmp_path / "log.csv").write_text(body)
    text = SCHEMA.replace("header = true", f"fields = {NAMES}")
    (tmp_path / "schema.toml").write_text(text)
    data, run = tmp_path / "data", tmp_path / "run"
    succeed("prepare", tmp_path / "log.csv", "--schema", tmp_path / "schema.toml", "--out", data)
    succeed("train", "--data", data, "--run-dir", run, *SMALL)
    scores = []
    rows = [line.split(",") for line in body.splitlines()]
    for cells in (rows, [["much", *row[1:]] for row in rows], [["", *row[2:]] for row in rows]):
        (tmp_path / "new.csv").write_text("\n".join(map(",".join, cells)) + "\n")
        succeed("predict", run, tmp_path / "new.csv", "--out", tmp_path / "scores.csv", "--overwrite")
        scores.append((tmp_path / "scores.csv").read_text())
    assert scores[0] == scores[1] == scores[2]
    output = dqrm_cpu("predict", run, tmp_path / "new.csv", "--out", tmp_path / "scores.csv", "--keys", "importance")
    assert output.returncode != 0
