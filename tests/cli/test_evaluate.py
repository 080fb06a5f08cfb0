"""`evaluate` with groups, slices and calibration, in this process and over two ranks; what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dqrm_cpu.cli.main import main
from launching import run_world

SMALL = [
    *("--data.train-rows", "3000", "--data.validation-rows", "1000", "--data.test-rows", "1000"),
    *("--model.table-rows", "40,3,500", "--model.embedding-dim", "6", "--model.bottom-mlp", "9,6"),
    *("--model.top-mlp", "11,1", "--train.epochs", "1", "--train.batch-size", "50"),
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    assert main(["train", *SMALL, "--run-dir", str(folder)]) == 0
    return folder


def evaluated(run_dir: Path, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    capsys.readouterr()
    assert main(["evaluate", "--run-dir", str(run_dir), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_slices_part_the_rows_and_gauc_is_their_mean_auc(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(run_dir, capsys, "--group-by", "C1", "--slice-by", "C1", "--slices", "100")
    values = found["slices"]["values"]
    assert found["slices"]["others"] is None
    assert sum(value["examples"] for value in values) == found["examples"] == 1000
    both = [value for value in values if value["auc"] is not None]
    rows = sum(value["examples"] for value in both)
    assert (found["grouped"]["groups"], found["grouped"]["rows"]) == (len(both), rows)
    assert found["grouped"]["groups_left_out"] == len(values) - len(both)
    expected = math.fsum(value["auc"] * value["examples"] for value in both) / rows
    assert found["grouped"]["gauc"] == pytest.approx(expected, abs=1e-12)


def test_the_rarer_values_are_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(run_dir, capsys, "--slice-by", "C3", "--slices", "2", "--part", "all")
    values = found["slices"]["values"]
    assert [len(values), values[0]["examples"] >= values[1]["examples"]] == [2, True]
    assert sum(part["examples"] for part in (*values, found["slices"]["others"])) == found["examples"] == 5000


def test_columns_may_differ(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = evaluated(run_dir, capsys, "--slice-by", "C2")["slices"]
    assert evaluated(run_dir, capsys, "--group-by", "C3", "--slice-by", "C2")["slices"] == alone
    assert [value["id"] for value in alone["values"]] == sorted(
        (0, 1, 2), key=lambda row: next(-value["examples"] for value in alone["values"] if value["id"] == row)
    )


@pytest.mark.parametrize("how", ["platt", "isotonic"])
def test_calibrated_probabilities_fit_the_rows_that_they_were_fitted_to(
    run_dir: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    plain = evaluated(run_dir, capsys, "--part", "validation")
    found = evaluated(run_dir, capsys, "--part", "validation", "--calibrate", how)
    assert found["calibrated_by"] == how
    assert found["calibration"] == pytest.approx(1.0, abs=0.01)
    assert found["log_loss"] <= plain["log_loss"]
    if how == "platt":  # a straight line keeps the order
        assert found["auc"] == pytest.approx(plain["auc"], abs=1e-5)


def test_the_tables_show_it(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--group-by", "C3", "--slice-by", "C2", "--slices", "1", "--calibrate", "platt"]
    assert main(["evaluate", "--run-dir", str(run_dir), *options]) == 0
    out = capsys.readouterr().out
    assert "1,000 test rows, calibrated (platt)" in out
    assert "GAUC" in out and "of one label only" in out
    assert "id of C2" in out and "others" in out


def test_two_ranks_find_the_same(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--group-by", "C3", "--slice-by", "C1", "--calibrate", "isotonic"]
    alone = evaluated(run_dir, capsys, *options)
    world = run_world("gloo", ["-m", "dqrm_cpu", "evaluate", "--run-dir", run_dir, "--json", *options], 2)
    world.check()
    assert json.loads(world.ranks[0].stdout) == alone


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--group-by", "user"), "there is no category 'user'; there are C1, C2, C3"),
        (("--slice-by", "I1"), "there is no category 'I1'"),
        (("--slice-by", "C1", "--slices", "0"), "no whole number from 1 on"),
        (("--calibrate", "beta"), "platt"),
    ],
)
def test_mistakes_are_named(
    run_dir: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert main(["evaluate", "--run-dir", str(run_dir), *options]) == 2
    assert words in capsys.readouterr().err


def test_ranks_that_all_make_a_mistake_name_it_once(run_dir: Path) -> None:
    world = run_world("gloo", ["-m", "dqrm_cpu", "evaluate", "--run-dir", run_dir, "--group-by", "user"], 2)
    assert [rank.returncode for rank in world.ranks] == [2, 2]
    assert [rank.stderr.count("no category 'user'") for rank in world.ranks] == [1, 0]
