"""A model of rows with tags: raw rows get the probabilities of the prepared ones, as text, as lists, and packed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from bag_oracle import SCHEMA, distinct_values, tagged_columns, tagged_text
from commands import dqrm_cpu
from dqrm_cpu.data.store.manifest import read_manifest
from scoring import SMALL, evaluated, succeed


@dataclass(frozen=True)
class Tagged:
    folder: Path
    rows: dict[str, list[Any]]  # the validation rows
    probabilities: np.ndarray

    @property
    def run(self) -> Path:
        return self.folder / "run"


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Tagged:
    folder = tmp_path_factory.mktemp("tagged")
    columns = tagged_columns(1400, seed=3)
    # Clicks follow a tag, so that weights of tags are learned.
    columns["click"] = [int(tags is not None and "tag 1" in tags) for tags in columns["tags"]]
    (folder / "log.csv").write_text(tagged_text(columns))
    (folder / "schema.toml").write_text(SCHEMA)
    schema = ["--schema", folder / "schema.toml"]
    succeed("prepare", folder / "log.csv", *schema, "--out", folder / "data", "--min-count", 2)
    succeed("train", "--data", folder / "data", "--run-dir", folder / "run", *SMALL, "--train.epochs", 8)
    count = read_manifest(folder / "data").num_rows("validation")
    rows = {name: values[-count:] for name, values in columns.items()}
    rows["tags"][5] = ["never seen", "tag 1"]
    (folder / "new.csv").write_text(tagged_text(rows))
    given = ["--vocabulary", folder / "data", "--split", "none", "--out", folder / "new"]
    succeed("prepare", folder / "new.csv", *schema, *given)
    return Tagged(folder, rows, evaluated(folder / "run"))


def scored(tagged: Tagged, model: Path, name: str, *options: object) -> np.ndarray:
    out = tagged.folder / f"{name}.scores.csv"
    succeed("predict", model, tagged.folder / name, "--out", out, "--overwrite", *options)
    return np.asarray(pyarrow.csv.read_csv(out)["probability"])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_raw_rows_have_the_probabilities_of_evaluate(tagged: Tagged, kind: str) -> None:
    """All but the one whose tag is new: a value that has no row of its own is row 0."""
    if kind == "parquet":
        pq.write_table(pa.table(tagged.rows), tagged.folder / "new.parquet")
    found = scored(tagged, tagged.run, f"new.{kind}")
    rest = np.arange(found.size) != 5
    np.testing.assert_allclose(found[rest], tagged.probabilities[rest], rtol=1e-6)
    assert found.std() > 0.1


@pytest.mark.parametrize("workers", [1, 3])
def test_values_beyond_the_limit_of_their_cell_are_counted_by_column(
    tagged: Tagged, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dqrm_cpu.data.prepare.raw_rows._BLOCK_BYTES", 1 << 12)
    cells = [[str(value or "") for value in cell] for cell in tagged.rows["topics"]]
    expected = sum(distinct_values(cell, 2)[1] for cell in cells)
    assert expected > 0
    options = ("--out", tagged.folder / "cut.csv", "--overwrite", "--workers", workers)
    output = dqrm_cpu("predict", tagged.run, tagged.folder / "new.csv", *options)
    assert f"limit` of their cell were left out, as in training: {expected:,} of topics\n" in output.stderr
    assert "of their cell" not in dqrm_cpu("predict", tagged.run, tagged.folder / "new", *options).stderr


def test_a_packed_model_scores_tags_as_its_run_does(tagged: Tagged) -> None:
    packed = tagged.run / "packed" / "dense.safetensors"
    np.testing.assert_allclose(
        scored(tagged, packed, "new.csv", "--data", tagged.folder / "data"),
        scored(tagged, tagged.run, "new.csv"),
        atol=1e-6,
    )


def test_many_rows_are_scored_in_pieces(tagged: Tagged) -> None:
    """More than fit into one forward."""
    lines = (tagged.folder / "new.csv").read_text().splitlines()
    times = 2048 // (len(lines) - 1) + 2
    (tagged.folder / "many.csv").write_text("\n".join([lines[0], *lines[1:] * times]) + "\n")
    found = scored(tagged, tagged.run, "many.csv")
    np.testing.assert_allclose(found, np.tile(scored(tagged, tagged.run, "new.csv"), times), rtol=1e-6)


def test_prepared_rows_have_the_probabilities_of_the_raw_ones(tagged: Tagged) -> None:
    found = np.sort(scored(tagged, tagged.run, "new"))
    np.testing.assert_allclose(found, np.sort(scored(tagged, tagged.run, "new.csv")), rtol=1e-6)


def test_tables_of_the_data_show_bags(tagged: Tagged) -> None:
    shown = succeed("data", "show", tagged.folder / "data")
    names = next(line.split() for line in shown.splitlines() if "table rows" in line)
    assert names[-1] == "cut"
    head = succeed("data", "head", tagged.folder / "data", "--rows", 3)
    assert "topics" in head
    assert succeed("data", "verify", tagged.folder / "data")


def test_a_column_of_tags_makes_no_slices(tagged: Tagged) -> None:
    output = dqrm_cpu("evaluate", "--run-dir", tagged.run, "--slice-by", "tags")
    assert output.returncode == 1
    assert "several values" in output.stderr
    assert "site" in succeed("evaluate", "--run-dir", tagged.run, "--slice-by", "site")


def test_a_report_and_the_next_day_go_on_with_tags(tagged: Tagged) -> None:
    succeed("report", tagged.run)
    folder = tagged.folder
    later = tagged_columns(500, seed=9)
    (folder / "later.csv").write_text(tagged_text(later))
    prepare = ["prepare", folder / "later.csv", "--schema", folder / "schema.toml", "--grow-from", folder / "data"]
    succeed(*prepare, "--out", folder / "grown")
    succeed(
        "train",
        "--data",
        folder / "grown",
        "--run-dir",
        folder / "next",
        "--init-from",
        tagged.run,
        "--train.epochs",
        1,
    )
    assert scored(tagged, folder / "next", "later.csv").size == 500
