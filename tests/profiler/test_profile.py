"""Profiles: every variant, phases that add up, a trace in the form that viewers open."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dqrm_cpu.cli.main import main
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.profile.phases import Phase
from dqrm_cpu.profiler.observers import Event
from dqrm_cpu.profiler.trace import chrome_trace
from dqrm_cpu.profiler.variants import aminmax_scan
from report_runs import SMALL

STEPS, ROUNDS = 6, 3
VARIANTS = ["this configuration", "FP32", "QAT, torch.aminmax", "QAT, our scan", "QAT, tracked"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("profile")
    plan = ["--compare", "--warmup", "1", "--steps", str(STEPS), "--rounds", str(ROUNDS), "--torch-profiler", "--png"]
    assert main(["profile", "--out", str(out), *plan, *SMALL]) == 0
    return out


def test_every_variant_was_measured_alike(folder: Path) -> None:
    document = json.loads((folder / "profile.json").read_text())
    assert list(document["variants"]) == VARIANTS
    for found in document["variants"].values():
        (rank,) = found["ranks"]
        assert rank["step"]["count"] == STEPS
        assert all(phase["count"] == STEPS for phase in rank["phases"].values())
        inside = sum(phase["total_ms"] for phase in rank["phases"].values())
        assert inside == pytest.approx(rank["covered"] * rank["step"]["total_ms"])
        assert 0 < rank["covered"] <= 1
    assert document["variants"]["FP32"]["changed_settings"]["quant.method"] == "none"
    scanned = document["variants"]["QAT, our scan"]["bandwidth"]
    assert {"scale", "gather_quantize"} == {one["phase"] for one in scanned}
    assert next(one for one in scanned if one["phase"] == "scale")["bytes"] == (400 + 30 + 2000) * 8 * 4


def test_the_page_and_its_figures_are_there(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    for key in ("summary", "warnings", "phases", "ranks", "bandwidth", "environment"):
        assert f'<section id="{key}">' in text
    assert all(name in text for name in VARIANTS)
    assert (folder / "figures" / "phases.png").read_bytes().startswith(b"\x89PNG")


def test_torch_profiler_saw_our_phases(folder: Path) -> None:
    names = {event.get("name") for event in json.loads((folder / "torch-rank0.json").read_text())["traceEvents"]}
    assert {"step", Phase.MLP_FORWARD.label, Phase.GATHER_QUANTIZE.label} <= names


def test_the_trace_nests_turns_steps_and_phases(folder: Path) -> None:
    trace = json.loads((folder / "trace.json").read_text())
    check_trace(trace)
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    kinds = {kind: [event for event in events if event["cat"] == kind] for kind in ("turn", "step", "phase")}
    assert len(kinds["turn"]) == ROUNDS * len(VARIANTS)
    assert len(kinds["step"]) == STEPS * len(VARIANTS)
    assert {event["name"] for event in kinds["turn"]} == set(VARIANTS)


def test_a_trace_has_a_track_per_rank_and_thread() -> None:
    ranks = [
        [Event("step", 7, 1000, 5000), Event("data", 7, 1000, 2000)],
        [Event("data", 9, 1500, 2500), Event("data", 8, 0, 1)],
    ]
    trace = chrome_trace(ranks, ["one", "two"])
    check_trace(trace)
    tracks = {(event["pid"], event["tid"]) for event in trace["traceEvents"] if event["ph"] == "X"}
    assert tracks == {(0, 7), (1, 8), (1, 9)}
    named = {event["pid"]: event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"}
    assert named == {0: "rank 0 on one", 1: "rank 1 on two"}


def check_trace(trace: dict[str, Any]) -> None:
    """The Trace Event Format's complete and metadata events; on each track they nest or follow, as viewers require."""
    assert set(trace) == {"displayTimeUnit", "traceEvents"}
    tracks: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["args"]
            continue
        assert event["ph"] == "X"
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    for events in tracks.values():
        open_ends: list[float] = []
        for event in events:
            end = event["ts"] + event["dur"]
            while open_ends and open_ends[-1] <= event["ts"] + 1e-3:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1] + 1e-3, f"{event['name']} is cut by what it lies in"
            open_ends.append(end)


def test_the_papers_way_finds_the_same_extremes() -> None:
    weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    tables = Tables(weight, torch.tensor([0, 5, 12]))
    expected = torch.stack([weight[:5].abs().max(), weight[5:].abs().max()])
    assert torch.equal(aminmax_scan(tables), expected)


def test_a_gpu_is_not_profiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--device", "cuda"]) == 2
    assert "leave out --device" in capsys.readouterr().err
