"""Training under each method: the course of plain torch with autograd, on one rank and on several."""

import functools
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from plain_methods import PlainMethods

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import rank_shares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import open_data
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.train.optimizers import select_optimizer
from dqrm_cpu.train.session import open_scales
from dqrm_cpu.train.step import TrainingStep
from tiny import CPU, tiny_config

STEPS, RATE = 12, 0.05
CASES: dict[str, Mapping[str, object]] = {
    "lsq": {"method": "lsq"},
    "lsq by matrix": {"method": "lsq", "mlp_granularity": "matrix", "mlp_bits": 8},
    "pact": {"method": "pact"},
    "pact, FP32 MLPs": {"method": "pact", "mlp_bits": 32, "embedding_bits": 3},
    "dorefa": {"method": "dorefa", "mlp_bits": 32},
    "dorefa by matrix": {"method": "dorefa", "mlp_granularity": "matrix", "mlp_bits": 8, "embedding_bits": 8},
    "clip mask": {"method": "dqrm", "clip_mask": True, "step_width": (0.3,)},
    "dqrm by matrix": {"method": "dqrm", "mlp_granularity": "matrix"},
    "INT8 activations": {"method": "dqrm", "activation_bits": 8},
    "INT4 activations, lsq": {"method": "lsq", "activation_bits": 4},
    "activations of FP32 MLPs": {"method": "dqrm", "mlp_bits": 32, "activation_bits": 4},
    "INT8 biases": {"method": "dqrm", "mlp_bias_bits": 8},
    "INT4 biases, pact by matrix": {"method": "pact", "mlp_bias_bits": 4, "mlp_granularity": "matrix"},
    "INT4 biases of FP32 MLPs": {"method": "dqrm", "mlp_bits": 32, "mlp_bias_bits": 4},
    "wide": {"method": "hawq", "step_width": (3.0,), "embedding_bits": 8},
    "cross layers, lsq": {"method": "lsq", "mlp_bias_bits": 8},
    "cross layers, dqrm by matrix": {"method": "dqrm", "mlp_granularity": "matrix"},
    "dims, lsq": {"method": "lsq"},
    "dims, pact by matrix": {"method": "pact", "mlp_granularity": "matrix", "mlp_bits": 8},
    "dims, dorefa": {"method": "dorefa"},
}
SHAPES: dict[str, Mapping[str, object]] = {
    "cross layers, lsq": {"interaction": "cross", "cross_rank": 4},
    "cross layers, dqrm by matrix": {"interaction": "cross", "cross_layers": 2},
    "dims, lsq": {"table_dims": "C1=3,C3=9"},
    "dims, pact by matrix": {"table_dims": "C2=2,C1=2,C3=4"},
    "dims, dorefa": {"table_dims": "C3=1"},
}


class SmallTraining:
    """A model with its step over `ranks` simulated ranks; learned scales start at half of where they would."""

    def __init__(self, config: Config, ranks: int = 1) -> None:
        self.config = config
        self.model = Dlrm(config, select_kernels(config.kernels, CPU), CPU)
        self.model.initialize_(config.seed)
        for weight in self.model.groups.weights:
            weight.mul_(4)
        self.model.begin_learning_scales()
        self.model.scales.flat.mul_(0.5)
        scales = open_scales(config.quant, self.model)
        self.loader = Loader(open_data(config).train, config.train.batch_size, rank_shares(0, 1, ranks), CPU)
        optimizer = select_optimizer(config.train, self.model)
        micro = -(-config.train.batch_size // ranks)
        self.step = TrainingStep(self.model, scales, optimizer, SingleTransport(), ranks, micro)

    def run(self, steps: int) -> list[float]:
        sizes = [self.loader.global_size(i) for i in range(steps)]
        return [self.step(i, self.loader.batches(i), sizes[i], RATE, False).loss for i in range(steps)]


def plain_losses(training: SmallTraining, plain: PlainMethods) -> list[float]:
    optimizer = torch.optim.SGD(plain.parameters(), lr=RATE)
    losses = []
    for i in range(STEPS):
        optimizer.zero_grad()
        loss = plain.loss(training.loader.batches(i)[0])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        plain.keep_scales_positive()
        losses.append(loss.item())
    return losses


def config_of(name: str, kernels: str, bag_size: int) -> Config:
    config = tiny_config(SHAPES.get(name), CASES[name], data={"max_bag_size": bag_size})
    return replace(config, kernels=kernels)


@functools.cache
def plain_course(name: str, bag_size: int) -> tuple[list[float], PlainMethods]:
    """Losses and model of plain torch, from the weights that a model starts with whatever its kernels."""
    config = config_of(name, "torch", bag_size)
    training = SmallTraining(config)
    plain = PlainMethods(config, training.model)
    return plain_losses(training, plain), plain


@pytest.mark.parametrize("bag_size", [1, 3])
@pytest.mark.parametrize("kernels", ["numba", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_the_course_is_that_of_autograd(name: str, kernels: str, bag_size: int) -> None:
    config = config_of(name, kernels, bag_size)
    training = SmallTraining(config)
    (expected, plain), found = plain_course(name, bag_size), training.run(STEPS)
    # Each step rounds losses and weights to 24 bits; a code that flips by it would show at once.
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=2e-5, atol=0)
    for weight, table in zip(training.model.groups.weights, plain.tables, strict=True):
        torch.testing.assert_close(weight, table.data, rtol=1e-3, atol=1e-5)
    if config.quant.method in ("lsq", "pact"):
        torch.testing.assert_close(
            training.model.scales.tables, torch.stack(list(plain.table_scales)), rtol=1e-4, atol=0
        )
        for ours, theirs in zip(training.model.scales.matrices, plain.layer_scales, strict=True):
            torch.testing.assert_close(ours, theirs.data, rtol=1e-4, atol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise-adagrad"])
@pytest.mark.parametrize("name", ["lsq", "pact", "dorefa", "clip mask"])
def test_shares_of_a_batch_add_up_to_the_whole(name: str, optimizer: str) -> None:
    config = tiny_config(quant=CASES[name], train={"optimizer": optimizer, "weight_decay": 0.01})
    whole, shared = SmallTraining(config), SmallTraining(config, ranks=3)
    expected, found = whole.run(8), shared.run(8)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=0)
    torch.testing.assert_close(shared.model.scales.flat, whole.model.scales.flat, rtol=1e-3, atol=1e-6)


def test_hawq_is_dqrm_with_a_scan_at_every_step() -> None:
    hawq = SmallTraining(tiny_config(quant={"method": "hawq", "scale_period": 50}))
    dqrm = SmallTraining(tiny_config(quant={"method": "dqrm", "scale_finder": "track", "scale_period": 1}))
    assert hawq.run(STEPS) == dqrm.run(STEPS)
    assert torch.equal(hawq.model.tables.weight, dqrm.model.tables.weight)


def test_width_one_takes_the_same_steps_as_no_width() -> None:
    plain, wide = (SmallTraining(tiny_config(quant={"step_width": width})) for width in ((1.0,), (1.0, 1.0, 1.0)))
    assert plain.run(5) == wide.run(5)
