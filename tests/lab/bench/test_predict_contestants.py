"""Who scores raw rows in `bench data --cases predict_1m`: all to the same probabilities, in the order of the rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dqrm_cpu.errors import DataError
from dqrm_cpu.lab.bench.data.data_benchmark import PREDICT_GROUP
from dqrm_cpu.lab.bench.data.data_process import DataTask, run_task
from dqrm_cpu.lab.bench.data.predict_case import require_same_predictions, steady_figures
from dqrm_cpu.lab.bench.data.predict_works import DATA, EXPORTED, RAW, RUN
from preparing import criteo_text
from scoring import SMALL, succeed

ROWS = 400


def test_all_give_the_same_probabilities(tmp_path: Path) -> None:
    raw, data, run = tmp_path / RAW, tmp_path / DATA, tmp_path / RUN
    raw.write_text(criteo_text(ROWS, seed=5))
    succeed("prepare", raw, "--format", "kaggle", "--out", data)
    succeed("train", "--data", data, "--run-dir", run, *SMALL)
    succeed("export", run, "--out", tmp_path / EXPORTED)
    figures = {
        one.name: run_task(DataTask(one.kind, str(raw), str(tmp_path / one.name), 1))
        for one in PREDICT_GROUP.contestants
    }
    require_same_predictions(ROWS, figures)
    found = [np.loadtxt(tmp_path / f"{name}.csv", skiprows=1) for name in figures]
    assert np.ptp(found[0]) > 0.01
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=2e-6)
    of_file = figures["ours_file"]
    steady = steady_figures({"ours_file": [of_file, of_file]})["ours_file_steady"]
    assert [one.seconds for one in steady] == [of_file.contents.steady_s] * 2
    assert 0 < of_file.contents.steady_s <= of_file.seconds
    fewer = replace(of_file, contents=replace(of_file.contents, rows=ROWS - 1))
    with pytest.raises(DataError, match="ours_file scored 399 of 400 rows"):
        require_same_predictions(ROWS, {**figures, "ours_file": fewer})
    other_sum = replace(of_file, contents=replace(of_file.contents, dense_sum=of_file.contents.dense_sum * 1.001))
    with pytest.raises(DataError, match="ours_run gives other probabilities"):
        require_same_predictions(ROWS, {**figures, "ours_file": other_sum})
