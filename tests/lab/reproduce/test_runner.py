"""Runs are done once, shared, resumed, and rest on what decides their figures."""

import dataclasses
import math
import os
import signal
import threading
from pathlib import Path

import pytest
from tiny_experiment import EXPERIMENT, FP32, TINY, Watcher, job_context, request_in

from dqrm_cpu.errors import CommError
from dqrm_cpu.lab.reproduce.experiments.definition import Family, Variant
from dqrm_cpu.lab.reproduce.outcome import RunFailure, RunOutcome, RunResult
from dqrm_cpu.lab.reproduce.plan import PlannedExperiment, configuration, jobs_of, plan, run_key
from dqrm_cpu.lab.reproduce.runner import Stopped, run_jobs
from dqrm_cpu.lab.reproduce.table import comma_separated, markdown, table_of
from dqrm_cpu.train.run_place import checkpoints_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PlannedExperiment, dict[str, RunResult]]:
    """The tiny experiment with two seeds."""
    out = tmp_path_factory.mktemp("tiny")
    planned = plan([EXPERIMENT], request_in(out, seeds=2))
    found = run_jobs(jobs_of(planned), job_context(out, Watcher()))
    assert not isinstance(found, Stopped)
    return out, planned[0], found


def test_compressed_variants_share_the_run_that_they_start_from(
    done: tuple[Path, PlannedExperiment, dict[str, RunResult]],
) -> None:
    out, planned, found = done
    folders = {path.name for path in (out / "runs").iterdir()}
    assert len(folders) == len(found) == 2 * 4
    assert len({job.key for cell in planned.cells for job in cell.jobs}) == 2 * 2


def test_nothing_is_done_twice(done: tuple[Path, PlannedExperiment, dict[str, RunResult]]) -> None:
    out, planned, found = done
    watcher = Watcher()
    again = run_jobs(jobs_of([planned]), job_context(out, watcher))
    assert repr(again) == repr(found)  # NaN differs from itself
    assert watcher.begun == []


def test_more_seeds_only_add_theirs(done: tuple[Path, PlannedExperiment, dict[str, RunResult]]) -> None:
    out, _, _ = done
    watcher = Watcher()
    one = dataclasses.replace(EXPERIMENT, variants=(FP32,))
    run_jobs(jobs_of(plan([one], request_in(out, seeds=3))), job_context(out, watcher))
    assert watcher.begun == ["FP32 3"]


def test_only_a_baseline_keeps_its_weights(done: tuple[Path, PlannedExperiment, dict[str, RunResult]]) -> None:
    out, planned, _ = done
    kept = {cell.variant.name: checkpoints_folder(cell.jobs[0].folder(out)).exists() for cell in planned.cells}
    assert kept == {"FP32": True, "PTQ": False, "row-wise": False, "DQRM": False}


def test_outcomes_read_back_as_they_were_written(done: tuple[Path, PlannedExperiment, dict[str, RunResult]]) -> None:
    out, planned, found = done
    job = planned.cells[-1].jobs[0]
    assert RunOutcome.read(job.folder(out)) == found[job.result_name]


