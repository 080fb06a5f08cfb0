"""The training step: against plain torch SGD, over shares, over thread counts."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import BadBatchError, Batch, rank_shares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import open_data
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.quant.scale import TableScales
from dqrm_cpu.train.optimizers import select_optimizer
from dqrm_cpu.train.step import TrainingStep
from plain_dlrm import PlainDlrm
from tiny import CPU, tiny_config


class SmallTraining:
    """A model with its step, over `ranks` simulated ranks."""

    def __init__(self, config: Config, ranks: int = 1, weighted: bool = False) -> None:
        self.model = Dlrm(config, select_kernels(config.kernels, CPU), CPU)
        self.model.initialize_(config.seed)
        self.model.tables.weight.mul_(4)
        self.scales = TableScales(config.quant, self.model.kernels, self.model.groups)
        self.loader = Loader(open_data(config).train, config.train.batch_size, rank_shares(0, 1, ranks), CPU)
        optimizer = select_optimizer(config.train, self.model)
        micro = -(-config.train.batch_size // ranks)
        self.step = TrainingStep(self.model, self.scales, optimizer, SingleTransport(), ranks, micro, weighted=weighted)

    def run(self, steps: int, lr: float) -> list[float]:
        return [self._once(i, self.loader.batches(i), lr) for i in range(steps)]

    def run_weighted(self, steps: int, lr: float, weights_of: Callable[[Batch], Tensor]) -> list[float]:
        """Trains on the same batches, with weights f32[B] that are a function of each share."""
        shares = ([replace(b, weight=weights_of(b)) for b in self.loader.batches(i)] for i in range(steps))
        return [self._once(i, share, lr) for i, share in enumerate(shares)]

    def _once(self, i: int, shares: Sequence[Batch], lr: float) -> float:
        return self.step(i, shares, self.loader.global_size(i), lr, stop_requested=False).loss


def codes(training: SmallTraining) -> torch.Tensor:
    """The INT4 codes of all tables f32[R, D], under a scale of each table's own."""
    tables = training.model.tables
    scale = training.model.kernels.scan_absmax(tables) / 7
    return (tables.weight / scale.repeat_interleave(tables.row_offset.diff())[:, None]).round()


CROSS = {"interaction": "cross", "cross_layers": 2, "cross_rank": 5}
MODELS = pytest.mark.parametrize("shape", [{}, CROSS], ids=["dot", "cross"])


STEPS = 60


def long_config(kernels: str, method: str, is_cross: bool) -> Config:
    config = tiny_config(CROSS if is_cross else {}, {"method": method}, data={"train_rows": STEPS * 32})
    return replace(config, kernels=kernels)


@functools.cache
def plain_losses(method: str, is_cross: bool) -> tuple[float, ...]:
    """The losses of plain torch, from the same weights on the same batches whatever kernels they are compared with."""
    config = long_config("torch", method, is_cross)
    training = SmallTraining(config)
    plain = PlainDlrm(config, training.model)
    optimizer, losses = torch.optim.SGD(plain.parameters(), lr=0.3), []
    for i in range(STEPS):
        optimizer.zero_grad()
        loss = plain.loss(training.loader.batches(i)[0])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return tuple(losses)


@MODELS
@pytest.mark.parametrize("method", ["none", "dqrm"])
@pytest.mark.parametrize("kernels", ["torch", "numba"])
def test_a_trajectory_follows_plain_torch(kernels: str, method: str, shape: dict[str, Any]) -> None:
    """Each of 60 steps rounds losses and weights to 24 bits: 60 times 2^-24 is 3.6e-6, and no code flips."""
    training = SmallTraining(long_config(kernels, method, bool(shape)))
    before = codes(training)
    losses, expected = training.run(STEPS, lr=0.3), plain_losses(method, bool(shape))
    assert max(expected) - min(expected) > 0.1, "the model must really move"
    assert (codes(training) != before).any(1).float().mean() > 0.05, "a good part of the rows must change their codes"
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=3.6e-6, atol=0)


