"""Metrics of the model over a part of the data, each rank computing its share of the examples."""

from collections.abc import Iterator, Sequence

import torch

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.errors import DataError
from dqrm_cpu.model.activations import Mode
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.quant.liveness import Liveness, liveness
from dqrm_cpu.quant.scale import Scales
from dqrm_cpu.train.metrics import ClickAccumulator, ClickMetrics

CALIBRATION_BATCHES = 32


class Evaluator:
    """Evaluates the model as it would be exported: quantized, with the scales of the weights as they stand."""

    def __init__(self, model: Dlrm, scales: Scales, transport: Transport, micro_batch: int) -> None:
        self._model = model
        self._scales = scales
        self._transport = transport
        self._workspace = model.workspace(micro_batch)

    def __call__(self, *loaders: Loader, quantized: bool = True) -> ClickMetrics:
        """Metrics over all rows of the loaders, the same on every rank and for any number of ranks.

        Not `quantized`: those of the weights as they are.

        Activations are quantized in any case, by their running maxima, where the configuration has bits for them.
        """
        self._model.require_finite_mlps()
        step = self._scales.for_evaluation()
        self._model.quantize_weights(quantized)
        assert self._model.inputs.begun, "activations without scales: nothing was trained, loaded or calibrated"
        self._model.inputs.mode = Mode.BY_RUNNING
        mine = ClickAccumulator()
        for batch in _batches(loaders):
            workspace = self._workspace.first(batch.size)
            logits = self._model.forward(batch, self._model.bags(batch), step, workspace)
            mine.add(logits, batch.label)
        return self._gathered(mine).compute()

    def calibrate(self, loader: Loader) -> None:
        """Running maxima of activations that no training has left any of: the mean of the first batches of `loader`."""
        model, batches = self._model, range(min(loader.num_batches, CALIBRATION_BATCHES))
        if not batches:
            raise DataError(
                "the model's activations have no scales yet, and there are no training rows to find them from; give a "
                "data set that has some, or evaluate with --quant.activation-bits 32"
            )
        step = self._scales.for_evaluation()
        model.quantize_weights()
        model.inputs.mode = Mode.BY_BATCH
        means = torch.zeros_like(model.inputs.running)
        seen = torch.empty_like(means)
        for number in batches:
            for batch in loader.batches(number):
                if batch.size == 0:
                    continue
                model.forward(batch, model.bags(batch), step, model.workspace(batch.size))
                model.inputs.write_seen(batch.size / (loader.global_size(number) * len(batches)), seen)
                means += seen
        of_ranks = torch.from_numpy(self._transport.allgather_small(means.cpu().numpy()))
        model.inputs.follow(of_ranks.sum(0).to(means.device))

    def liveness(self) -> Liveness | None:
        """Of the tables as they would be exported; None in FP32. Reads all of them, on the rank that calls it."""
        formula = self._model.table_formula
        if formula is None:
            return None
        model = self._model
        first_rows = None if model.seed is None else model.first_rows
        return liveness(formula, model.tables, self._scales.for_evaluation(), first_rows)

    def _gathered(self, mine: ClickAccumulator) -> ClickAccumulator:
        if self._transport.size == 1:
            return mine
        gathered = ClickAccumulator()
        for pairs in self._transport.allgatherv(mine.pairs()):
            gathered.add_pairs(pairs)
        return gathered


def _batches(loaders: Sequence[Loader]) -> Iterator[Batch]:
    """This process' shares of all batches, without those that are empty."""
    for loader in loaders:
        for number in range(loader.num_batches):
            yield from (batch for batch in loader.batches(number) if batch.size)
