"""The mean of snapshots of the weights, which is the model that a run evaluates, saves and exports.

Training goes on from its own weights and never sees the mean. Until the first snapshot the mean is what they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.quant.scale import Scales

TRAINED = "trained."
"""Stands before the name of a tensor of weights in a checkpoint whose weights are the mean: those that training has."""

_VALUES_AT_ONCE = 1 << 20


def snapshot_steps(config: Config, batches_per_epoch: int) -> frozenset[int]:
    """Returns after which steps, from 1, a snapshot is taken: evenly spaced, the last one where all epochs end.

    What stops a run early, `train.max_steps` among it, does not move them: such a run can be gone on with.
    """
    train = config.train
    total = train.epochs * batches_per_epoch
    after, count = total - int(train.average_from * total), train.average_snapshots
    return frozenset(total - number * after // count for number in range(count))


class WeightAverage:
    """The mean of the snapshots so far of a model's tables and MLPs."""

    def __init__(self, model: Dlrm, scales: Scales, steps: frozenset[int]) -> None:
        """`steps`: after which of them, from 1, a snapshot is taken."""
        self._scales = scales
        self._steps = steps
        self._trained = model.weights()
        self._mean = {name: torch.zeros_like(tensor) for name, tensor in self._trained.items()}
        self.count = 0
        """The snapshots that were taken."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns the mean by the names of weights in a checkpoint, and the weights of training by other ones."""
        return {**self._mean, **{TRAINED + name: tensor for name, tensor in self._trained.items()}}

    def stepped(self, step: int) -> None:
        """Takes a snapshot after that step, from 1, if one is due."""
        if step in self._steps:
            self.count += 1
            for name, tensor in self._trained.items():
                # One that has not changed stays to the bit: which rows were never updated can still be told.
                self._mean[name].lerp_(tensor, 1 / self.count)

    def follow(self) -> None:
        """Makes the mean what the weights are where there is no snapshot yet: before it is saved."""
        if not self.count:
            for name, tensor in self._trained.items():
                self._mean[name].copy_(tensor)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Lends the model the mean as its weights; max|W| of the tables follows."""
        if not self.count:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Has weights and mean change places, few values at a time: nothing as large as a table is held thrice."""
        for name, trained in self._trained.items():
            pairs = (torch.split(tensor.view(-1), _VALUES_AT_ONCE) for tensor in (trained, self._mean[name]))
            for weights, mean in zip(*pairs, strict=True):
                kept = weights.clone()
                weights.copy_(mean)
                mean.copy_(kept)
        self._scales.tables_loaded(self._scales.state.refreshed_at)
