"""Tests of what `bench scaling` measures, computes and writes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dqrm_cpu.base.hardware import fingerprint
from dqrm_cpu.cli.main import main
from dqrm_cpu.errors import DeviceError
from dqrm_cpu.lab.bench.harness.benchmark import RunEnvironment
from dqrm_cpu.lab.bench.harness.result import CaseResult, ContestantResult, GroupResult, Timing
from dqrm_cpu.lab.bench.harness.runner import TurnPlan
from dqrm_cpu.lab.scaling.bound_process import BoundTask
from dqrm_cpu.lab.scaling.core_bindings import CoreBinding
from dqrm_cpu.lab.scaling.scaling_benchmark import contestant_names, run_bound, with_summaries
from dqrm_cpu.lab.scaling.scaling_cases import (
    MLPERF,
    PUBLISHED_GFLOPS_PER_CORE,
    PUBLISHED_SAMPLES_PER_S,
    SCALING_CASES,
    flops_per_sample,
    scaling_case,
)
from dqrm_cpu.lab.scaling.scaling_page import write_scaling_page

BINDINGS = (CoreBinding("1_core", (0,), 1), CoreBinding("4_cores_2_sockets", (0, 1, 2, 3), 2))


def two_bindings() -> CaseResult:
    """A case of 100 samples and 1e6 operations each; four cores take a third of the time of one."""
    groups = []
    for binding, seconds in zip(BINDINGS, (0.3, 0.1), strict=True):
        entries = [
            ContestantResult(f"{kind}_{binding.name}", "", Timing((seconds / (2 if "floor" in kind else 1),), 1))
            for kind in contestant_names()
        ]
        groups.append(GroupResult(binding.name, entries[-1].name, tuple(entries), {}))
    facts = {"batch_size": 100, "flops_per_sample": 1_000_000}
    return with_summaries(CaseResult(MLPERF, "made up", facts, tuple(groups)), BINDINGS)


def environment() -> RunEnvironment:
    return RunEnvironment("2026-01-01", True, TurnPlan(1), 2, (0.0, 0.0, 0.0), fingerprint())


def test_rates_of_cores_add_up() -> None:
    found = two_bindings().summaries
    assert found["samples_per_s"]["ours_bf16_4_cores_2_sockets"] == pytest.approx(1000)
    assert found["samples_per_s_per_core"]["ours_bf16_4_cores_2_sockets"] == pytest.approx(250)
    assert found["gflops_per_core"]["ours_bf16_4_cores_2_sockets"] == pytest.approx(0.25)
    assert found["efficiency"]["ours_bf16_4_cores_2_sockets"] == pytest.approx(0.75)
    assert found["efficiency"]["floor_fp32_1_core"] == 1


def test_operations_are_those_of_the_published_run() -> None:
    flops = flops_per_sample(SCALING_CASES[MLPERF]().config)
    assert flops == 6 * (13 * 512 + 512 * 256 + 256 * 128 + 479 * 1024 + 1024 * 1024 + 1024 * 512 + 512 * 256 + 256) - (
        2 * 13 * 512
    )
    # Two sockets of 56 cores.
    assert PUBLISHED_SAMPLES_PER_S * flops / 112 == pytest.approx(PUBLISHED_GFLOPS_PER_CORE * 1e9, rel=0.01)


def test_tables_are_cut_to_what_memory_holds() -> None:
    limit = 3_000_000_000
    case = scaling_case(MLPERF, False, limit)
    assert 0.99 * limit < case.table_bytes <= limit
    assert scaling_case("kaggle_2048", False, limit) == SCALING_CASES["kaggle_2048"]()


def test_the_page_stands_by_itself(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_scaling_page([two_bindings()], BINDINGS, environment(), page)
    text = page.read_text()
    assert "4 cores 2 sockets" in text
    assert "<td>75%</td><td>2.00</td>" in text
    assert "980,000 samples/s on two sockets" in text


@pytest.mark.long
def test_a_process_that_fails_says_why() -> None:
    task = BoundTask("no_such_case", True, 1, 1, 0.001, 1)
    with pytest.raises(DeviceError, match=r"no_such_case on 1_core ended with status 1:[\s\S]*KeyError"):
        run_bound(task, replace(BINDINGS[0], cpus=(fingerprint().affinity[0],)))


def test_other_benchmarks_make_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--page", str(tmp_path / "p.html")]) == 2
    assert "bench step makes no page" in capsys.readouterr().err


@pytest.mark.long
def test_one_command_measures_each_number_of_cores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "page.html"
    options = ["--quick", "--rounds", "1", "--threads", "2", "--cases", MLPERF]
    assert main(["bench", "scaling", *options, "--json", str(figures), "--page", str(page)]) == 0
    document = json.loads(figures.read_text())
    groups = document["cases"][MLPERF]["groups"]
    assert next(iter(groups)) == "1_core"
    if len(groups) > 1 and not groups["1_core"]["absent"]:
        over = document["ratios"]["over_floor"][MLPERF]["2_cores_bf16"]
        assert over["numerator"]["name"] == "ours_bf16_2_cores"
        assert document["efficiency"][MLPERF]["ours_bf16_1_core"] == 1
    assert MLPERF in page.read_text()
    assert "1_core" in capsys.readouterr().out
