"""Rows that are not sound stop a run before they are trained on, or are left out by all ranks alike."""

import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.source import DataSet, Part, RowSource, open_data
from dqrm_cpu.errors import DataError, TrainingError
from dqrm_cpu.train import run as run_module
from dqrm_cpu.train.loop import TrainingLoop
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.state import Result
from tiny import tiny_config

Change = Callable[[Batch, int], None]
BATCH, STEPS = 32, 16
BAD_STEP, BAD_ROW = 10, 5
FIRST = BATCH * (BAD_STEP - 1) + BAD_ROW


def nan_in_dense(batch: Batch, row: int) -> None:
    batch.dense[row, 4] = math.nan


def infinite(batch: Batch, row: int) -> None:
    batch.dense[row, 12] = -math.inf


def label_of_seven(batch: Batch, row: int) -> None:
    batch.label[row] = 7


def id_beyond_its_table(batch: Batch, row: int) -> None:
    if batch.offsets is None:
        batch.ids[1, row] = 3
    else:  # the first id of the row's bags in the second table, or of those behind it
        batch.ids[int(batch.offsets[batch.size + row])] = 3


class Spoiled(NamedTuple):
    """A source of which some rows are not as they should be."""

    source: RowSource
    changes: Mapping[int, Change]  # by number of the row

    def rows(self, start: int, stop: int) -> Batch:
        batch = self.source.rows(start, stop)
        for row, change in self.changes.items():
            if start <= row < stop:
                change(batch, row - start)
        return batch


