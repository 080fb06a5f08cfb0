"""outcome.json: comes back as it was written; of anything else the run is not done."""

import json
import math
import os
from pathlib import Path

import pytest

from dqrm_cpu.errors import ConfigError
from dqrm_cpu.lab.reproduce.histograms import read_histograms
from dqrm_cpu.lab.reproduce.outcome import Epoch, RunOutcome
from dqrm_cpu.metrics.click import ClickMetrics

METRICS = ClickMetrics(0.7, 0.8, 0.5, math.nan, 1.0, 500)
OUTCOME = RunOutcome(
    *(METRICS, METRICS, METRICS, METRICS),
    best_step=7,
    steps=9,
    ms_per_step=math.nan,
    model_bytes=100,
    fp32_bytes=800,
    sparse_bytes=90,
    bytes_sent=0.0,
    phases_ms={"data": 0.25},
    epochs=(Epoch(1, 7, 0.8, 0.7, 0.5, 0.4, math.nan),),
    wall_s=1.5,
)
HOSTILE = {
    "deep": b"[" * 100_000,
    "digits": b'{"best_step": ' + b"9" * 6_000 + b"}",
    "another version's": b'{"best_step": 7}',
    "null": b"null",
    "a text": b'"done"',
    "no JSON": b"\xff",
}


def test_an_outcome_comes_back(tmp_path: Path) -> None:
    OUTCOME.write(tmp_path)
    assert repr(RunOutcome.read(tmp_path)) == repr(OUTCOME).replace("sparse_bytes=90,", "sparse_bytes=90.0,")


def test_a_newer_version_may_add_figures(tmp_path: Path) -> None:
    OUTCOME.write(tmp_path)
    path = tmp_path / "outcome.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert RunOutcome.read(tmp_path) is not None


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_outcome_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "outcome.json").write_bytes(content)
    assert RunOutcome.read(tmp_path) is None


def test_a_fifo_is_no_outcome(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "outcome.json")
    assert RunOutcome.read(tmp_path) is None


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_are_no_histograms_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "histograms.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"histograms\.json holds no histograms"):
        read_histograms(tmp_path)
