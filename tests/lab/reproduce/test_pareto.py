"""AUC against bytes, run on a tiny size: means of members, models from outside, tests over rows, what is left out."""

import dataclasses
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tiny_experiment import Watcher, job_context, request_in

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.lab.reproduce.experiments import definition
from dqrm_cpu.lab.reproduce.experiments.definition import Experiment, Outside
from dqrm_cpu.lab.reproduce.experiments.pareto import ENSEMBLES, INT4, PARETO, SINGLE, TunedModel
from dqrm_cpu.lab.reproduce.outcome import RunOutcome, RunResult
from dqrm_cpu.lab.reproduce.pareto.boosted_trees import Encoding, encoded_by_folds
from dqrm_cpu.lab.reproduce.pareto.front import front_rows
from dqrm_cpu.lab.reproduce.pareto.scores import Scores
from dqrm_cpu.lab.reproduce.plan import Job, PlannedExperiment, jobs_of, plan
from dqrm_cpu.lab.reproduce.results import write_tables
from dqrm_cpu.lab.reproduce.runner import run_jobs
from dqrm_cpu.train.ensemble import train_ensemble
from dqrm_cpu.train.run import RunRequest
from dqrm_cpu.train.state import Result

SHOWN = ("PTQ INT4", "INT4", "INT4, 2 models", "logistic regression")


def reduced(*rows: str, tried: int) -> Experiment:
    """The experiment with some of its rows, each of which tries so many variants at most."""
    kept = [
        dataclasses.replace(row, best_of=row.best_of[:tried]) for row in PARETO.variants if row.name in (SINGLE, *rows)
    ]
    names = {name for row in kept for name in row.best_of}
    return dataclasses.replace(PARETO, variants=(*kept, *(one for one in PARETO.variants if one.name in names)))


class Done(NamedTuple):
    """The finished experiment."""

    out: Path
    planned: PlannedExperiment
    results: dict[str, RunResult]

    def jobs(self, name: str) -> tuple[Job, ...]:
        """Returns the planned runs of a variant, one for each seed."""
        return next(cell.jobs for cell in self.planned.cells if cell.variant.name == name)

    def outcome(self, job: Job) -> RunOutcome:
        """Returns the outcome that a run wrote into its folder."""
        found = self.results[job.result_name]
        assert isinstance(found, RunOutcome)
        return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    out = tmp_path_factory.mktemp("pareto")
    planned = plan([reduced(*SHOWN, tried=1)], request_in(out, seeds=2))
    found = run_jobs(jobs_of(planned), job_context(out, Watcher()))
    assert isinstance(found, dict)
    return Done(out, planned[0], found)


def test_two_models_score_as_an_ensemble_of_two_does(done: Done, tmp_path: Path) -> None:
    job = done.jobs("INT4, 2 models, rate 0.01")[0]
    ensemble = dataclasses.replace(job.config, ensemble=2)
    trained = train_ensemble(ensemble, RunRequest(tmp_path / "two", False, {}, io.StringIO()), SingleTransport())
    assert isinstance(trained, Result)
    mine = done.outcome(job)
    assert mine.test_best == trained.test.best
    assert mine.validation_best == trained.validation.best
    assert trained.packed_files is not None
    files = [done.outcome(member) for member in job.members]
    assert sum(one.model_bytes for one in files) == trained.packed_files.dense


def test_bytes_are_those_of_files(done: Done) -> None:
    single = done.outcome(done.jobs("FP32, rate 0.005")[0])
    weights = single.fp32_bytes
    assert weights < single.written_bytes < weights + 10_000
    compressed = done.jobs("PTQ INT4, rate 0.01")[0]
    file = compressed.folder(done.out) / "packed.safetensors"
    assert done.outcome(compressed).written_bytes == file.stat().st_size
    members = [done.outcome(job) for job in done.jobs("INT4, 2 models, rate 0.01")[0].members]
    assert all(one.written_bytes == min(one.model_bytes, one.sparse_bytes) for one in members)
    assert done.outcome(done.jobs("INT4, 2 models, rate 0.01")[0]).written_bytes == sum(
        one.written_bytes for one in members
    )


def test_scores_are_those_of_the_chosen_checkpoint(done: Done) -> None:
    for name in ("FP32, rate 0.005", "PTQ INT4, rate 0.01", "INT4, rate 0.01", "logistic regression, tuned"):
        job = done.jobs(name)[1]
        scores, outcome = Scores.read(job.folder(done.out)), done.outcome(job)
        assert scores.test.metrics().auc == outcome.test_best.auc
        assert scores.validation.metrics().auc == outcome.validation_best.auc


def test_a_model_alone_is_the_first_of_two(done: Done) -> None:
    one, two = done.jobs("INT4, rate 0.01"), done.jobs("INT4, 2 models, rate 0.01")
    assert [job.key for job in one] == [job.members[0].key for job in two]