Spoil = Callable[..., None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Makes runs read spoiled rows of the training part, or of another."""

    def spoil_part(changes: Mapping[int, Change], part: str = "train") -> None:
        def open_spoiled(config: Config) -> DataSet:
            data = open_data(config)
            whole: Part = getattr(data, part)
            moved = {whole.first + row: change for row, change in changes.items()}
            spoiled: dict[str, Any] = {part: replace(whole, source=Spoiled(whole.source, moved))}
            return replace(data, **spoiled)

        monkeypatch.setattr(run_module, "open_data", open_spoiled)

    return spoil_part


def config_of(policy: str = "stop", ranks: int = 1, **settings: Any) -> Config:
    comm = settings.pop("comm", {})
    quant, data = settings.pop("quant", {}), {"train_rows": BATCH * STEPS, **settings.pop("data", {})}
    config = tiny_config(
        train={"batch_size": BATCH, "log_every": 1, "on_bad_batch": policy, **settings}, quant=quant, data=data
    )
    return replace(config, comm=replace(config.comm, simulated_ranks=ranks, **comm))


def run(config: Config, folder: Path, resume: bool = False) -> tuple[Result, str]:
    stream = io.StringIO()
    result = train(config, RunRequest(folder, resume, {}, stream), SingleTransport())
    assert isinstance(result, Result)
    return result, stream.getvalue()


def losses(folder: Path) -> dict[int, float | None]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if row["phase"] == "train"}


WRONG: dict[Change, str] = {
    nan_in_dense: "I5 is nan",
    infinite: "I13 is -inf",
    label_of_seven: r"label is 7\.0, not 0 or 1",
    id_beyond_its_table: "C2 id 3 is outside of 0 to 2",
}


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
@pytest.mark.parametrize("bags", [1, 3])
def test_the_step_that_would_train_on_it_says_where_it_is(
    bags: int, change: Change, spoil: Spoil, tmp_path: Path
) -> None:
    spoil({FIRST: change})
    with pytest.raises(DataError, match=WRONG[change]) as refused:
        run(config_of(data={"max_bag_size": bags}), tmp_path / "run")
    assert "step 10 (epoch 1)" in str(refused.value)
    assert "learning rate" not in str(refused.value)
    assert len(losses(tmp_path / "run")) == BAD_STEP - 1
    if bags == 1:
        assert f"row {BAD_ROW} of the batch, row {FIRST} of the training rows" in str(refused.value)
        with np.load(tmp_path / "run" / "bad-batches" / "step-000000010.npz", allow_pickle=False) as kept:
            assert kept["bad_row"] == BAD_ROW
            assert kept["rows"][BAD_ROW] == FIRST
            assert kept["label"].shape == (BATCH,)


SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"quant": {"method": "none"}},
    "int4": {},
    "adagrad": {"optimizer": "rowwise-adagrad"},
    "torch": {"kernels": "torch"},
    "int8": {"ranks": 2, "comm": {"wire": "int8"}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_no_way_of_training_passes_over_a_nan(name: str, spoil: Spoil, tmp_path: Path) -> None:
    spoil({FIRST: nan_in_dense})
    settings = dict(SETTINGS[name])
    config = replace(config_of(**{k: v for k, v in settings.items() if k != "kernels"}), kernels="auto")
    config = replace(config, kernels=str(settings.get("kernels", "auto")))
    with pytest.raises(DataError, match="step 10"):
        run(config, tmp_path / "run")


FEEDBACK = {"wire": "int8", "mlp_gradients": "int8", "error_feedback": "all", "rounding": "stochastic"}
REMEMBERING: dict[str, dict[str, Any]] = {
    "alone": {},
    "ranks": {"ranks": 3, "comm": FEEDBACK},
    "activations": {"quant": {"activation_bits": 8, "scale_period": 9}},
    "stochastic": {"quant": {"rounding": "stochastic"}, "optimizer": "rowwise-adagrad"},
}


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """All that a checkpoint holds, at the end of each run."""
    kept: list[dict[str, torch.Tensor]] = []
    finish = TrainingLoop._finish

    def finish_and_keep(loop: TrainingLoop) -> Result:
        loop._session.gather()
        kept.append({name: tensor.clone() for name, tensor in loop._session.tensors().items()})
        return finish(loop)

    monkeypatch.setattr(TrainingLoop, "_finish", finish_and_keep)
    return kept


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_skipped_step_changes_nothing_and_resuming_is_exact(
    name: str, spoil: Spoil, tmp_path: Path, weights: list[dict[str, torch.Tensor]]
) -> None:
    spoil({FIRST: nan_in_dense})
    settings = {"checkpoint_every": BAD_STEP, **REMEMBERING[name]}
    whole, output = run(config_of("skip", max_steps=14, **settings), tmp_path / "whole")
    assert (whole.steps, whole.skipped_batches) == (14, 1)
    assert "skipped on all ranks: row 5 of the batch" in output or "ranks" in settings
    assert output.count("warning: ") == 1
    assert losses(tmp_path / "whole")[BAD_STEP] is None
    run(config_of("skip", max_steps=BAD_STEP - 1, **settings), tmp_path / "before")
    run(config_of("skip", max_steps=BAD_STEP, **settings), tmp_path / "cut")
    at_end, before, after = weights
    assert all(torch.equal(before[key], after[key]) for key in before)
    result, _ = run(config_of("skip", max_steps=14, **settings), tmp_path / "cut", resume=True)
    assert result.skipped_batches == 1
    assert all(torch.equal(at_end[key], weights[3][key]) for key in at_end)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_few_warnings_few_files_and_all_counted(spoil: Spoil, tmp_path: Path) -> None:
    spoil({BATCH * step: nan_in_dense for step in range(13)})
    result, output = run(config_of("skip"), tmp_path / "run")
    assert result.skipped_batches == 13
    assert output.count("warning: ") == 5
    assert len(list((tmp_path / "run" / "bad-batches").iterdir())) == 10
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped_batches"] == 13


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_an_evaluation_stops_or_leaves_out_the_row(change: Change, spoil: Spoil, tmp_path: Path) -> None:
    spoil({7: change}, "validation")
    with pytest.raises(DataError, match="row 7 of the validation rows"):
        run(config_of(max_steps=1), tmp_path / "stopped")
    result, output = run(config_of("skip", max_steps=1), tmp_path / "run")
    assert (result.validation.last.examples, result.validation.last.skipped_rows) == (499, 1)
    assert "1 validation rows are not sound" in output


def test_a_row_left_out_of_the_test_metrics_is_told(spoil: Spoil, tmp_path: Path) -> None:
    spoil({7: nan_in_dense}, "test")
    result, output = run(config_of("skip", max_steps=1), tmp_path / "run")
    assert result.test.last.skipped_rows == 1
    assert "1 test rows are not sound" in output


def test_numbers_that_overflow_are_found_at_their_step_and_the_batch_is_not_blamed(
    spoil: Spoil, tmp_path: Path
) -> None:
    def enormous(batch: Batch, row: int) -> None:
        batch.dense[row] = 3e38

    spoil({FIRST: enormous})
    with pytest.raises(TrainingError, match=r"^step 10: .* sound.*the last checkpoint is that of step 8\)") as diverged:
        run(config_of(checkpoint_every=8), tmp_path / "run")
    assert diverged.value.unanimous


@pytest.mark.parametrize(("label", "why"), [(0.0, "no clicks"), (1.0, "only clicks")])
def test_without_an_auc_the_best_is_chosen_by_log_loss(label: float, why: str, spoil: Spoil, tmp_path: Path) -> None:
    def all_alike(batch: Batch, row: int) -> None:
        batch.label.fill_(label)

    spoil({0: all_alike, 200: all_alike, 400: all_alike}, "validation")
    result, output = run(config_of(evaluate_every=4, learning_rate=0.5), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    by_step = {row["step"]: row["log_loss"] for row in rows if row["phase"] == "validation"}
    assert result.best_step == min(by_step, key=lambda step: by_step[step])
    assert output.count(f"the validation rows have {why}: AUC is undefined") == 1
    assert "nan" not in output
