"""Warnings: one for each thing to mend, with what mends it; none for a run without fault."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dqrm_cpu.config import Config, preset_config
from dqrm_cpu.profile.durations import Summary
from dqrm_cpu.profile.phases import Phase
from dqrm_cpu.profile.span_file import RankSpans
from dqrm_cpu.profile.spans import SpanSummary
from dqrm_cpu.report.advice import warnings_of
from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.train.metrics import ClickMetrics
from dqrm_cpu.train.metrics_row import MetricsRow

STEPS = 100


def spans(rank: int = 0, step_ms: float = 10.0, median_ms: float | None = None, **phases_ms: float) -> RankSpans:
    """Every step alike; what is not named is MLP forward."""
    named = {Phase[name.upper()]: ms for name, ms in phases_ms.items()}
    named.setdefault(Phase.MLP_FORWARD, step_ms - sum(ms for phase, ms in named.items() if phase < Phase.EVALUATION))
    found = {phase: Summary(STEPS, ms, ms, ms, ms, ms * STEPS) for phase, ms in named.items()}
    step = Summary(STEPS, step_ms, median_ms or step_ms, step_ms, step_ms, step_ms * STEPS)
    return RankSpans(rank, 0, STEPS, 10**9, SpanSummary(step, found))


def run_files(
    *ranks: RankSpans,
    rows: tuple[MetricsRow, ...] = (),
    environment: Mapping[str, Any] | None = None,
    config: Config | None = None,
    result: Mapping[str, Any] | None = None,
) -> RunFiles:
    ended = {} if result is None else result
    return RunFiles("a", Path("a"), config or preset_config("demo"), rows, ranks, environment or {}, ended)


def evaluated(step: int, auc: float) -> MetricsRow:
    metrics = ClickMetrics(auc, 0.8, 0.4, 0.9, 1.0, 100)
    return MetricsRow(step, 1, "validation", 0.4, 1.0, 0.1, metrics)


def scanning(config: Config) -> Config:
    return replace(config, quant=replace(config.quant, scale_finder="scan"))


def places(*threads: int) -> dict[str, Any]:
    ranks = [{"rank": r, "host": "node1", "threads": count, "affinity": [0, 1]} for r, count in enumerate(threads)]
    return {"ranks": ranks}


def test_a_run_without_fault_has_no_warning() -> None:
    rows = (evaluated(10, 0.7), evaluated(20, 0.75))
    assert warnings_of(run_files(spans(), rows=rows, environment=places(2))) == []


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (run_files(spans(scale=4.1), config=scanning(preset_config("demo"))), ["41%", "--quant.scale-finder track"]),
        (run_files(spans(scale=4.1)), ["41%", "--quant.scale-period"]),
        (run_files(spans(data=3.0)), ["waiting for data takes 30%", "dqrm-cpu prepare"]),
        (run_files(spans(wire=4.0), spans(1, wire=4.0)), ["exchanging gradients takes 40%", "--comm.wire int8"]),
        (run_files(spans(1, wire=1.0), spans(2, wire=1.0), spans(3, step_ms=12.0)), ["rank 3 works 33% longer"]),
        (run_files(spans(median_ms=5.0)), ["steps are uneven", "--train.threads"]),
        (run_files(spans(mlp_forward=8.0)), ["20% of a step is outside every phase"]),
        (run_files(spans(evaluation=10.0)), ["evaluations and checkpoints take 50%", "--train.evaluate-every"]),
        (run_files(spans(), environment=places(2, 2)), ["4 threads share 2 cores on node1", "--train.threads 1"]),
        (run_files(spans(), rows=(evaluated(10, 0.8), evaluated(20, 0.7))), ["fell by 0.1000 after step 10"]),
        (run_files(), ["no spans were recorded"]),
    ],
)
def test_each_fault_has_its_mend(run: RunFiles, said: list[str]) -> None:
    (warning,) = warnings_of(run)
    assert warning.startswith("a: ")
    for words in said:
        assert words in warning


def test_clipping_names_the_table() -> None:
    row = MetricsRow(5, 1, "train", 0.4, 1.0, 0.1, scale_absmax=(1.0, 1.0), lookup_clip_rate=(0.0, 0.2))
    (warning,) = warnings_of(run_files(spans(), rows=(row,)))
    assert "20.0% of the values of table C2" in warning
    assert "--quant.scale-period" in warning


def test_a_run_that_did_not_finish_says_how_to_go_on() -> None:
    run = replace(run_files(spans()), result=None)
    assert "--run-dir a --resume auto" in warnings_of(run)[0]