def test_no_two_seeds_share_a_member(done: Done) -> None:
    """Their rows may be the same: of a prepared data set."""
    members = [
        job.config.training_seed for of_seed in done.jobs("INT4, 2 models, rate 0.01") for job in of_seed.members
    ]
    assert members == [1, 2, 65, 66]


def test_weights_go_once_they_are_scored(done: Done) -> None:
    assert list((done.out / "runs").glob("*/checkpoints")) == []


def test_nothing_is_done_again(done: Done) -> None:
    watcher = Watcher()
    again = run_jobs(jobs_of([done.planned]), job_context(done.out, watcher))
    assert watcher.begun == []
    assert repr(again) == repr(done.results)


def test_the_table_has_a_row_of_each_and_p_of_seeds_and_rows(done: Done) -> None:
    rows = front_rows(done.planned, done.results, done.out)
    assert [row.variant.name for row in rows] == [SINGLE, *SHOWN]
    assert rows[0].difference is None
    for row in rows[1:]:
        assert row.difference is not None
        assert row.difference.p == max(row.difference.over_seeds.p, row.difference.p_rows)
        assert row.difference.corrected_p >= row.difference.p
    assert any(row.is_on_front for row in rows)


def test_what_is_written_names_front_and_budgets(done: Done) -> None:
    (made,) = write_tables([done.planned], done.results, done.out)
    assert "| INT4, 2 models |" in made.markdown()
    assert "| 200x | -0.0030 |" in made.markdown()
    assert {path.name for path in done.out.iterdir()} >= {"pareto.md", "pareto.csv", "pareto-within-budgets.csv"}


def test_scores_that_are_lost_are_named(done: Done, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"scores\.safetensors holds no scores"):
        Scores.read(tmp_path)
    (tmp_path / "scores.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match="holds no scores"):
        Scores.read(tmp_path)


def test_lightgbm_is_left_out_with_the_reason_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definition, "find_spec", lambda name: None)
    (planned,) = plan([reduced("LightGBM", "logistic regression", tried=1)], request_in(tmp_path))
    assert len(planned.left_out) == 1
    assert "LightGBM" in planned.left_out[0]
    assert "pip install 'dqrm-cpu[baselines]'" in planned.left_out[0]
    assert {job.outside for job in jobs_of([planned])} == {None, Outside.LOGISTIC}


def test_a_rows_own_click_is_not_in_its_encoding() -> None:
    random = np.random.default_rng(0)
    ids, labels = random.integers(0, 4, (2, 60)).astype(np.int32), random.integers(0, 2, 60).astype(np.float32)
    before = encoded_by_folds(ids, labels, (4, 4))
    labels[7] = 1 - labels[7]
    after = encoded_by_folds(ids, labels, (4, 4))
    assert np.array_equal(before[7::5][:1], after[7::5][:1])
    assert not np.array_equal(before, after)


def test_an_id_that_was_never_seen_has_the_rate_of_all() -> None:
    encoding = Encoding.of(np.array([[0, 0, 1]], np.int32), np.array([1, 0, 1], np.float32), (3,))
    rates = encoding.features(np.array([[0, 1, 2]], np.int32))[:, 0]
    assert rates[2] == pytest.approx(2 / 3)
    assert rates[0] < rates[2] < rates[1]


def test_a_tuned_model_is_a_row_for_each_count_and_number_of_models() -> None:
    norms = ({"train.weight_decay": 0.1}, {"train.weight_decay": 0.2})
    made = list(TunedModel("new", {"train.epochs": 2}, INT4, counts=(1, 5), members=(1, 2), tried=norms).variants())
    rows = [one for one in made if one.best_of]
    assert [row.name for row in rows] == ["new", "new, 2 models", "new, min-count 5", "new, min-count 5, 2 models"]
    assert [row.series for row in rows] == [INT4, ENSEMBLES] * 2
    assert rows[3].best_of == tuple(
        f"new, min-count 5, 2 models, rate {rate}, weight-decay {decay}"
        for decay in (0.1, 0.2)
        for rate in (0.01, 0.02)
    )
    last = made[-1]
    assert (last.members, last.settings["data.min_count"], last.settings["train.weight_decay"]) == (2, 5, 0.2)
    assert (last.settings["train.epochs"], last.settings["train.optimizer"]) == (2, "rowwise-adagrad")


def test_nobody_is_tuned_by_more_runs_than_fp32() -> None:
    with pytest.raises(AssertionError):
        TunedModel("greedy", {}, INT4, tried=({},) * 5)


@pytest.mark.slow
def test_lightgbm_fits_and_scores(tmp_path: Path) -> None:
    planned = plan([reduced("LightGBM", tried=1)], request_in(tmp_path))
    found = run_jobs([job for job in jobs_of(planned) if job.outside], job_context(tmp_path, Watcher()))
    assert isinstance(found, dict)
    (outcome,) = found.values()
    assert isinstance(outcome, RunOutcome)
    assert outcome.test_best.auc > 0.5
    assert outcome.written_bytes > 1000
    assert math.isnan(outcome.ms_per_step)