@MODELS
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.bf16), "int8"])
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise-adagrad"])
def test_threads_do_not_change_a_bit(optimizer: str, precision: str, shape: dict[str, Any]) -> None:
    config = tiny_config(shape, train={"optimizer": optimizer, "precision": precision, "batch_size": 300})
    config = replace(config, kernels="numba")
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        training = SmallTraining(config)
        results.append((training.run(6, lr=0.1), training.model))
    torch.set_num_threads(before)
    (losses, model), (other_losses, other) = results
    assert losses == other_losses
    assert torch.equal(model.tables.weight, other.tables.weight)
    assert torch.equal(model.dense, other.dense)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.bf16)])
def test_as_many_threads_as_a_socket_has_change_no_bit(precision: str) -> None:
    """Layers of the presets' sizes, and more threads than cores: libraries cut their products otherwise for each."""
    shape = {
        "table_rows": (40, 3, 90000),
        "embedding_dim": 64,
        "bottom_mlp": (512, 256, 64),
        "top_mlp": (512, 256, 1),
    }
    config = tiny_config(shape, train={"precision": precision, "batch_size": 2048}, data={"train_rows": 3 * 2048})
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3, 8, 17, 64):
        torch.set_num_threads(threads)
        training = SmallTraining(replace(config, kernels="numba"))
        results.append((training.run(3, lr=0.1), training.model))
    torch.set_num_threads(before)
    losses, model = results[0]
    for other_losses, other in results[1:]:
        assert other_losses == losses
        assert torch.equal(model.tables.weight, other.tables.weight)
        assert torch.equal(model.dense, other.dense)


@MODELS
def test_integer_products_follow_those_of_fp32(shape: dict[str, Any]) -> None:
    # Not of quantized weights: a weight that goes to another code changes more than rounded products do.
    plain = tiny_config(shape, quant={"method": "none"})
    configs = [replace(plain, kernels="numba", train=replace(plain.train, precision=name)) for name in ("int8", "fp32")]
    found, expected = (SmallTraining(config).run(30, lr=0.1) for config in configs)
    assert found != expected
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0.1, atol=0)


@MODELS
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise-adagrad"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_shares_of_a_batch_add_up_to_the_whole(ranks: int, optimizer: str, shape: dict[str, Any]) -> None:
    config = tiny_config(shape, quant={"method": "none"}, train={"optimizer": optimizer})
    whole, shared = SmallTraining(config), SmallTraining(config, ranks)
    expected, found = whole.run(12, lr=0.1), shared.run(12, lr=0.1)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shared.model.tables.weight, whole.model.tables.weight, rtol=1e-3, atol=1e-5)


def test_more_ranks_than_examples_leaves_some_without_work() -> None:
    config = tiny_config(quant={"method": "none"}, train={"batch_size": 4}, data={"train_rows": 10})
    whole, shared = SmallTraining(config), SmallTraining(config, 4)
    assert whole.loader.global_size(2) == 2
    torch.testing.assert_close(torch.tensor(shared.run(3, lr=0.1)), torch.tensor(whole.run(3, lr=0.1)))


def test_weight_decay_pulls_the_looked_up_rows_and_the_mlps() -> None:
    config = tiny_config(train={"weight_decay": 0.5, "batch_size": 8})
    training = SmallTraining(config)
    before, dense = training.model.tables.weight.clone(), training.model.dense.clone()
    batch = training.loader.batches(0)[0]
    training.run(1, lr=0.1)
    moved = (training.model.tables.weight != before).any(1).nonzero().view(-1)
    rows = torch.unique(batch.ids + training.model.tables.row_offset[:-1, None])
    assert torch.equal(moved, rows)
    assert training.model.dense.norm() < dense.norm()


def test_a_loss_that_is_not_finite_stops_before_any_weight_changes() -> None:
    training = SmallTraining(tiny_config(quant={"method": "none"}))
    training.model.dense[-1] = float("nan")  # the bias of the logit
    before = training.model.tables.weight.clone()
    with pytest.raises(TrainingError, match="the loss is nan, of a batch that is sound"):
        training.run(1, lr=0.1)
    assert torch.equal(training.model.tables.weight, before)


