"""The best of several variants: chosen on validation, seed by seed."""

import dataclasses
from pathlib import Path

import pytest
from tiny_experiment import EXPERIMENT, FP32, Watcher, job_context, request_in

from dqrm_cpu.lab.reproduce.experiments.definition import Variant
from dqrm_cpu.lab.reproduce.experiments.extras import TUNING
from dqrm_cpu.lab.reproduce.outcome import RunFailure, RunOutcome, RunResult, choices
from dqrm_cpu.lab.reproduce.plan import PlannedExperiment, jobs_of, plan
from dqrm_cpu.lab.reproduce.runner import Stopped, run_jobs
from dqrm_cpu.lab.reproduce.table import comma_separated, table_of

pytestmark = pytest.mark.slow

BEST = Variant("best", best_of=("FP32", "faster", "diverges"))
TRIED = dataclasses.replace(
    EXPERIMENT,
    variants=(
        BEST,
        FP32,
        Variant("faster", FP32.settings, learning_rate_times=3.0),
        Variant("diverges", FP32.settings, learning_rate_times=1e30),
    ),
    baseline="best",
)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlannedExperiment, dict[str, RunResult]]:
    out = tmp_path_factory.mktemp("tried")
    planned = plan([TRIED], request_in(out, seeds=2))
    found = run_jobs(jobs_of(planned), job_context(out, Watcher()))
    assert not isinstance(found, Stopped)
    return planned[0], found


def outcomes(planned: PlannedExperiment, found: dict[str, RunResult], name: str) -> list[RunResult]:
    cell = next(cell for cell in planned.cells if cell.variant.name == name)
    return [found[job.result_name] for job in cell.jobs]


def test_a_learning_rate_is_a_multiple_of_the_presets(tmp_path: Path) -> None:
    rates = [cell.jobs[0].config.train.learning_rate for cell in plan([TRIED], request_in(tmp_path))[0].cells[1:3]]
    assert rates[1] == pytest.approx(3 * rates[0])


def test_the_best_trains_nothing_of_its_own(tried: tuple[PlannedExperiment, dict[str, RunResult]]) -> None:
    planned, found = tried
    assert planned.cells[0].jobs == ()
    assert len(found) == 2 * 3


def test_the_best_is_best_on_validation_in_each_seed(tried: tuple[PlannedExperiment, dict[str, RunResult]]) -> None:
    planned, found = tried
    plain, faster = outcomes(planned, found, "FP32"), outcomes(planned, found, "faster")
    best = []
    for mine, other in zip(plain, faster, strict=True):
        assert isinstance(mine, RunOutcome)
        assert isinstance(other, RunOutcome)
        best.append(max(mine, other, key=lambda outcome: outcome.validation_best.auc))
    row = table_of(planned, found).figures[0]
    assert row["AUC, mean"] == pytest.approx(sum(outcome.test_best.auc for outcome in best) / len(best))


def test_a_run_that_diverged_is_never_chosen(tried: tuple[PlannedExperiment, dict[str, RunResult]]) -> None:
    planned, found = tried
    assert all(isinstance(outcome, RunFailure) for outcome in outcomes(planned, found, "diverges"))
    assert "diverges" not in str(table_of(planned, found).figures[0]["chosen, by seed"])


def test_the_choice_does_not_look_at_test(tried: tuple[PlannedExperiment, dict[str, RunResult]]) -> None:
    planned, found = tried
    by_name = {name: outcomes(planned, found, name) for name in BEST.best_of}
    swapped = {name: [_with_other_test(outcome) for outcome in seeds] for name, seeds in by_name.items()}
    assert choices(BEST, by_name) == choices(BEST, swapped)


def test_the_table_says_what_was_chosen(tried: tuple[PlannedExperiment, dict[str, RunResult]]) -> None:
    planned, found = tried
    table = table_of(planned, found)
    assert table.rows[0][0].startswith("best (chosen: ")
    assert "chosen, by seed" in comma_separated(table).splitlines()[0]


def test_both_have_the_same_budget() -> None:
    budgets = [variant.best_of for variant in TUNING.variants if variant.best_of]
    assert [len(budget) for budget in budgets] == [7, 7]
    assert {name for budget in budgets for name in budget} == {v.name for v in TUNING.variants if not v.best_of}


def _with_other_test(found: RunResult) -> RunResult:
    if not isinstance(found, RunOutcome):
        return found
    return dataclasses.replace(found, test_best=dataclasses.replace(found.test_best, auc=1 - found.test_best.auc))
