"""Profiles of what is not one-hot on one rank: simulated ranks, bags, Adagrad."""

import json
from pathlib import Path
from typing import Any

import pytest

from dqrm_cpu.cli.main import main
from report_runs import SMALL

ROW_BYTES = 8 * 4


def profiled(folder: Path, *options: str) -> dict[str, Any]:
    plan = ["--steps", "2", "--rounds", "1", "--warmup", "0", "--out", str(folder)]
    assert main(["profile", *plan, *SMALL, *options]) == 0
    found: dict[str, Any] = json.loads((folder / "profile.json").read_text())["variants"]["this configuration"]
    return found


def moved(found: dict[str, Any]) -> dict[str, float]:
    return {one["phase"]: one["bytes"] for one in found["bandwidth"]}


@pytest.mark.slow
def test_simulated_ranks_change_each_row_once(tmp_path: Path) -> None:
    alone, together = (profiled(tmp_path / n, "--comm.simulated-ranks", n) for n in ("1", "3"))
    assert moved(together)["gather_quantize"] == moved(alone)["gather_quantize"]
    # Merged, the gradient has a row for each that changes; alone, one for each id.
    assert moved(together)["embedding_update"] < moved(alone)["embedding_update"]
    assert {"coalesce", "merge"} <= set(together["ranks"][0]["phases"])


@pytest.mark.slow
def test_rowwise_adagrad_moves_its_state_too(tmp_path: Path) -> None:
    sgd, adagrad = (moved(profiled(tmp_path / n, "--train.optimizer", n)) for n in ("sgd", "rowwise-adagrad"))
    changed_rows = (sgd["embedding_update"] - sgd["gather_quantize"]) / (2 * ROW_BYTES)
    assert adagrad["embedding_update"] - sgd["embedding_update"] == pytest.approx(8 * changed_rows)


def test_bags_say_that_their_bytes_are_not_known(tmp_path: Path) -> None:
    assert moved(profiled(tmp_path, "--data.max-bag-size", "4")) == {}
    assert "is known what must be moved" in (tmp_path / "report.html").read_text(encoding="utf-8")