@pytest.mark.parametrize("finder", ["scan", "track"])
def test_scales_follow_the_weights_at_the_period(finder: str) -> None:
    config = tiny_config(quant={"scale_period": 3, "scale_finder": finder})
    training = SmallTraining(config)
    bounds = training.model.tables.row_offset.tolist()
    exact = []
    for i in range(7):
        exact.append([training.model.tables.weight[a:b].abs().max() / 7 for a, b in pairwise(bounds)])
        training.step(i, training.loader.batches(i), training.loader.global_size(i), 2.0, stop_requested=False)
        assert training.scales.state.refreshed_at == i - i % 3
        torch.testing.assert_close(training.scales.state.scale, torch.stack(exact[i - i % 3]), rtol=0, atol=0)


def by_a_feature(batch: Batch) -> Tensor:
    """Weights from 0 to 3 that follow from the row: the same however a batch is shared out."""
    return (10 * batch.dense[:, 0]).round().remainder(4)


@pytest.mark.parametrize("kernels", ["torch", "numba"])
def test_a_weighted_trajectory_follows_plain_torch(kernels: str) -> None:
    config = replace(tiny_config(quant={"method": "none"}, data={"train_rows": 60 * 32}), kernels=kernels)
    training = SmallTraining(config, weighted=True)
    plain = PlainDlrm(config, training.model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.3)
    losses, expected = training.run_weighted(60, 0.3, by_a_feature), []
    for i in range(60):
        (batch,) = training.loader.batches(i)
        weights = by_a_feature(batch)
        optimizer.zero_grad()
        of_rows = binary_cross_entropy_with_logits(plain(batch), batch.label, reduction="none")
        loss = (weights * of_rows).sum() / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        expected.append(loss.item())
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_equal_weights_are_no_weights(ranks: int, weight: float) -> None:
    """To the bit where they are a power of two."""
    plain, weighted = SmallTraining(tiny_config(), ranks), SmallTraining(tiny_config(), ranks, weighted=True)
    expected = plain.run(12, lr=0.1)
    assert weighted.run_weighted(12, 0.1, lambda batch: torch.full((batch.size,), weight)) == expected
    assert torch.equal(weighted.model.tables.weight, plain.model.tables.weight)
    assert torch.equal(weighted.model.dense, plain.model.dense)


def test_weighted_shares_add_up_to_the_whole() -> None:
    """The loss is that of the global batch: not the mean of the ranks' own weighted means."""
    config = tiny_config(quant={"method": "none"})
    whole, shared = SmallTraining(config, weighted=True), SmallTraining(config, 3, weighted=True)
    expected, found = whole.run_weighted(12, 0.1, by_a_feature), shared.run_weighted(12, 0.1, by_a_feature)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shared.model.tables.weight, whole.model.tables.weight, rtol=1e-3, atol=1e-5)


def test_a_batch_without_any_weight_teaches_nothing() -> None:
    training = SmallTraining(tiny_config(), weighted=True)
    before = training.model.tables.weight.clone(), training.model.dense.clone()
    assert training.run_weighted(1, 0.1, lambda batch: torch.zeros(batch.size)) == [0.0]
    assert torch.equal(training.model.tables.weight, before[0])
    assert torch.equal(training.model.dense, before[1])


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_what_cannot_be_a_weight_stops_before_anything_changes(value: float) -> None:
    training = SmallTraining(tiny_config(), weighted=True)
    before = training.model.tables.weight.clone()

    def spoiled(batch: Batch) -> Tensor:
        weights = torch.ones(batch.size)
        weights[3] = value
        return weights

    with pytest.raises(BadBatchError, match=f"row 3 of the batch: weight is {value}, not a number from 0 on"):
        training.run_weighted(1, 0.1, spoiled)
    assert torch.equal(training.model.tables.weight, before)
    sound = training.model.sound_rows(
        replace(training.loader.batches(0)[0], weight=spoiled(training.loader.batches(0)[0]))
    )
    assert (~sound).nonzero().view(-1).tolist() == [3]
