"""The same training on a GPU; these tests run where torch finds one."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_folder import read_rows
from dqrm_cpu.train.state import Result
from launching import run_gloo
from tiny import tiny_config

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU on this machine"),
]


SMALL = ["--model.table-rows", "40,3,500", "--data.train-rows", "1000", "--train.batch-size", "50"]
SMALL += ["--data.validation-rows", "200", "--data.test-rows", "200", "--train.epochs", "1", "--train.log-every", "1"]
ROUNDED = {"wire": "int8", "mlp_gradients": "int8", "error_feedback": "all", "rounding": "stochastic"}


def run(config: Config, device: str, folder: Path, resume: bool = False) -> Result:
    config = replace(config, device=device, kernels="torch")
    outcome = train(config, RunRequest(folder, resume, {}, io.StringIO()), SingleTransport())
    assert isinstance(outcome, Result)
    return outcome


def losses(folder: Path) -> list[float | None]:
    return [row.loss for row in read_rows(folder) if row.phase == "train"]


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise-adagrad"])
@pytest.mark.parametrize("method", ["none", "dqrm"])
@pytest.mark.parametrize("max_bag_size", [1, 3])
def test_losses_are_those_of_the_cpu(method: str, optimizer: str, max_bag_size: int, tmp_path: Path) -> None:
    config = tiny_config(
        quant={"method": method}, train={"optimizer": optimizer, "log_every": 1}, data={"max_bag_size": max_bag_size}
    )
    results = {device: run(config, device, tmp_path / device) for device in ("cpu", "cuda")}
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=5e-3)
    assert results["cuda"].test.last.auc == pytest.approx(results["cpu"].test.last.auc, abs=5e-3)


def test_a_gpu_run_resumes_and_its_checkpoint_loads_on_the_cpu(tmp_path: Path) -> None:
    run(tiny_config(train={"max_steps": 20}), "cuda", tmp_path / "run")
    on_gpu = run(tiny_config(train={"max_steps": 40}), "cuda", tmp_path / "run", resume=True)
    assert on_gpu.steps == 40
    on_cpu = run(tiny_config(train={"max_steps": 40}), "cpu", tmp_path / "run", resume=True)
    assert on_cpu.test.last.auc == pytest.approx(on_gpu.test.last.auc, abs=1e-4)


@pytest.mark.parametrize("comm", [{}, {"wire": "dense"}, ROUNDED])
@pytest.mark.parametrize("method", ["dqrm", "lsq"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_simulated_ranks_train_as_on_the_cpu(ranks: int, method: str, comm: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(quant={"method": method}, train={"log_every": 1, "max_steps": 30})
    config = replace(config, comm=replace(config.comm, simulated_ranks=ranks, **comm))
    for device in ("cpu", "cuda"):
        run(config, device, tmp_path / device)
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=5e-3)


@pytest.mark.mpi
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each of two ranks")
@pytest.mark.parametrize("wire", ["sparse", "int8"])
@pytest.mark.parametrize("transport", ["nccl", "gloo"])
def test_ranks_on_gpus_of_their_own_train_as_simulated_ones(transport: str, wire: str, tmp_path: Path) -> None:
    command = ["-m", "dqrm_cpu", "train", "--preset", "demo", *SMALL, "--device", "cuda", "--comm.wire", wire]
    real = [*command, "--comm.transport", transport, "--run-dir", tmp_path / "real"]
    run_gloo(real, 2, timeout_s=240).check()
    simulated = [*command, "--comm.simulated-ranks", "2", "--run-dir", tmp_path / "simulated"]
    run_gloo(simulated, 1, timeout_s=240).check()
    assert losses(tmp_path / "real") == pytest.approx(losses(tmp_path / "simulated"), rel=1e-5)
