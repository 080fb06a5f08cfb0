"""The declared experiments: complete, runnable, and beside the paper's own figures."""

from pathlib import Path

import pytest

from dqrm_cpu.config import check_config
from dqrm_cpu.lab.reproduce.experiments.accuracy import TABLE_2, TABLE_3A, TABLE_3B, TABLE_7, TABLE_8
from dqrm_cpu.lab.reproduce.experiments.catalogue import EXPERIMENTS
from dqrm_cpu.lab.reproduce.experiments.definition import Experiment, Family
from dqrm_cpu.lab.reproduce.plan import ReproduceRequest, configuration, jobs_of, plan
from dqrm_cpu.lab.reproduce.size_presets import SIZE_PRESETS, SMALL, SizePreset
from stored import write_data_set

ASKED_FOR = (
    *("table2", "table3a", "table3b", "table4", "table5", "table6", "table7", "table8", "table9", "table10"),
    *("figure1c", "figure3", "figure4", "figure5", "figure6-7", "figure8", "figure10", "deadzone", "tuning", "options"),
    *("baselines", "pareto"),
)


@pytest.mark.parametrize("name", ASKED_FOR)
def test_every_table_and_figure_is_there(name: str) -> None:
    assert EXPERIMENTS[name].name == name


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
@pytest.mark.parametrize("size", SIZE_PRESETS.values(), ids=SIZE_PRESETS)
def test_every_configuration_is_sound(experiment: Experiment, size: SizePreset, tmp_path: Path) -> None:
    request = ReproduceRequest(size, "synthetic", (1,), tmp_path)
    for job in jobs_of(plan([experiment], request)):
        check_config(job.config)


def test_table_3a_has_the_papers_rows_and_row_wise_quantization() -> None:
    rows = [(v.paper.accuracy, v.paper.auc, v.paper.ms_per_step) for v in TABLE_3A.variants]
    assert rows == [
        (78.923, 0.8047, 7),
        (76.571, 0.7675, None),
        (None, None, None),  # PACT in INT4 does not converge
        (78.858, 0.8040, 69),
        (78.972, 0.8051, 25),
        (78.987, 0.8059, 21),
        (79.040, 0.8064, 31),
        (79.070, 0.8075, 27),
        (79.071, 0.8073, 22),
        (79.092, 0.8073, 20),
        (None, None, None),  # row-wise is ours
    ]


def test_table_3a_gains_size_by_eight() -> None:
    fp32, dqrm = TABLE_3A.variants[0].paper, TABLE_3A.variants[8].paper
    assert fp32.size_gb is not None
    assert dqrm.size_gb is not None
    assert fp32.size_gb / dqrm.size_gb == pytest.approx(8, rel=0.01)


@pytest.mark.parametrize(
    ("experiment", "aucs"),
    [
        (TABLE_2, [0.8047, 0.8046, 0.8054, 0.8073, None]),
        (TABLE_3B, [0.8004, 0.7283, None, None, 0.7996, 0.7998, 0.8015, 0.8010]),
        (TABLE_7, [0.8001, 0.8040, 0.8022, 0.8035, 0.8045]),
        (TABLE_8, [0.8040, 0.8039]),
    ],
)
def test_rows_stand_beside_the_papers(experiment: Experiment, aucs: list[float | None]) -> None:
    assert [variant.paper.auc for variant in experiment.variants] == aucs


def test_the_dead_zone_varies_what_it_says(tmp_path: Path) -> None:
    request = ReproduceRequest(SMALL, "synthetic", (1,), tmp_path)
    made = [configuration(request, None, Family.KAGGLE, v, 1) for v in EXPERIMENTS["deadzone"].variants]
    assert {config.quant.embedding_bits for config in made if config.quant.method == "dqrm"} == {2, 4, 8}
    assert {config.quant.step_width for config in made} >= {(1.0,), (2.0,), (3.0,), (4.0,)}
    assert {config.train.optimizer for config in made} == {"sgd", "rowwise-adagrad"}
    assert len({config.model.table_rows for config in made}) == 2


def test_baselines_train_as_long_as_they_say(tmp_path: Path) -> None:
    request = ReproduceRequest(SMALL, "synthetic", (1,), tmp_path)
    made = {v.name: configuration(request, None, Family.KAGGLE, v, 1) for v in EXPERIMENTS["baselines"].variants}
    epochs = {(config.train.optimizer, config.train.epochs) for config in made.values()}
    assert epochs == {("rowwise-adagrad", 1), ("sgd", 12)}
    names = ("INT4", *(f"INT4, min-count {count}" for count in (2, 5, 10, 20)))
    sizes = [sum(made[name].model.table_rows) for name in names]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < 0.13 * sizes[0]


def test_prepared_data_run_every_row_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_data_set(tmp_path / "data", [300])
    generated = variants(ReproduceRequest(SMALL, "synthetic", (1,), tmp_path))
    prepared = variants(ReproduceRequest(SMALL, str(tmp_path / "data"), (1,), tmp_path / "out"))
    assert "INT4, min-count 5" in generated
    assert prepared == generated


def variants(request: ReproduceRequest) -> list[str]:
    """The rows of the table of baselines that these data can run."""
    return [cell.variant.name for cell in plan([EXPERIMENTS["baselines"]], request)[0].cells]
