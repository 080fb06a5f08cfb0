"""Profiles: every variant, phases that add up, the page, PyTorch's operators."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dqrm_cpu.cli.main import main
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.lab.profiler.profiled_variant import aminmax_scan
from dqrm_cpu.timing.phases import Phase
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


def test_bandwidths_count_what_must_be_moved(folder: Path) -> None:
    document = json.loads((folder / "profile.json").read_text())
    scanned = {one["phase"]: one for one in document["variants"]["QAT, our scan"]["bandwidth"]}
    row_bytes, lookups = 8 * 4, 3 * 2000 / 16  # an epoch has 16 batches, the last a smaller one
    assert set(scanned) == {"scale", "gather_quantize", "embedding_update"}
    assert scanned["scale"]["bytes"] == (400 + 30 + 2000) * row_bytes
    assert scanned["gather_quantize"]["bytes"] == lookups * row_bytes
    changed_rows = (scanned["embedding_update"]["bytes"] / row_bytes - lookups) / 2
    assert 3 < changed_rows <= lookups
    assert all(one["bytes_per_second"] > 0 and one["floor_bytes_per_second"] > 0 for one in scanned.values())
    tracked = {one["phase"] for one in document["variants"]["QAT, tracked"]["bandwidth"]}
    assert tracked == {"gather_quantize", "embedding_update"}


def test_the_page_and_its_figures_are_there(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    for key in ("summary", "warnings", "phases", "ranks", "bytes", "bandwidth", "environment"):
        assert f'<section id="{key}">' in text
    assert all(name in text for name in VARIANTS)
    assert (folder / "figures" / "phases.png").read_bytes().startswith(b"\x89PNG")


def test_torch_profiler_saw_our_phases(folder: Path) -> None:
    names = {event.get("name") for event in json.loads((folder / "torch-rank0.json").read_text())["traceEvents"]}
    assert {"step", Phase.MLP_FORWARD.label, Phase.GATHER_QUANTIZE.label} <= names


def test_the_papers_way_finds_the_same_extremes() -> None:
    weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    tables = Tables(weight, torch.tensor([0, 5, 12]))
    expected = torch.stack([weight[:5].abs().max(), weight[5:].abs().max()])
    assert torch.equal(aminmax_scan(tables), expected)


def test_phases_are_ranges_for_vtune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    itt: Any = torch.profiler.itt
    push, pop, marks = itt.range_push, itt.range_pop, []

    def pushed(label: str) -> None:
        marks.append(label)
        push(label)

    def popped() -> None:
        marks.append("")
        pop()

    monkeypatch.setattr(itt, "range_push", pushed)
    monkeypatch.setattr(itt, "range_pop", popped)
    assert main(["profile", "--itt", "--steps", "2", "--rounds", "1", "--out", str(tmp_path), *SMALL]) == 0
    assert {"this configuration", "step", Phase.MLP_FORWARD.label, Phase.EMBEDDING_UPDATE.label} <= set(marks)
    assert marks.count("") == len(marks) / 2


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["profile", "--out", str(tmp_path / "file" / "profile"), *SMALL]) == 2
    stderr = capsys.readouterr().err
    assert "give another --out" in stderr
    assert "warming up" not in stderr


@pytest.mark.slow
def test_an_interrupted_profile_says_so_and_leaves_no_figures(tmp_path: Path) -> None:
    plan = ["--steps", "1000000", "--rounds", "2", "--warmup", "0", "--out", str(tmp_path / "profile")]
    command = [sys.executable, "-m", "dqrm_cpu", "profile", *plan, *SMALL]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("round 1"))
        process.send_signal(signal.SIGINT)
        stderr = process.stderr.read()
        assert process.wait() == 130
    assert stderr == "dqrm-cpu: interrupted\n"
    assert list((tmp_path / "profile").iterdir()) == []


def heed_interrupts() -> None:
    """Whoever starts the tests in the background of a shell lets them ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_gpu_is_not_profiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--device", "cuda"]) == 2
    assert "leave out --device" in capsys.readouterr().err
