"""The dense half of the optimizers against torch's own; the tables' half is the kernels'."""

import pytest
import torch

from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.train.optimizers import select_optimizer
from tiny import CPU, tiny_config


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize(("name", "peer"), [("sgd", torch.optim.SGD), ("rowwise-adagrad", torch.optim.Adagrad)])
def test_mlps_move_as_with_torch(name: str, peer: type, weight_decay: float) -> None:
    config = tiny_config(train={"optimizer": name, "weight_decay": weight_decay})
    model = Dlrm(config, select_kernels("torch", CPU), CPU)
    model.initialize_(seed=1)
    expected = torch.nn.Parameter(model.dense.clone())
    theirs = peer([expected], lr=0.05, weight_decay=weight_decay, **({"eps": 1e-8} if name != "sgd" else {}))
    ours = select_optimizer(config.train, model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        expected.grad = torch.randn(expected.shape, generator=generator)
        ours.update_dense(expected.grad.clone(), lr=0.05)
        theirs.step()
    torch.testing.assert_close(model.dense, expected.detach(), rtol=1e-5, atol=1e-7)


def test_adagrad_state_is_in_the_checkpoint() -> None:
    config = tiny_config(train={"optimizer": "rowwise-adagrad"})
    model = Dlrm(config, select_kernels("torch", CPU), CPU)
    state = select_optimizer(config.train, model).state()
    assert state["optimizer.rows"].shape == (model.tables.weight.shape[0],)
    assert state["optimizer.dense"].shape == model.dense.shape
