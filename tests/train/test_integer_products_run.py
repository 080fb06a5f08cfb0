"""Runs whose MLPs multiply whole numbers in training: resumed to the bit, scored in FP32."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.mlp_weights import largest_row_code
from dqrm_cpu.quant.methods import Uniform
from dqrm_cpu.train.checkpoint_files import load_checkpoint
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.checkpoint_manifest import read_manifest
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.state import Result
from tiny import tiny_config

CUT = 25


def config_of(method: str, ranks: int = 1) -> Config:
    config = tiny_config(
        quant={"method": method},
        train={"precision": "int8", "optimizer": "rowwise-adagrad", "learning_rate": 0.05, "evaluate_every": 20},
    )
    return replace(config, comm=replace(config.comm, simulated_ranks=ranks))


def run(config: Config, folder: Path, resume: bool = False) -> Result:
    outcome = train(config, RunRequest(folder, resume, {}, io.StringIO()), SingleTransport())
    assert isinstance(outcome, Result)
    return outcome


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    path = find_checkpoint(checkpoints_folder(folder), "last")
    into = {
        name: torch.empty(info.shape, dtype=getattr(torch, info.dtype))
        for name, info in read_manifest(path).tensors.items()
    }
    load_checkpoint(path, into)
    return into


@pytest.mark.parametrize(("method", "ranks"), [("dqrm", 1), ("none", 2)])
def test_a_resumed_run_has_the_bits_of_one_that_was_not(method: str, ranks: int, tmp_path: Path) -> None:
    config = config_of(method, ranks)
    whole = run(config, tmp_path / "whole")
    run(replace(config, train=replace(config.train, max_steps=CUT)), tmp_path / "cut")
    resumed = run(config, tmp_path / "cut", resume=True)
    expected, found = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "cut")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert resumed.test.last == whole.test.last


def test_a_model_is_scored_in_fp32() -> None:
    config = config_of("dqrm")
    exact = replace(config, train=replace(config.train, precision="fp32"))
    x = torch.rand(9, config.model.num_dense)
    outputs = []
    for one in (config, exact):
        model = Dlrm(one, select_kernels("numba", torch.device("cpu")), torch.device("cpu"))
        model.initialize_(3)
        model.quantize_weights()
        outputs.append(model._bottom.forward(x))
    assert torch.equal(*outputs)


def test_quantized_weights_are_multiplied_as_the_codes_that_they_are() -> None:
    quant = config_of("dqrm").quant
    model = Dlrm(config_of("dqrm"), select_kernels("numba", torch.device("cpu")), torch.device("cpu"))
    (matrices, *_) = model._matrices
    assert matrices is not None
    assert isinstance(matrices.formula, Uniform)
    assert largest_row_code(quant, matrices) == 7
    assert largest_row_code(replace(quant, mlp_bits=16), matrices) == 127
    assert largest_row_code(replace(quant, mlp_granularity="matrix"), matrices) == 127
    assert largest_row_code(replace(quant, mlp_rounding="stochastic"), matrices) == 127
    assert largest_row_code(quant, None) == 127
