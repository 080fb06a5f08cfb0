"""Profiles of what is not one-hot on one rank: simulated ranks, bags, Adagrad, tables of several dimensions."""

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


def test_tables_of_several_dimensions_move_rows_of_their_own_size(tmp_path: Path) -> None:
    found = profiled(tmp_path, "--model.table-dims", "C1=4,C3=12", "--quant.scale-finder", "scan", "--compare")
    bytes_of = moved(found)
    assert bytes_of["scale"] == 4 * (400 * 4 + 30 * 8 + 2000 * 12)
    lookups_of_each = 2000 / 16  # of an epoch's 16 batches, the last a smaller one
    assert bytes_of["gather_quantize"] == lookups_of_each * 4 * (4 + 8 + 12)
    assert bytes_of["embedding_update"] > bytes_of["gather_quantize"]
    variants = json.loads((tmp_path / "profile.json").read_text())["variants"]
    assert set(moved(variants["QAT, tracked"])) == {"gather_quantize", "embedding_update"}
    assert moved(variants["QAT, torch.aminmax"])["scale"] == bytes_of["scale"]
