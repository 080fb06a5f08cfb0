"""Metrics of the model over a part of the data, each rank computing its share of the examples."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.comm.sharding.row_exchange import RowExchange
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.data.batch import BadBatchError, Batch
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.errors import DataError
from dqrm_cpu.kernels.types import Bags, Tables
from dqrm_cpu.metrics.click import ClickAccumulator, ClickMetrics
from dqrm_cpu.model.activations import Mode
from dqrm_cpu.model.dlrm import AwaitRows, Dlrm
from dqrm_cpu.quant.liveness import Liveness, liveness
from dqrm_cpu.quant.scale import Scales
from dqrm_cpu.train.bad_batches import described
from dqrm_cpu.train.shards import Shards

CALIBRATION_BATCHES = 32


class Evaluator:
    """Evaluates the model as it would be exported: quantized, with the scales of the weights as they stand.

    A row that is not sound is an error, since a metric over fewer rows than asked for would mislead; where `skips_bad`
    says so it is left out, and counted in the metrics.
    """

    def __init__(
        self,
        model: Dlrm,
        scales: Scales,
        transport: Transport,
        micro_batch: int,
        skips_bad: bool = False,
        rows: RowExchange | None = None,
        shards: Shards | None = None,
    ) -> None:
        """`rows` fetches those of tables that lie on several ranks, as `shards` says; None: each rank has all."""
        self._rows = rows
        self._shards = shards
        self._model = model
        self._scales = scales
        self._transport = transport
        self._skips_bad = skips_bad
        self._workspace = model.workspace(micro_batch)

    def __call__(
        self,
        *loaders: Loader,
        quantized: bool = True,
        advance: Callable[[int], object] | None = None,
        at_least: Tensor | None = None,
    ) -> ClickMetrics:
        """Computes metrics over all rows of the loaders, the same on every rank and for any number of ranks.

        Not `quantized`: those of the weights as they are. `advance` is called with the rows that this rank has scored.
        `at_least`, f32[T]: what max|W| of the tables is taken to be at least, where their scales are found from it.

        Activations are quantized in any case, by their running maxima, where the configuration has bits for them.
        """
        return self.predictions(*loaders, quantized=quantized, advance=advance, at_least=at_least).compute()

    def predictions(
        self,
        *loaders: Loader,
        quantized: bool = True,
        keys: Sequence[int] = (),
        advance: Callable[[int], object] | None = None,
        at_least: Tensor | None = None,
    ) -> ClickAccumulator:
        """Collects logits and labels of all rows of the loaders, and their ids in the tables `keys`, on every rank.

        Logits are corrected for the rows without a click that training did not see and the loaders have.
        """
        self._model.require_finite_mlps()
        scale = self._scales.for_evaluation(at_least)
        self._model.quantize_weights(quantized)
        assert self._model.inputs.begun, "activations without scales: nothing was trained, loaded or calibrated"
        self._model.inputs.mode = Mode.BY_RUNNING
        weighted = any(loader.is_weighted for loader in loaders)
        mine = ClickAccumulator(num_keys=len(keys), weighted=weighted)
        for batch, bags, skipped, correction in self._all_sound(loaders):
            mine.skipped_rows += skipped
            rows = self._begin_rows(bags, scale)
            if batch.size:
                logits = self._model.forward(batch, bags, scale, self._workspace.first(batch.size), rows)
                corrected = logits + correction if correction else logits
                mine.add(corrected, batch.label, batch.single_ids(keys) if keys else None, batch.weight)
            elif rows is not None:
                rows()
            if advance is not None:
                advance(batch.size)
        return self._gathered(mine, len(keys), weighted)

    def calibrate(self, loader: Loader) -> None:
        """Sets the activations' running maxima where training left none: the mean of the first batches of `loader`."""
        model, batches = self._model, range(min(loader.num_batches, CALIBRATION_BATCHES))
        if not batches:
            raise DataError(
                "the model's activations have no scales yet, and there are no training rows to find them from; give a "
                "data set that has some, or evaluate with --quant.activation-bits 32"
            )
        scale = self._scales.for_evaluation()
        model.quantize_weights()
        model.inputs.mode = Mode.BY_BATCH
        means = torch.zeros_like(model.inputs.running)
        seen = torch.empty_like(means)
        for number in batches:
            for batch, bags, _ in self._sound(loader, number):
                rows = self._begin_rows(bags, scale)
                if batch.size == 0:
                    if rows is not None:
                        rows()
                    continue
                model.forward(batch, bags, scale, model.workspace(batch.size), rows)
                model.inputs.write_seen(batch.size / (loader.global_size(number) * len(batches)), seen)
                means += seen
        of_ranks = torch.from_numpy(self._transport.allgather_small(means.cpu().numpy()))
        model.inputs.follow(of_ranks.sum(0).to(means.device))

    def _begin_rows(self, bags: tuple[Bags, ...], scale: Tensor) -> AwaitRows | None:
        """Begins to fetch the rows of a batch, which all ranks do; None: they are in the model's tables."""
        if self._rows is None:
            return None
        finish = self._rows.begin(self._rows.ask(bags[0]), scale, self._model.lookup_bits)

        def rows() -> tuple[Tables, Bags]:
            fetched = finish()
            return fetched.tables, fetched.bags

        return rows

    def liveness(self) -> Liveness | None:
        """Counts what lives of the tables as they would be exported; None in FP32.

        Each rank reads the tables that it holds: rank 0 all of them, or every rank its own, where all call it.
        """
        formula = self._model.table_formula
        if formula is None:
            return None
        model = self._model
        first_rows = None if model.seed is None else model.first_rows
        total = None if self._shards is None else self._shards.total
        return liveness(formula, model.groups, self._scales.for_evaluation(), first_rows, total)

    def _all_sound(self, loaders: Sequence[Loader]) -> Iterator[tuple[Batch, tuple[Bags, ...], int, float]]:
        """Yields what `_sound` does of all batches, and the correction of their logits."""
        for loader in loaders:
            correction = self._model.logit_correction(loader.keep_rate)
            for number in range(loader.num_batches):
                for batch, bags, skipped in self._sound(loader, number):
                    yield batch, bags, skipped, correction

    def _sound(self, loader: Loader, number: int) -> Iterator[tuple[Batch, tuple[Bags, ...], int]]:
        """This process' shares of a global batch, their lookups, and how many rows of them were left out."""
        for share, batch in enumerate(loader.batches(number)):
            try:
                yield batch, self._model.bags(batch), 0
            except BadBatchError as error:
                error.share = share
                if not self._skips_bad:
                    raise DataError(
                        f"{described(error, loader, number)}; correct the data set, or leave such rows out of the "
                        "metrics with --train.on-bad-batch skip"
                    ) from error
                sound = self._model.sound_rows(batch)
                rest = batch.only(sound)
                yield rest, self._model.bags(rest), batch.size - rest.size

    def _gathered(self, mine: ClickAccumulator, num_keys: int, weighted: bool) -> ClickAccumulator:
        if self._transport.size == 1:
            return mine
        gathered = ClickAccumulator(num_keys=num_keys, weighted=weighted)
        if self._skips_bad:
            skipped = self._transport.allgather_small(np.array([mine.skipped_rows], dtype=np.int64))
            gathered.skipped_rows = int(skipped.sum())
        for pairs in self._transport.allgatherv(mine.pairs()):
            gathered.add_pairs(pairs)
        return gathered
