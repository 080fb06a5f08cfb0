"""Long runs: curves of few points that say the same, pages that stay small."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.report.build import build_report
from dqrm_cpu.report.curves import thinned
from report_runs import train_small

MOST_BYTES = 2_000_000
KAGGLE_TABLES = 26


@given(st.integers(1, 500), st.integers(1, 60))
def test_a_thinned_curve_has_few_points_and_the_same_mean_and_end(count: int, most: int) -> None:
    steps = np.arange(count) * 100
    values = np.random.default_rng(count).normal(size=(count, 2))
    at, kept = thinned(steps, values, most)
    assert at.shape == kept.shape[:1]
    assert at.size <= most
    assert at[-1] == steps[-1]
    assert np.all(np.diff(at) > 0)
    weights = np.diff(np.concatenate([[-100], at]))
    assert np.average(kept, axis=0, weights=weights) == pytest.approx(values.mean(axis=0))


def test_a_short_curve_stays_as_it_is() -> None:
    at, kept = thinned([1, 2, 3], [0.5, 0.25, 0.125], 3)
    assert (at.tolist(), kept.tolist()) == ([1, 2, 3], [0.5, 0.25, 0.125])


def test_pages_of_long_runs_stay_under_two_megabytes(tmp_path: Path) -> None:
    """Three runs of 1.5 million steps over 26 tables, a row for every 500 of them."""
    run = train_small(tmp_path / "run0")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["phase"] == "train")
    chance = random.Random(1)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(500, 1_500_001, 500):
            figures = [chance.uniform(0.01, 1) for _ in range(KAGGLE_TABLES)]
            changes = {"step": step, "loss": chance.random(), "scale_absmax": figures, "lookup_clip_rate": figures}
            file.write(json.dumps({**row, **changes}) + "\n")
    runs = [run, *(Path(shutil.copytree(run, tmp_path / f"run{number}")) for number in (1, 2))]
    build_report(runs, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < MOST_BYTES
