"""Every method in real runs: learns, is interrupted and resumed to the bit, switches from FP32 at its epoch."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import RankShares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import open_data
from dqrm_cpu.train.checkpoint_files import load_checkpoint
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.checkpoint_manifest import read_manifest
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_folder import read_rows
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.state import Result
from tiny import CPU, tiny_config

METHODS: dict[str, dict[str, object]] = {
    "ptq": {"method": "ptq"},
    "hawq": {"method": "hawq"},
    "lsq": {"method": "lsq"},
    "pact": {"method": "pact"},
    "dorefa": {"method": "dorefa", "mlp_bits": 32},
    "ramp": {"step_width": (3.0,), "step_width_ramp_steps": 50, "scale_period": 7},
    "alive": {"target_alive": 0.2, "target_alive_period": 20, "target_alive_min_rows": 30, "scale_period": 3},
    "late": {"method": "lsq", "pretrain_epochs": 1},
    "cross": {"method": "lsq", "activation_bits": 8},
}
MODELS: dict[str, dict[str, object]] = {"cross": {"interaction": "cross", "cross_rank": 7}}
ROWS, EPOCH = {"train_rows": 1000}, 32
"""Training rows, and the steps of an epoch of them."""


def run(config: Config, folder: Path, resume: bool = False) -> Result:
    outcome = train(config, RunRequest(folder, resume, {}, io.StringIO()), SingleTransport())
    assert isinstance(outcome, Result)
    return outcome


def last_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = find_checkpoint(checkpoints_folder(folder), "last")
    into = {
        name: torch.empty(info.shape, dtype=getattr(torch, info.dtype))
        for name, info in read_manifest(path).tensors.items()
    }
    load_checkpoint(path, into)
    return into


@pytest.mark.parametrize(("name", "cut"), [*((name, 25) for name in METHODS), ("late", EPOCH), ("late", 45)])
def test_resumes_to_the_bit(name: str, cut: int, tmp_path: Path) -> None:
    config = tiny_config(MODELS.get(name), METHODS[name], {"epochs": 2, "optimizer": "rowwise-adagrad"}, ROWS)
    assert_resumes(config, cut, tmp_path)


def assert_resumes(config: Config, cut: int, tmp_path: Path) -> None:
    """Stops a run after `cut` steps, goes on with it, and finds the bits of one that nothing stopped."""
    whole = run(config, tmp_path / "whole")
    run(replace(config, train=replace(config.train, max_steps=cut)), tmp_path / "cut")
    resumed = run(config, tmp_path / "cut", resume=True)
    expected = last_tensors(tmp_path / "whole")
    found = last_tensors(tmp_path / "cut")
    assert found.keys() == expected.keys()
    for tensor in expected:
        assert torch.equal(found[tensor], expected[tensor]), tensor
    assert resumed.test.last == whole.test.last


@pytest.mark.parametrize("name", METHODS)
def test_learns(name: str, tmp_path: Path) -> None:
    """Two epochs of a small model: validation AUC well above chance, for all of them near 0.68."""
    data = {"train_rows": 15_000, "validation_rows": 5000}
    tables = {"table_rows": (40, 30, 500, 100), "embedding_dim": 6, "bottom_mlp": (16, 6), "top_mlp": (16, 1)}
    few_steps = {"epochs": 2, "batch_size": 128, "learning_rate": 0.2}
    result = run(tiny_config(quant=METHODS[name], data=data, model=tables, train=few_steps), tmp_path / "run")
    assert result.validation.best.auc > 0.6


def test_pretraining_is_in_fp32(tmp_path: Path) -> None:
    """The same weights as FP32 at the end of the first epoch, others after the second."""
    late = tiny_config(quant={"method": "dqrm", "pretrain_epochs": 1}, train={"epochs": 2}, data=ROWS)
    fp32 = tiny_config(quant={"method": "none"}, train={"epochs": 2}, data=ROWS)
    for steps, same in ((EPOCH, True), (EPOCH + 5, False)):
        for name, config in (("late", late), ("fp32", fp32)):
            run(replace(config, train=replace(config.train, max_steps=steps)), tmp_path / f"{name}-{steps}")
        tables = [last_tensors(tmp_path / f"{name}-{steps}")["tables"] for name in ("late", "fp32")]
        assert torch.equal(*tables) is same


@pytest.mark.long
@pytest.mark.parametrize("cut", [20, 38, 39])
def test_a_late_start_resumes_to_the_bit(cut: int, tmp_path: Path) -> None:
    quant = {"start_at": 0.6, "step_width": (2.0,), "activation_bits": 8}
    assert_resumes(
        tiny_config(quant=quant, train={"epochs": 2, "optimizer": "rowwise-adagrad"}, data=ROWS), cut, tmp_path
    )


@pytest.mark.long
def test_the_first_part_is_in_fp32(tmp_path: Path) -> None:
    """Of 64 iterations 38, which is .6 rounded down, are those of FP32; where a run is stopped does not move that."""
    late = tiny_config(quant={"method": "dqrm", "start_at": 0.6}, train={"epochs": 2}, data=ROWS)
    fp32 = tiny_config(quant={"method": "none"}, train={"epochs": 2}, data=ROWS)
    for steps, same in ((38, True), (39, False)):
        for name, config in (("late", late), ("fp32", fp32)):
            run(replace(config, train=replace(config.train, max_steps=steps)), tmp_path / f"{name}-{steps}")
        tables = [last_tensors(tmp_path / f"{name}-{steps}")["tables"] for name in ("late", "fp32")]
        assert torch.equal(*tables) is same


def test_ptq_trains_in_fp32_and_scores_the_quantized_model(tmp_path: Path) -> None:
    results = {m: run(tiny_config(quant={"method": m, "embedding_bits": 2}), tmp_path / m) for m in ("ptq", "none")}
    assert torch.equal(last_tensors(tmp_path / "ptq")["tables"], last_tensors(tmp_path / "none")["tables"])
    assert results["ptq"].test.last.log_loss != results["none"].test.last.log_loss


def test_evaluations_tell_how_much_is_alive(tmp_path: Path) -> None:
    run(tiny_config(quant=METHODS["alive"]), tmp_path / "run")
    row = next(row for row in read_rows(tmp_path / "run") if row.phase == "validation")
    assert row.liveness is not None
    assert row.liveness.table_live_rows[0] == 0.2  # 8 of 40 rows
    assert row.liveness.table_live_rows[2] == 0.2  # 100 of 500 rows
    assert row.liveness.table_live_rows[1] > 0.2  # 3 rows: below target_alive_min_rows
    assert row.liveness.clip_rate == 0.0
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-2])
    assert line["table_live_rows"][0] == 0.2


def test_updated_rows_are_those_that_training_looked_up(tmp_path: Path) -> None:
    """Also of a run that was interrupted, and of several ranks: they are derived from the weights alone."""
    config = tiny_config(quant={"step_width": (4.0,)}, train={"max_steps": 20, "optimizer": "rowwise-adagrad"})
    ranks = replace(config, comm=replace(config.comm, simulated_ranks=2))
    loader = Loader(open_data(config).train, 32, RankShares((0,), 1), CPU)
    ids = torch.cat([loader.batches(number)[0].ids for number in range(20)], 1)
    expected = [len(of_table.unique()) / rows for of_table, rows in zip(ids, config.model.table_rows, strict=True)]
    run(replace(config, train=replace(config.train, max_steps=8)), tmp_path / "stopped")
    run(config, tmp_path / "stopped", resume=True)
    run(ranks, tmp_path / "ranks")
    for folder in ("stopped", "ranks"):
        *_, row = (row for row in read_rows(tmp_path / folder) if row.phase == "validation")
        assert row.liveness is not None
        assert list(row.liveness.table_updated_rows) == expected
        assert 0 < row.liveness.live_updated_rows < 1
