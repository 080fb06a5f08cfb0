"""Test, then train, over days: each day's rows score the model of the day before, then go on with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from days import SMALL, checked, prepare_day, write_day
from dqrm_cpu.data.store.manifest import read_manifest

DAYS = (1, 2, 3)
ROWS = 6000
SETTINGS = [*SMALL, "--train.optimizer", "rowwise-adagrad", "--train.learning-rate", "0.05"]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of docs/daily-training.md: data sets `data-1` ..., runs `run-1` ..., metrics `tested-2.json` ..."""
    folder = tmp_path_factory.mktemp("walk")
    for day in DAYS:
        raw, data, before = write_day(folder, day, ROWS), folder / f"data-{day}", folder / f"data-{day - 1}"
        run_dir, parent = folder / f"run-{day}", folder / f"run-{day - 1}"
        if day == DAYS[0]:
            checked("train", *SETTINGS, "--data", prepare_day(raw, data), "--run-dir", run_dir)
            continue
        (folder / f"tested-{day}.json").write_text(json.dumps(scored(parent, raw, before)))
        prepare_day(raw, data, "--grow-from", before)
        checked("train", "--init-from", parent, "--data", data, "--run-dir", run_dir)
    return folder


def scored(run_dir: Path, raw: Path, known: Path) -> Any:
    """Scores all rows of a day by the model of an earlier one, which knows the categories of the data set `known`."""
    rows = raw.parent / f"{raw.stem}-under-{known.name}"
    prepare_day(raw, rows, "--split", "none", "--vocabulary", known)
    return json.loads(checked("evaluate", "--run-dir", run_dir, "--data", rows, "--part", "all", "--json").stdout)


def test_the_model_that_went_on_knows_the_last_day_better_than_the_first_one(walked: Path) -> None:
    first = scored(walked / "run-1", walked / f"day-{DAYS[-1]}.csv", walked / "data-1")
    went_on = json.loads((walked / f"tested-{DAYS[-1]}.json").read_text())
    assert first["examples"] == went_on["examples"] == ROWS
    assert went_on["auc"] > first["auc"] + 0.01
    assert went_on["log_loss"] < first["log_loss"]


def test_a_report_shows_all_days(walked: Path) -> None:
    page = walked / "days.html"
    printed = checked("report", *(walked / f"run-{day}" for day in DAYS), "--out", page).stdout.splitlines()
    text = page.read_text()
    assert len(printed) == 2 + len(DAYS)
    for day in DAYS[1:]:
        tested = json.loads((walked / f"tested-{day}.json").read_text())
        cells = printed[day].split()
        assert cells[:3] == [f"run-{day}", "5,143", f"{sum(read_manifest(walked / f'data-{day}').table_rows):,}"]
        assert cells[5:7] == [f"{tested['auc']:.4f}", f"{tested['log_loss']:.4f}"]
        assert f"<td>{tested['auc']:.4f}</td>" in text
    assert printed[1].split()[3:9] == ["-"] * 6
    assert all(f"run-{day}" in text for day in DAYS)
    assert str(walked / "run-1") in text


def test_a_data_set_shows_what_became_of_its_vocabulary(walked: Path) -> None:
    shown = checked("data", "show", walked / "data-2").stdout.splitlines()
    heads = next(line for line in shown if "distinct" in line).split()
    assert heads == ["column", "table", "rows", "distinct", "missing", "rare", "unseen", "added", "evicted", "waiting"]
    site = next(line for line in shown if line.startswith("  site")).split()
    column = next(column for column in read_manifest(walked / "data-2").columns if column.name == "site")
    assert site[-3:] == [str(column.added), "0", "0"]
    assert "added" not in checked("data", "show", walked / "data-1").stdout


def test_after_five_days_the_model_is_as_good_as_one_of_all_rows_at_once(tmp_path: Path) -> None:
    """Scored on rows of the last day that neither has seen; a seventh of what each is given is held out."""
    raw = [write_day(tmp_path, day, 20_000) for day in range(1, 6)]
    lines = raw[-1].read_text().splitlines(keepends=True)
    (unseen := tmp_path / "unseen.csv").write_text("".join(lines[12_000:]))
    raw[-1].write_text("".join(lines[:12_000]))
    (everything := tmp_path / "everything.csv").write_text("".join(one.read_text() for one in (raw[-1], *raw[:-1])))
    settings = [*SETTINGS, "--train.batch-size", "128"]
    checked("train", *settings, "--data", prepare_day(everything, tmp_path / "all"), "--run-dir", tmp_path / "run-all")
    for day, rows in enumerate(raw):
        grown = ["--grow-from", tmp_path / f"data-{day - 1}"] if day else []
        begun = ["--init-from", tmp_path / f"run-{day - 1}"] if day else settings
        data = prepare_day(rows, tmp_path / f"data-{day}", *grown)
        checked("train", *begun, "--data", data, "--run-dir", tmp_path / f"run-{day}")
    known = {"run-0": "data-0", "run-4": "data-4", "run-all": "all"}
    auc = {run: scored(tmp_path / run, unseen, tmp_path / data)["auc"] for run, data in known.items()}
    assert auc["run-4"] > auc["run-0"] + 0.1
    assert auc["run-4"] > auc["run-all"] - 0.001
