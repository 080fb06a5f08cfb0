"""Phases are all of a step: what they add up to is its wall time, for every way to train."""

import json
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main

pytestmark = pytest.mark.slow

LEAST_COVERED = 0.97


def test_phases_add_up_to_the_steps_wall_time(tmp_path: Path) -> None:
    # Of the demo's size: of steps a few hundred microseconds long, Python's own share is larger than that of any user.
    plan = ["--compare", "--warmup", "1", "--steps", "20", "--rounds", "5", "--train.threads", "1"]
    assert main(["profile", "--out", str(tmp_path), "--preset", "demo", "--train.batch-size", "1024", *plan]) == 0
    variants = json.loads((tmp_path / "profile.json").read_text())["variants"]
    covered = {name: found["ranks"][0]["covered"] for name, found in variants.items()}
    assert len(covered) == 5
    assert covered == {name: pytest.approx(1, abs=1 - LEAST_COVERED) for name in covered}
    for found in variants.values():
        (rank,) = found["ranks"]
        inside_ms = sum(phase["total_ms"] for phase in rank["phases"].values())
        assert inside_ms <= rank["step"]["total_ms"]


def test_finding_scales_is_what_the_papers_way_spends_its_time_on(tmp_path: Path) -> None:
    """Figure 1c: tables that are large beside the batch, a scale at every step."""
    model = ["--model.table-rows", "3000000,3000000", "--model.embedding-dim", "16", "--model.bottom-mlp", "16"]
    model += ["--model.top-mlp", "16,1", "--data.train-rows", "2000", "--train.threads", "1"]
    plan = ["--compare", "--warmup", "1", "--steps", "4", "--rounds", "4"]
    assert main(["profile", "--out", str(tmp_path), *model, *plan]) == 0
    shares = {}
    for name, found in json.loads((tmp_path / "profile.json").read_text())["variants"].items():
        (rank,) = found["ranks"]
        shares[name] = rank["phases"].get("scale", {"total_ms": 0})["total_ms"] / rank["step"]["total_ms"]
    assert shares["QAT, torch.aminmax"] > 0.5
    assert shares["QAT, tracked"] < 0.2
    assert shares["QAT, tracked"] < shares["QAT, our scan"] / 4
