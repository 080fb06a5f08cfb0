"""`dqrm-cpu bench` from the command line to its JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dqrm_cpu.cli.main import main
from dqrm_cpu.lab.bench.harness.contestant import AbsentError
from dqrm_cpu.lab.bench.step import fbgemm
from dqrm_cpu.lab.bench.step.fbgemm import load_fbgemm


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def bench(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "figures.json"
    options = ("--quick", "--rounds", "1", "--cases", "kaggle_128", "--json", str(path))
    assert main(["bench", *arguments, *options]) == 0
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_step_writes_what_stands_against_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = bench(tmp_path, "step")
    found = document["ratios"]["int4_exact_over_torch_fp32"]["kaggle_128"]["fp32"]
    assert found["numerator"]["name"] == "ours_int4_exact"
    assert found["denominator"]["name"] == "torch_fp32"
    assert found["ratio"] == pytest.approx(found["numerator"]["median_s"] / found["denominator"]["median_s"])
    assert found["by_round"] == pytest.approx(found["ratio"])  # of one round
    assert (document["quick"], document["rounds"]) == (True, 1)
    assert document["machine"]["cpu_model"]
    assert document["versions"]["torch"]
    table = capsys.readouterr().out
    assert "ours_int4_exact " in table
    assert "torch_qat_scan_200" in table


def test_kernels_writes_a_group_per_kernel(tmp_path: Path) -> None:
    document = bench(tmp_path, "kernels")
    groups = document["cases"]["kaggle_128"]["groups"]
    assert list(groups) == ["lookup", "sgd", "adagrad", "interaction", "scan", "embedding"]
    cost = document["ratios"]["tracker_cost_over_sgd"]["kaggle_128"]["fp32"]
    assert cost["minus"]["name"] == cost["denominator"]["name"] == "ours_sgd"


def test_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--cases", "kagle_128"]) == 2
    assert "--cases kagle_128: no such case" in capsys.readouterr().err


def test_json_without_its_folder_fails_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--json", str(tmp_path / "none" / "f.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_missing_library_announces_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fbgemm, "PACKAGE", "fbgemm-that-nobody-installed")
    with pytest.raises(AbsentError, match=r"not installed; pip install 'dqrm-cpu\[bench\]'"):
        load_fbgemm()
