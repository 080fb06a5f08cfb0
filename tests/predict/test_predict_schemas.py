"""Rows of other forms than Criteo's: a schema with text, decimals and keys, a header or none; the Python function."""

import io
from pathlib import Path

import numpy as np
import pytest

from dqrm_cpu.data.prepare.request import Advance
from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.errors import ConfigError, DataError, DqrmError
from dqrm_cpu.predict.prediction import PredictRequest, predict
from scoring import SMALL, Scored, evaluated, succeed
from test_predict_rows import predicted, read_csv, write_lines

FIELDS = ("id", "site", "click", "hour", "price", "device", "app")
SCHEMA = """
delimiter = ","
quotes = true
label = "click"
integers = ["hour"]
decimals = ["price"]
hashes = ["device"]
categories = ["site", "app"]
keys = ["id"]
"""


def csv_rows(count: int) -> list[str]:
    generator = np.random.default_rng(7)
    rows = []
    for k in range(count):
        site, app, click = (int(x) for x in generator.integers(0, (9, 5, 2)))
        price = f"{generator.random() * 9:.3f}" if k % 5 else ""
        rows.append(f'r{k},"site {site}, {site}",{click},{k % 24},{price},{site * 977:x},app {app}')
    return rows


@pytest.fixture(scope="module", params=["header", "fields"])
def described(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Scored:
    folder, rows = tmp_path_factory.mktemp("described"), csv_rows(900)
    has_header = request.param == "header"
    more = "header = true\n" if has_header else f"fields = {list(FIELDS)}\n"
    (folder / "schema.toml").write_text(SCHEMA + more)
    write_lines(folder / "raw.csv", [",".join(FIELDS), *rows] if has_header else rows)
    schema = ("--schema", folder / "schema.toml")
    succeed("prepare", folder / "raw.csv", *schema, "--out", folder / "data")
    succeed("train", "--data", folder / "data", "--run-dir", folder / "run", *SMALL)
    held_out = read_manifest(folder / "data").num_rows("validation")
    return Scored(folder / "run", folder / "data", rows[-held_out:], evaluated(folder / "run"))


def test_keys_of_the_schema_are_kept(described: Scored, tmp_path: Path) -> None:
    header = [",".join(FIELDS)] if "header = true" in (described.data.parent / "schema.toml").read_text() else []
    raw = write_lines(tmp_path / "raw.csv", [*header, *described.lines])
    succeed("predict", described.run_dir, raw, "--out", tmp_path / "out.csv")
    keys, found = read_csv((tmp_path / "out.csv").read_text())
    assert keys == [(line.partition(",")[0],) for line in described.lines]
    np.testing.assert_allclose(found, described.probabilities, rtol=1e-6, atol=1e-8)
    succeed("predict", described.run_dir, raw, "--keys", "app,site", "--out", tmp_path / "own.csv")
    keys, _ = read_csv((tmp_path / "own.csv").read_text())
    assert keys == [(line.rpartition(",")[2], line.split('"')[1]) for line in described.lines]


def test_a_header_is_enough_where_there_was_none(described: Scored, tmp_path: Path) -> None:
    """With other columns between, without label and keys."""
    rows = [line.split('"') for line in described.lines]
    lines = ["note\tsite\thour\tprice\tdevice\tapp"]
    lines += ["\t".join(["x", site, *rest.split(",")[2:]]) for _, site, rest in rows]
    found = predicted(described.run_dir, write_lines(tmp_path / "raw.tsv", lines), out=tmp_path / "out.csv")
    np.testing.assert_allclose(found, described.probabilities, rtol=1e-6, atol=1e-8)


def test_a_missing_column_is_named(described: Scored, tmp_path: Path) -> None:
    raw = write_lines(tmp_path / "raw.csv", ["id,site,click,hours,price,device,app", *described.lines])
    with pytest.raises(DataError, match=r"raw\.csv has no column 'hour'; nearest is 'hours'"):
        predict(PredictRequest(described.run_dir, (str(raw),), tmp_path / "out.csv"))


def test_the_function_takes_streams_and_says_what_it_did(described: Scored) -> None:
    rows = described.lines
    text = "\n".join([",".join(FIELDS), *rows, "r,s"])
    notes: list[str] = []
    out, stdin = io.BytesIO(), io.BytesIO(text.encode())
    reports: list[Advance] = []
    summary = predict(
        PredictRequest(
            described.run_dir, ("-",), out, bad_rows="skip", stdin=stdin, advance=reports.append, note=notes.append
        )
    )
    keys, found = read_csv(out.getvalue().decode())
    np.testing.assert_allclose(found, described.probabilities, rtol=1e-6, atol=1e-8)
    assert keys[-1] == (rows[-1].partition(",")[0],)
    assert (summary.rows, summary.skipped.count, notes) == (len(rows), 1, [])
    assert summary.skipped.numbers == {"standard input, lines": [len(rows) + 2]}
    assert summary.mean_probability == pytest.approx(found.mean(), abs=1e-6)
    assert (reports[-1].rows, reports[-1].done_bytes, reports[-1].total_bytes) == (len(rows), len(text), 0)


@pytest.mark.parametrize(("wrong", "kind"), [("nowhere", ConfigError), ("input", DataError)])
def test_the_function_raises_and_never_exits(
    described: Scored, tmp_path: Path, wrong: str, kind: type[DqrmError]
) -> None:
    model = tmp_path / "nowhere" if wrong == "nowhere" else described.run_dir
    with pytest.raises(kind):
        predict(PredictRequest(model, (str(tmp_path / "input"),), tmp_path / "out.csv"))