def test_a_damaged_outcome_counts_as_not_done(tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text('{"best_step": 1}')
    assert RunOutcome.read(tmp_path) is None


def test_epochs_are_counted_and_losses_known(done: tuple[Path, PlannedExperiment, dict[str, RunResult]]) -> None:
    _, planned, found = done
    outcome = found[planned.cells[-1].jobs[0].result_name]
    assert isinstance(outcome, RunOutcome)
    assert [(epoch.epoch, epoch.step) for epoch in outcome.epochs] == [(1, 20), (2, 40)]
    assert all(math.isfinite(epoch.train_loss) for epoch in outcome.epochs)
    assert 0 < outcome.best_epoch.live_rows <= 1


def test_sizes_are_those_of_the_files_that_were_written(
    done: tuple[Path, PlannedExperiment, dict[str, RunResult]],
) -> None:
    out, planned, found = done
    folders = {cell.variant.name: cell.jobs[0].folder(out) for cell in planned.cells}
    sizes = {cell.variant.name: found[cell.jobs[0].result_name].model_bytes for cell in planned.cells}  # type: ignore[union-attr]
    assert sizes["PTQ"] == (folders["PTQ"] / "packed.safetensors").stat().st_size
    assert sizes["row-wise"] == (folders["row-wise"] / "packed.safetensors").stat().st_size
    assert sizes["DQRM"] == (folders["DQRM"] / "packed" / "dense.safetensors").stat().st_size
    # The header names the method, a character longer in one of them, and is filled up to eight bytes.
    assert sizes["DQRM"] == pytest.approx(sizes["PTQ"], abs=8)
    assert sizes["PTQ"] < sizes["row-wise"] < sizes["FP32"]


def test_an_interrupted_run_goes_on_to_the_same_figures(
    done: tuple[Path, PlannedExperiment, dict[str, RunResult]], tmp_path: Path
) -> None:
    _, _, found = done
    jobs = jobs_of(plan([EXPERIMENT], request_in(tmp_path)))[-1:]

    class Impatient(Watcher):
        """Asks to stop as soon as training has evaluated once."""

        def job_printed(self, line: str) -> None:
            if "validation" in line and not self.lines:
                signal.raise_signal(signal.SIGINT)
                super().job_printed(line)

    assert threading.current_thread() is threading.main_thread()
    stopped = run_jobs(jobs, job_context(tmp_path, Impatient()))
    assert stopped == Stopped("SIGINT")
    resumed = run_jobs(jobs, job_context(tmp_path, Watcher()))
    assert isinstance(resumed, dict)
    mine, theirs = resumed[jobs[0].result_name], found[jobs[0].result_name]
    assert isinstance(mine, RunOutcome)
    assert isinstance(theirs, RunOutcome)
    assert timeless(mine) == timeless(theirs)


def timeless(outcome: RunOutcome) -> RunOutcome:
    """Returns the result without what is measured in seconds."""
    return dataclasses.replace(outcome, ms_per_step=0.0, wall_s=0.0, phases_ms={})


def test_a_diverging_run_is_reported_and_not_tried_again(tmp_path: Path) -> None:
    wild = Variant("wild", {"quant.method": "none", "train.learning_rate": 1e30})
    experiment = dataclasses.replace(EXPERIMENT, variants=(FP32, wild))
    planned = plan([experiment], request_in(tmp_path))
    found = run_jobs(jobs_of(planned), job_context(tmp_path, Watcher()))
    assert isinstance(found, dict)
    assert isinstance(found[planned[0].cells[1].jobs[0].result_name], RunFailure)
    assert "wild (1 of 1 seed diverged)" in markdown(table_of(planned[0], found))
    watcher = Watcher()
    run_jobs(jobs_of(planned), job_context(tmp_path, watcher))
    assert watcher.begun == []


def test_what_decides_figures_decides_the_name_of_a_run(tmp_path: Path) -> None:
    request = request_in(tmp_path)
    config = configuration(request, None, Family.KAGGLE, FP32, 1)
    threads = dataclasses.replace(config, train=dataclasses.replace(config.train, threads=1))
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, source=os.devnull))
    assert run_key(config, "x") == run_key(threads, "x") == run_key(moved, "x")
    names = {run_key(config, "x"), run_key(config, "y"), run_key(dataclasses.replace(config, seed=2), "x")}
    names.add(run_key(config, "x", processes=2))
    assert len(names) == 4


def test_tables_hold_mean_deviation_and_difference(done: tuple[Path, PlannedExperiment, dict[str, RunResult]]) -> None:
    _, planned, found = done
    made = table_of(planned, found)
    assert [row[0] for row in made.rows] == ["FP32", "PTQ", "row-wise", "DQRM"]
    aucs = [found[job.result_name].test_best.auc for job in planned.cells[-1].jobs]  # type: ignore[union-attr]
    place = made.head.index("AUC")
    assert made.rows[-1][place].startswith(f"{sum(aucs) / 2:.4f} ± ")
    assert made.rows[0][-1] == "-"
    assert "(p " in made.rows[-1][-1]
    assert comma_separated(made).count("\n") == 5


def test_one_epoch_of_the_paper_maps_to_the_scale() -> None:
    assert (TINY.epochs_for(5), TINY.epochs_for(7)) == (2, 7)


@pytest.mark.usefixtures("forked_processes")
def test_real_ranks_count_what_they_send(tmp_path: Path) -> None:
    two = Variant("two", {"quant.method": "dqrm", "comm.wire": "int8"}, processes=2)
    planned = plan([dataclasses.replace(EXPERIMENT, variants=(two,), baseline="two")], request_in(tmp_path))
    found = run_jobs(jobs_of(planned), job_context(tmp_path, Watcher()))
    assert isinstance(found, dict)
    (outcome,) = found.values()
    assert isinstance(outcome, RunOutcome)
    assert outcome.bytes_sent > 0
    assert outcome.phases_ms["wire"] > 0


@pytest.mark.usefixtures("forked_processes")
def test_a_rank_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    wild = Variant("two", {"quant.method": "none", "train.learning_rate": 1e30}, processes=2)
    planned = plan([dataclasses.replace(EXPERIMENT, variants=(wild,), baseline="two")], request_in(tmp_path))
    with pytest.raises(CommError, match=r"(?s)of 2 ended with 1: .*learning-rate"):
        run_jobs(jobs_of(planned), job_context(tmp_path, Watcher()))
