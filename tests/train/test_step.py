"""The training step: against plain torch SGD, over shares, over thread counts."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from dqrm_cpu.comm.transports.single import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.shards import shards_of
from dqrm_cpu.data.source import open_data
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.quant.scale import TableScales
from dqrm_cpu.train.optimizers import select_optimizer
from dqrm_cpu.train.step import TrainingStep
from plain_dlrm import PlainDlrm
from tiny import CPU, tiny_config


class Trainee:
    """A model with its step, over `ranks` simulated ranks."""

    def __init__(self, config: Config, ranks: int = 1) -> None:
        self.model = Dlrm(config, select_kernels(config.kernels, CPU), CPU)
        self.model.initialize_(config.seed)
        self.model.tables.weight.mul_(4)
        self.scales = TableScales(config.quant, self.model.kernels, self.model.tables)
        self.loader = Loader(open_data(config).train, config.train.batch_size, shards_of(0, 1, ranks), CPU)
        optimizer = select_optimizer(config.train, self.model)
        micro = -(-config.train.batch_size // ranks)
        self.step = TrainingStep(self.model, self.scales, optimizer, SingleTransport(), ranks, micro)

    def run(self, steps: int, lr: float) -> list[float]:
        return [self._once(i, self.loader.batches(i), lr) for i in range(steps)]

    def _once(self, i: int, shares: Sequence[Batch], lr: float) -> float:
        return self.step(i, shares, self.loader.global_size(i), lr, stop_requested=False).loss


def codes(trainee: Trainee) -> torch.Tensor:
    """The INT4 codes of all tables f32[R, D], under a scale of each table's own."""
    tables = trainee.model.tables
    step = trainee.model.kernels.scan_absmax(tables) / 7
    return (tables.weight / step.repeat_interleave(tables.row_offset.diff())[:, None]).round()


@pytest.mark.parametrize("method", ["none", "dqrm"])
@pytest.mark.parametrize("kernels", ["torch", "numba"])
def test_a_trajectory_follows_plain_torch(kernels: str, method: str) -> None:
    """200 steps, each of which rounds losses and weights to 24 bits: 200 times 2^-24 is 1.2e-5, and no code flips."""
    config = replace(tiny_config(quant={"method": method}, data={"train_rows": 200 * 32}), kernels=kernels)
    trainee = Trainee(config)
    plain = PlainDlrm(config, trainee.model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.3)
    before = codes(trainee)
    losses, expected = trainee.run(200, lr=0.3), []
    for i in range(200):
        optimizer.zero_grad()
        loss = plain.loss(trainee.loader.batches(i)[0])
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert max(expected) - min(expected) > 0.1, "the model must really move"
    assert (codes(trainee) != before).any(1).float().mean() > 0.05, "a good part of the rows must change their codes"
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1.2e-5, atol=0)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.bf16)])
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise-adagrad"])
def test_threads_do_not_change_a_bit(optimizer: str, precision: str) -> None:
    config = tiny_config(train={"optimizer": optimizer, "precision": precision, "batch_size": 300})
    config = replace(config, kernels="numba")
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        trainee = Trainee(config)
        results.append((trainee.run(6, lr=0.1), trainee.model))
    torch.set_num_threads(before)
    (losses, model), (other_losses, other) = results
    assert losses == other_losses
    assert torch.equal(model.tables.weight, other.tables.weight)
    assert torch.equal(model.dense, other.dense)


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise-adagrad"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_shares_of_a_batch_add_up_to_the_whole(ranks: int, optimizer: str) -> None:
    config = tiny_config(quant={"method": "none"}, train={"optimizer": optimizer})
    whole, shared = Trainee(config), Trainee(config, ranks)
    expected, found = whole.run(12, lr=0.1), shared.run(12, lr=0.1)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shared.model.tables.weight, whole.model.tables.weight, rtol=1e-3, atol=1e-5)


def test_more_ranks_than_examples_leaves_some_without_work() -> None:
    config = tiny_config(quant={"method": "none"}, train={"batch_size": 4}, data={"train_rows": 10})
    whole, shared = Trainee(config), Trainee(config, 4)
    assert whole.loader.global_size(2) == 2
    torch.testing.assert_close(torch.tensor(shared.run(3, lr=0.1)), torch.tensor(whole.run(3, lr=0.1)))


def test_weight_decay_pulls_the_looked_up_rows_and_the_mlps() -> None:
    config = tiny_config(train={"weight_decay": 0.5, "batch_size": 8})
    trainee = Trainee(config)
    before, dense = trainee.model.tables.weight.clone(), trainee.model.dense.clone()
    batch = trainee.loader.batches(0)[0]
    trainee.run(1, lr=0.1)
    moved = (trainee.model.tables.weight != before).any(1).nonzero().view(-1)
    rows = (batch.ids + trainee.model.tables.row_offset[:-1, None]).unique()
    assert torch.equal(moved, rows)
    assert trainee.model.dense.norm() < dense.norm()


def test_a_loss_that_is_not_finite_stops_before_any_weight_changes() -> None:
    trainee = Trainee(tiny_config(quant={"method": "none"}))
    trainee.model.dense[-1] = float("nan")  # the bias of the logit
    before = trainee.model.tables.weight.clone()
    with pytest.raises(TrainingError, match="the loss is nan, of a batch that is sound"):
        trainee.run(1, lr=0.1)
    assert torch.equal(trainee.model.tables.weight, before)


@pytest.mark.parametrize("finder", ["scan", "track"])
def test_scales_follow_the_weights_at_the_period(finder: str) -> None:
    config = tiny_config(quant={"scale_period": 3, "scale_finder": finder})
    trainee = Trainee(config)
    bounds = trainee.model.tables.row_offset.tolist()
    exact = []
    for i in range(7):
        exact.append([trainee.model.tables.weight[a:b].abs().max() / 7 for a, b in pairwise(bounds)])
        trainee.step(i, trainee.loader.batches(i), trainee.loader.global_size(i), 2.0, stop_requested=False)
        assert trainee.scales.state.refreshed_at == i - i % 3
        torch.testing.assert_close(trainee.scales.state.step, torch.stack(exact[i - i % 3]), rtol=0, atol=0)
