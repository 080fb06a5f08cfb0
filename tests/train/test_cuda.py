"""The same training on a GPU; these tests run where torch finds one."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dqrm_cpu.comm.single import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.train.result import Result
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_folder import read_rows
from tiny import tiny_config

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU on this machine"),
]


def run(config: Config, device: str, folder: Path, resume: bool = False) -> Result:
    config = replace(config, device=device, kernels="torch")
    outcome = train(config, RunRequest(folder, resume, {}, io.StringIO()), SingleTransport())
    assert isinstance(outcome, Result)
    return outcome


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise-adagrad"])
@pytest.mark.parametrize("method", ["none", "dqrm"])
@pytest.mark.parametrize("max_bag_size", [1, 3])
def test_losses_are_those_of_the_cpu(method: str, optimizer: str, max_bag_size: int, tmp_path: Path) -> None:
    config = tiny_config(
        quant={"method": method}, train={"optimizer": optimizer, "log_every": 1}, data={"max_bag_size": max_bag_size}
    )
    results = {device: run(config, device, tmp_path / device) for device in ("cpu", "cuda")}
    rows = {device: read_rows(tmp_path / device) for device in results}
    losses = {device: [row.loss for row in rows[device] if row.phase == "train"] for device in rows}
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=5e-3)
    assert results["cuda"].test.last.auc == pytest.approx(results["cpu"].test.last.auc, abs=5e-3)


def test_a_gpu_run_resumes_and_its_checkpoint_loads_on_the_cpu(tmp_path: Path) -> None:
    run(tiny_config(train={"max_steps": 20}), "cuda", tmp_path / "run")
    on_gpu = run(tiny_config(train={"max_steps": 40}), "cuda", tmp_path / "run", resume=True)
    assert on_gpu.steps == 40
    on_cpu = run(tiny_config(train={"max_steps": 40}), "cpu", tmp_path / "run", resume=True)
    assert on_cpu.test.last.auc == pytest.approx(on_gpu.test.last.auc, abs=1e-4)
