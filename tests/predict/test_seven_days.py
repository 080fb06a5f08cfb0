"""A week of a log by examples/seven_days.sh: what it shows, what it predicts, and that it may be started again."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from commands import CommandOutput, dqrm_cpu
from days import checked
from dqrm_cpu.data.synthetic.daily_log import FIELDS, DailyLog, write_days
from folders import files_of
from packed_oracle import probabilities
from raw_oracle import model_of, rows_of
from scoring import evaluated
from script_commands import run_script

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "seven_days.sh"
SCHEMA = """delimiter = ","
header = true
label = "click"
integers = ["age"]
decimals = ["price", "balance"]
categories = ["user", "item", "site", "device"]

[transforms]
balance = "standard"
age = "standard"
"""
SMALL = (
    *("--model.embedding-dim", "6", "--model.bottom-mlp", "9,6", "--model.top-mlp", "11,1", "--train.threads", "1"),
    *("--train.batch-size", "50", "--tune", "2"),
)


def walked(folder: Path) -> CommandOutput:
    """Runs the script with commands that this process does."""
    with contextlib.chdir(folder):
        done = run_script(SCRIPT, folder, lambda words: dqrm_cpu(*words), *SMALL, environ={"ROWS": "1500"})
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CommandOutput]:
    folder = tmp_path_factory.mktemp("week")
    return folder, walked(folder)


def rows_to_score(path: Path) -> list[dict[str, str]]:
    """Cells of the rows of a day, but for bad ones: what a label says is not looked at."""
    cells = (line.split(",") for line in path.read_text().splitlines()[1:])
    return [dict(zip(FIELDS, row, strict=True)) for row in cells if len(row) == len(FIELDS)]


def predictions_in(folder: Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(folder / "predictions.parquet")
    assert table.column_names == ["request", "probability"]
    return table["request"].to_pylist(), table["probability"].to_numpy().astype(np.float64)


def test_every_day_is_tested_and_stands_in_the_report(week: tuple[Path, CommandOutput]) -> None:
    folder, done = week
    assert done.stdout.count("  GAUC  ") == 6
    assert done.stderr.count("beginning with ") == 6
    assert "chosen: " in done.stderr
    assert "bad rows" in done.stdout
    assert any((folder / "data" / "day-1" / "bad-rows.txt").read_text())
    page = (folder / "report.html").read_text()
    assert all(f"day-{day}" in page for day in range(1, 8))


def test_rows_keep_their_order_and_names(week: tuple[Path, CommandOutput]) -> None:
    requests, values = predictions_in(week[0])
    assert requests == [row["request"] for row in rows_to_score(week[0] / "days" / "day-7.csv")]
    assert (values > 0).all() and (values < 1).all()


def test_predictions_are_those_of_evaluate(week: tuple[Path, CommandOutput]) -> None:
    """Its validation rows are the last ones of the log that have a label, in their order."""
    scored = evaluated(week[0] / "runs" / "day-7")
    rows = rows_to_score(week[0] / "days" / "day-7.csv")
    predicted = predictions_in(week[0])[1][[row["click"] in ("0", "1") for row in rows]]
    assert len(scored) > 90
    np.testing.assert_allclose(predicted[-len(scored) :], scored, rtol=0, atol=1e-6)


def test_predictions_are_those_of_the_packed_file_read_with_numpy_alone(week: tuple[Path, CommandOutput]) -> None:
    folder, _ = week
    run = folder / "runs" / "day-7"
    dense, ids = rows_of(folder / "data" / "day-7", rows_to_score(folder / "days" / "day-7.csv"), several=("tags",))
    assert [] in ids[:, -1].tolist()  # no tags
    assert [0] in ids[:, 0].tolist()  # a user who is too new
    expected = probabilities(run / "packed" / "dense.safetensors", model_of(run), dense, ids)
    np.testing.assert_allclose(predictions_in(folder)[1], expected, rtol=0, atol=1e-6)


def test_the_script_again_finds_everything_done(week: tuple[Path, CommandOutput]) -> None:
    folder, _ = week
    before = {name: content for name, content in files_of(folder).items() if _lasts(name)}
    walked(folder)
    assert {name: content for name, content in files_of(folder).items() if _lasts(name)} == before


def _lasts(name: str) -> bool:
    """Tells whether a file stays the same when another process does the same work again."""
    kinds = ("metrics.jsonl", "result.json", "report.html", "config.toml", "lock")
    return not name.endswith(kinds) and "/spans/" not in name and "environment" not in name


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_model_that_went_on_is_as_good_as_one_of_all_days_at_once(tmp_path: Path) -> None:
    """Scored on 50,000 rows of the last day that nobody has learned from.

    Seeds 1 and 2: AUC .815 and .819 against .794 and .799 of all days at once, which average over the drift, and .558
    of the first day's model; calibration .987 and .984.
    """
    rows, scored = 100_000, 50_000
    log, raw = DailyLog(rows, seed=1), tmp_path / "days"
    write_days(log, raw, 7)
    head, *lines = b"".join(DailyLog(rows + scored, seed=1).text(7)).splitlines(keepends=True)
    (raw / "unseen.csv").write_bytes(head + b"".join(lines[rows:]))
    (tmp_path / "clicks.toml").write_text(SCHEMA)
    options = ("--schema", tmp_path / "clicks.toml", "--bad-rows", "skip", "--max-bad-rows", 9999)
    settings = (
        *("--train.epochs", 1, "--train.optimizer", "rowwise-adagrad", "--train.learning-rate", 0.05),
        *("--train.threads", 2, "--train.decay-steps"),
    )

    def trained(days: Sequence[int], name: str, more: Sequence[object], begun: Sequence[object]) -> None:
        data = tmp_path / f"data-{name}"
        checked("prepare", *(raw / f"day-{day}.csv" for day in days), *options, "--min-count", 3, "--out", data, *more)
        checked("train", "--data", data, "--run-dir", tmp_path / name, *begun)

    def metrics(name: str) -> Any:
        known, unseen = tmp_path / f"data-{name}", tmp_path / f"unseen-{name}"
        checked("prepare", raw / "unseen.csv", *options, "--split", "none", "--vocabulary", known, "--out", unseen)
        command = ("evaluate", "--run-dir", tmp_path / name, "--data", unseen, "--part", "all", "--json")
        return json.loads(checked(*command).stdout)

    trained([1], "1", (), (*settings, 670))
    for day in range(2, 8):
        trained(
            [day], str(day), ("--grow-from", tmp_path / f"data-{day - 1}"), ("--init-from", tmp_path / str(day - 1))
        )
    # The held-out seventh are rows of the oldest day.
    trained([2, 3, 4, 5, 6, 7, 1], "all", (), (*settings, 7 * 670))
    first, went_on, at_once = (metrics(name) for name in ("1", "7", "all"))
    assert went_on["auc"] > first["auc"] + 0.2
    assert went_on["auc"] > at_once["auc"] - 0.001
    assert abs(went_on["calibration"] - 1) < 0.02


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_it_runs_as_a_user_types_it_from_a_wheel(tmp_path: Path) -> None:
    """In an environment of its own, which has the packages that it needs and no copy of the sources."""
    program = program_from_wheel(tmp_path)
    (week := tmp_path / "week").mkdir()
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environ |= {"PATH": f"{program.parent}:{environ['PATH']}", "ROWS": "3000"}
    done = subprocess.run(
        ["bash", str(SCRIPT), *SMALL], cwd=week, env=environ, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr
    where = [str(program.with_name("python")), "-c", "import dqrm_cpu; print(dqrm_cpu.__file__)"]
    imported = subprocess.run(where, cwd=week, env=environ, capture_output=True, text=True, check=True).stdout
    assert imported.startswith(str(tmp_path / "env"))
    assert len(predictions_in(week)[0]) == len(rows_to_score(week / "days" / "day-7.csv"))


def program_from_wheel(folder: Path) -> Path:
    """The command of a wheel that is built and installed below `folder`; what it requires lies in this environment."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).exists():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "source" / name, follow_symlinks=False)
    pip, env = [sys.executable, "-m", "pip", "-q"], folder / "env"
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "source")]
    subprocess.run([*pip, *build], check=True)
    shutil.rmtree(folder / "source")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", str(env / "bin" / "python"), "install", "--no-deps", str(wheel)], check=True)
    (site,) = env.glob("lib/*/site-packages")
    # Of a folder that is named so no .pth is read: the editable installation of the sources stays unseen.
    (site / "requirements.pth").write_text(str(Path(np.__file__).parents[1]))
    return env / "bin" / "dqrm-cpu"
