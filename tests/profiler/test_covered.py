"""Phases are all of a step: what they add up to is its wall time, for every way to train."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from dqrm_cpu.cli.main import main

pytestmark = pytest.mark.slow

STEPS = 20
LEAST_COVERED = 0.97
VARIANTS = ("this configuration", "FP32", "QAT, torch.aminmax", "QAT, our scan", "QAT, tracked")


def test_phases_add_up_to_the_steps_wall_time(tmp_path: Path) -> None:
    # Of the demo's size: of steps a few hundred microseconds long, Python's own share is larger than that of any user.
    plan = ["--compare", "--warmup", "1", "--steps", str(STEPS), "--rounds", "5", "--train.threads", "1"]
    assert main(["profile", "--out", str(tmp_path), "--preset", "demo", "--train.batch-size", "1024", *plan]) == 0
    shares = covered_by_variant(json.loads((tmp_path / "trace.json").read_text())["traceEvents"])
    assert {name: len(of_steps) for name, of_steps in shares.items()} == dict.fromkeys(VARIANTS, STEPS)
    # The middle one: another program may take the core just between two phases of a step.
    covered = {name: median(of_steps) for name, of_steps in shares.items()}
    assert covered == {name: pytest.approx(1, abs=1 - LEAST_COVERED) for name in covered}
    assert max(max(of_steps) for of_steps in shares.values()) <= 1 + 1e-6


def covered_by_variant(events: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Of each step the share of its time that is inside phases."""
    spans = [event for event in events if event["ph"] == "X"]
    shares: dict[str, list[float]] = {}
    for step in (event for event in spans if event["cat"] == "step"):
        (turn,) = (event["name"] for event in spans if event["cat"] == "turn" and lies_in(step, event))
        inside = sum(event["dur"] for event in spans if event["cat"] == "phase" and lies_in(event, step))
        shares.setdefault(turn, []).append(inside / step["dur"])
    return shares


def lies_in(inner: dict[str, Any], outer: dict[str, Any]) -> bool:
    if (inner["pid"], inner["tid"]) != (outer["pid"], outer["tid"]):
        return False
    return bool(outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 1e-3)


def test_finding_scales_is_what_the_papers_way_spends_its_time_on(tmp_path: Path) -> None:
    """Figure 1c: tables that are large beside the batch, a scale at every step."""
    model = ["--model.table-rows", "3000000,3000000", "--model.embedding-dim", "16", "--model.bottom-mlp", "16"]
    model += ["--model.top-mlp", "16,1", "--data.train-rows", "2000", "--train.threads", "1"]
    plan = ["--compare", "--warmup", "1", "--steps", "9", "--rounds", "3"]
    assert main(["profile", "--out", str(tmp_path), *model, *plan]) == 0
    shares = {}
    for name, found in json.loads((tmp_path / "profile.json").read_text())["variants"].items():
        (rank,) = found["ranks"]
        shares[name] = rank["phases"]["scale"]["median_ms"] / rank["step"]["median_ms"]
    assert shares["QAT, torch.aminmax"] > 0.5
    assert shares["QAT, tracked"] < 0.2
    assert shares["QAT, tracked"] < shares["QAT, our scan"] / 4
