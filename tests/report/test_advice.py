"""Warnings: one for each thing to mend, with what mends it; none for a run without fault."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dqrm_cpu.config import Config, preset_config
from dqrm_cpu.config.load import load_config
from dqrm_cpu.config.schema import SETTINGS, flatten
from dqrm_cpu.config.setting import value_text
from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.report.advice import warnings_of
from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.timing.durations import Summary
from dqrm_cpu.timing.phases import Phase
from dqrm_cpu.timing.span_file import RankSpans
from dqrm_cpu.timing.spans import SpanSummary
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


def evaluated(step: int, auc: float, log_loss: float = 0.4) -> MetricsRow:
    metrics = ClickMetrics(auc, 0.8, log_loss, 0.9, 1.0, 100)
    return MetricsRow(step, 1, "validation", log_loss, 1.0, 0.1, metrics)


def scanning(config: Config) -> Config:
    return replace(config, quant=replace(config.quant, scale_finder="scan"))


def places(*threads: int) -> dict[str, Any]:
    ranks = [{"rank": r, "host": "node1", "threads": count, "affinity": [0, 1]} for r, count in enumerate(threads)]
    return {"ranks": ranks}


def test_a_run_without_fault_has_no_warning() -> None:
    rows = (evaluated(10, 0.7), evaluated(20, 0.75))
    assert warnings_of(run_files(spans(), rows=rows, environment=places(2))) == []


@pytest.mark.parametrize(
    ("run", "words_shown"),
    [
        (run_files(spans(scale=4.1), config=scanning(preset_config("demo"))), ["41%", "--quant.scale-finder track"]),
        (run_files(spans(scale=4.1)), ["41%", "--quant.scale-period"]),
        (run_files(spans(data=3.0)), ["waiting for data takes 30%", "dqrm-cpu prepare"]),
        (run_files(spans(wire=4.0), spans(1, wire=4.0)), ["exchanging gradients takes 40%", "--comm.wire int8"]),
        (run_files(spans(1, wire=1.0), spans(2, wire=1.0), spans(3, step_ms=12.0)), ["rank 3 works 33% longer"]),
        (run_files(spans(median_ms=5.0)), ["steps are uneven", "--train.threads"]),
        (run_files(spans(mlp_forward=8.0)), ["20% of a step is outside every phase"]),
        (
            run_files(spans(evaluation=10.0), rows=(evaluated(10, 0.7), evaluated(20, 0.75))),
            ["evaluations and checkpoints take 50%", "--train.evaluate-every", "--data.validation-rows"],
        ),
        (run_files(spans(evaluation=10.0)), ["50% of its time: evaluate on fewer rows"]),
        (run_files(spans(checkpoint=10.0)), ["50% of its time: save less often (--train.checkpoint-every)."]),
        (
            run_files(spans(wire=4.0), spans(1, wire=4.0), environment=places(1, 1)),
            ["try fewer ranks with more threads each, since all are on one host, or a larger --train.batch-size"],
        ),
        (run_files(spans(), environment=places(2, 2)), ["4 threads share 2 cores on node1", "--train.threads 1"]),
        (run_files(spans(), rows=(evaluated(10, 0.8), evaluated(20, 0.7))), ["fell by 0.1000 after step 10"]),
        (run_files(), ["no spans were recorded"]),
    ],
)
def test_each_fault_has_its_mend(run: RunFiles, words_shown: list[str]) -> None:
    (warning,) = warnings_of(run)
    assert warning.startswith("a: ")
    for words in words_shown:
        assert words in warning


CLIPPED = MetricsRow(5, 1, "train", 0.4, 1.0, 0.1, scale_absmax=(1.0, 1.0), lookup_clip_rate=(0.0, 0.2))


def quantized(**quant: Any) -> Config:
    config = preset_config("demo")
    return replace(config, quant=replace(config.quant, **quant))


def test_clipping_names_the_table() -> None:
    (warning,) = warnings_of(run_files(spans(), rows=(CLIPPED,), config=quantized(scale_period=200)))
    assert "20.0% of the values of table C2" in warning
    assert "--quant.scale-period (1 costs next to nothing)" in warning
    (warning,) = warnings_of(
        run_files(spans(), rows=(CLIPPED,), config=quantized(scale_period=200, scale_finder="scan"))
    )
    assert "(1 costs next to nothing with --quant.scale-finder track)" in warning


def test_clipping_by_a_narrow_step_is_not_blamed_on_the_period() -> None:
    (warning,) = warnings_of(run_files(spans(), rows=(CLIPPED,), config=quantized(step_width=(0.5,))))
    assert "since --quant.step-width is 0.5" in warning
    assert "period" not in warning


@pytest.mark.parametrize("method", ["lsq", "pact"])
def test_a_learned_scale_that_clips_calls_for_nothing(method: str) -> None:
    assert warnings_of(run_files(spans(), rows=(CLIPPED,), config=quantized(method=method))) == []


def test_nobody_is_told_to_set_what_is_set() -> None:
    """One thread a rank cannot become fewer, patience that is set need not be, integers are on the wire already."""
    (warning,) = warnings_of(run_files(spans(), environment=places(1, 1, 1)))
    assert "3 threads share 2 cores on node1: start fewer ranks there." in warning
    (warning,) = warnings_of(run_files(spans(), environment=places(8)))
    assert "8 threads share 2 cores on node1: set --train.threads 2." in warning
    fallen = tuple(evaluated(step, auc) for step, auc in ((10, 0.8), (20, 0.7), (30, 0.7), (40, 0.7)))
    (warning,) = warnings_of(run_files(spans(), rows=fallen))
    assert "--train.early-stop-patience 2" in warning
    patient = preset_config("demo")
    patient = replace(patient, train=replace(patient.train, early_stop_patience=3))
    (warning,) = warnings_of(run_files(spans(), rows=fallen, config=patient))
    assert "the best checkpoint is kept." in warning
    (warning,) = warnings_of(run_files(spans(), rows=fallen[:2]))  # two evaluations of patience would save nothing
    assert "the best checkpoint is kept." in warning
    probable = replace(patient, train=replace(patient.train, best_by="log-loss"))
    risen = tuple(evaluated(step, auc, loss) for step, auc, loss in ((10, 0.7, 0.40), (20, 0.8, 0.45)))
    (warning,) = warnings_of(run_files(spans(), rows=risen, config=probable))
    assert "validation log loss rose by 0.0500 after step 10: the best checkpoint is kept." in warning
    coded = replace(patient, comm=replace(patient.comm, wire="int8", mlp_gradients="int8"))
    (warning,) = warnings_of(run_files(spans(wire=4.0), spans(1, wire=4.0), config=coded))
    assert "try a larger --train.batch-size." in warning


def test_threads_of_a_rank_are_held_against_its_own_cores() -> None:
    ranks = [
        {"rank": 0, "host": "node1", "threads": 4, "affinity": [0, 1]},
        {"rank": 1, "host": "node1", "threads": 2, "affinity": [2, 3, 4, 5, 6, 7]},
    ]
    (warning,) = warnings_of(run_files(spans(), environment={"ranks": ranks}))
    assert "a rank on node1 has 4 threads and may use 2 of its cores: set --train.threads 2" in warning


OPTION = re.compile(r"(--[a-z]+\.[a-z-]+) ([a-z0-9]+)\b")


@pytest.mark.parametrize("method", ["dqrm", "hawq", "none"])
def test_options_of_an_advice_are_accepted(method: str) -> None:
    """By the configuration of the run that it is given to."""
    config = quantized(method=method, scale_period=200, scale_finder="scan")
    slow = [spans(rank, scale=3.0, wire=4.0) for rank in (0, 1)]
    fallen = tuple(evaluated(step, auc) for step, auc in ((10, 0.8), (20, 0.7), (30, 0.7), (40, 0.7)))
    found = warnings_of(run_files(*slow, rows=(CLIPPED, *fallen), config=config, environment={"ranks": []}))
    options = [pair for text in found for pair in OPTION.findall(text) if pair[1] not in ("costs",)]
    assert ("--comm.wire", "int8") in options
    base = {key: value_text(value) for key, value in flatten(config).items() if key != "preset"}
    known = {entry.option: key for key, entry in SETTINGS.items()}
    load_config("demo", None, base | {known[option]: value for option, value in options})


def test_a_run_that_did_not_finish_says_how_to_go_on() -> None:
    run = replace(run_files(spans()), result=None, path=Path("my runs/a"))
    (warning,) = warnings_of(run)
    assert "unless it still runs, go on by dqrm-cpu train --run-dir 'my runs/a' --resume auto." in warning
    run = replace(run_files(spans(), environment=places(1, 1)), result=None)
    assert warnings_of(run)[0].endswith("--resume auto, with 2 ranks as before.")
