"""One training step: forward, loss, backward, exchange, update; for one process, many ranks or simulated ranks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dqrm_cpu.comm.exchange.gradient_exchange import GradientShape, TableShape, open_exchange
from dqrm_cpu.comm.exchange.settings import ExchangeSettings, SentBytes
from dqrm_cpu.comm.sharding.row_exchange import Asked, FetchedRows, RowExchange
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.data.batch import BadBatchError, Batch
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.kernels.table_groups import TableGroups
from dqrm_cpu.kernels.types import Bags, SparseGrad
from dqrm_cpu.model.activations import Mode
from dqrm_cpu.model.dlrm import AwaitRows, Dlrm
from dqrm_cpu.model.workspace import DenseGradients
from dqrm_cpu.quant.scale import Scales
from dqrm_cpu.train.optimizers import Optimizer
from dqrm_cpu.train.step_rows import StepRows, Upcoming, lookups


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of a step: the same on every rank, but for `faults`."""

    loss: float  # mean over the global batch, by weights where it has any; NaN of a batch that was skipped
    stop_requested: bool  # on any rank
    bad_ranks: tuple[int, ...] = ()  # real or simulated, whose shares were not sound: the batch was skipped
    faults: tuple[BadBatchError, ...] = ()  # of this process' shares

    @property
    def skipped(self) -> bool:
        """Whether the step left everything as it was."""
        return bool(self.bad_ranks)


_EXACT_EXCHANGE = ExchangeSettings()
_LEAST_WEIGHT = 1e-30  # of a global batch: below, one over it has no place in FP32


class TrainingStep:
    """The training step on preallocated buffers. `micro_batch` is the largest share of a global batch.

    Iterations before `quantized_from` train in FP32. Before every iteration whose number is a multiple of
    `tables_last`, but the first, the tables begin anew. A batch that is not sound raises BadBatchError before anything
    changes, or is left out by every rank where `skips_bad` says so. `weighted`: batches have weights, and the loss is
    sum(weight * loss) / sum(weight) over the global batch.
    """

    def __init__(
        self,
        model: Dlrm,
        scales: Scales,
        optimizer: Optimizer,
        transport: Transport,
        num_shares: int,
        micro_batch: int,
        exchange: ExchangeSettings = _EXACT_EXCHANGE,
        quantized_from: float = 0,
        skips_bad: bool = False,
        weighted: bool = False,
        rows: RowExchange | None = None,
        tables_last: int = 0,
    ) -> None:
        """`rows` fetches those of tables that lie on several ranks; None: each rank has all of them."""
        self._tables_last = tables_last
        self._model = model
        self._rows = None if rows is None else StepRows(rows, model)
        self._spans = model.spans
        self._scales = scales
        self._optimizer = optimizer
        self._quantized_from = quantized_from
        self._transport = transport
        self._skips_bad, self._weighted = skips_bad, weighted
        shape = GradientShape(_table_shapes(model.groups), model.shapes.num_parameters, model.device)
        merge = model.kernels.merge_sparse
        placement = None if rows is None else rows.placement
        self._exchange = open_exchange(exchange, transport, num_shares, shape, merge, self._spans, placement)
        self._workspace = model.workspace(micro_batch)
        self._gradients = [model.gradients() for _ in range(num_shares)]
        # A single rank that is to round its gradient does so: that is how its effect is seen by itself.
        self._alone = transport.size == 1 and num_shares == 1 and self._exchange.is_exact and rows is None

    @property
    def sent(self) -> SentBytes:
        """What this rank handed over for others since the step was built."""
        return self._exchange.sent if self._rows is None else self._exchange.sent.plus(self._rows.exchange.sent)

    def is_quantized_at(self, iteration: int) -> bool:
        """Says whether the model is quantized in this iteration, not only when it is scored."""
        return self._model.table_formula is not None and iteration >= self._quantized_from

    def gather_state(self) -> None:
        """Completes `state` on every rank; all call it, before a checkpoint."""
        self._exchange.gather_state()

    def state(self) -> dict[str, Tensor]:
        """Returns what the step remembers from one call to the next, as a checkpoint holds it."""
        return self._exchange.state()

    def __call__(
        self,
        iteration: int,
        shares: Sequence[Batch],
        global_batch: int,
        lr: float,
        stop_requested: bool,
        upcoming: Upcoming | None = None,
    ) -> StepOutcome:
        """Takes one step. `upcoming`: the shares of the next iteration, which every rank names or none does."""
        with self._spans.data:
            bags, faults = self._checked(shares)
        if self._tables_last and iteration and iteration % self._tables_last == 0:
            self._begin_tables_anew(iteration)
        if self._skips_bad:
            bad_ranks, stop_anywhere = self._agreed(faults, stop_requested)
            if bad_ranks:
                return StepOutcome(math.nan, stop_anywhere, bad_ranks, faults)
        with self._spans.loss:
            loss_share = self._loss_share(shares, global_batch)
        quantized = iteration >= self._quantized_from
        with self._spans.scale:
            scale = self._scale(iteration) if quantized else self._scales.state.scale
        self._model.quantize_weights(quantized, iteration)
        self._model.inputs.mode = Mode.BY_BATCH if quantized else Mode.WATCHED
        for gradients in self._gradients:
            gradients.stop_requested.fill_(stop_requested)
        if self._alone and self._model.straight_through:
            return self._step_alone(iteration, shares[0], bags[0], global_batch, loss_share, scale, lr)
        return self._step_together(iteration, shares, bags, global_batch, loss_share, scale, lr, upcoming)

    def _checked(self, shares: Sequence[Batch]) -> tuple[list[tuple[Bags, ...]], tuple[BadBatchError, ...]]:
        """Returns the lookups of each sound share, and what is wrong with the others where bad batches are skipped."""
        bags, faults = [], []
        for number, batch in enumerate(shares):
            try:
                bags.append(self._model.bags(batch))
            except BadBatchError as error:
                error.share = number
                if not self._skips_bad:
                    raise
                faults.append(error)
        return bags, tuple(faults)

    def _agreed(self, faults: Sequence[BadBatchError], stop_requested: bool) -> tuple[tuple[int, ...], bool]:
        """Agrees on the ranks whose shares are not sound, and whether any rank is to stop; a small message of its own.

        Before the backward: nothing that an exchange remembers may see a batch that is left out.
        """
        if self._transport.size == 1:
            return tuple(error.share for error in faults), stop_requested
        flags = self._transport.allgather_small(np.array([bool(faults), stop_requested], dtype=np.int32))
        return tuple(np.flatnonzero(flags[:, 0]).tolist()), bool(flags[:, 1].any())

    def _loss_share(self, shares: Sequence[Batch], global_batch: int) -> float:
        """Returns what an example of weight 1 contributes to the mean loss; a small message where there are weights.

        The sums of all shares are added in the order of the ranks, real or simulated. Without any weight it is 0.
        """
        if not self._weighted:
            return 1 / global_batch
        mine = [
            0.0 if batch.weight is None else float(batch.weight.cpu().numpy().sum(dtype=np.float64)) for batch in shares
        ]
        total = sum(self._transport.allgather_small(np.array(mine)).ravel().tolist())
        return 1 / total if total > _LEAST_WEIGHT else 0.0

    def _begin_tables_anew(self, iteration: int) -> None:
        """Draws the tables again: nothing that follows from their rows is left but what the MLPs have learned."""
        with self._spans.embedding_update:
            self._model.begin_tables_anew_()
            self._optimizer.forget_rows(iteration)
            self._scales.tables_loaded()

    def _scale(self, iteration: int) -> Tensor:
        self._model.begin_learning_scales()
        return self._scales.for_training(iteration)

    def _step_alone(
        self,
        iteration: int,
        batch: Batch,
        bags: Sequence[Bags],
        global_batch: int,
        loss_share: float,
        scale: Tensor,
        lr: float,
    ) -> StepOutcome:
        gradients, spans = self._gradients[0], self._spans
        self._forward_backward_top(batch, bags, global_batch, loss_share, scale, gradients)
        self._backward_bottom(batch, gradients)
        with spans.loss:
            outcome = _outcome(gradients)
        self._model.inputs.follow(gradients.input_maxima)
        grad_pooled = self._workspace.first(batch.size).grad_pooled
        with spans.embedding_update:
            self._optimizer.update_tables(bags, grad_pooled, lr, self._scales.trackers, iteration)
        with spans.dense_update:
            self._optimizer.update_dense(gradients.parameters, lr)
        return outcome

    def _step_together(
        self,
        iteration: int,
        shares: Sequence[Batch],
        bags: Sequence[tuple[Bags, ...]],
        global_batch: int,
        loss_share: float,
        scale: Tensor,
        lr: float,
        upcoming: Upcoming | None,
    ) -> StepOutcome:
        total, spans = self._gradients[0], self._spans
        sparse: list[list[SparseGrad]] = []
        asked: list[Asked] = []
        for number, (batch, looked_up, gradients) in enumerate(zip(shares, bags, self._gradients, strict=True)):
            self._model.begin_share(self._transport.rank + number)
            fetched = None
            if self._rows is not None:
                fetched = self._rows.begin(iteration, batch, looked_up[0], scale)
            sparse.append(self._table_gradients(batch, looked_up, global_batch, loss_share, scale, gradients, fetched))
            if fetched is not None:
                asked.append(fetched().asked)
            if len(sparse) == len(shares):
                ask_ahead = None if self._rows is None else self._rows.prepare_ahead(iteration + 1, upcoming)
                # The tables' gradients are complete: they travel while the rest of the backward runs.
                finish = self._exchange.begin_tables(sparse, asked, ask_ahead)
            self._backward_bottom(batch, gradients)
        with spans.mlp_exchange:
            self._exchange.mlp.sum_([gradients.flat for gradients in self._gradients])
        merged = finish()
        with spans.loss:
            outcome = _outcome(total)
        self._model.inputs.follow(total.input_maxima)
        with spans.embedding_update:
            # Of tables on several ranks, what was summed by different ways is about different tables.
            for grads in [merged] if self._rows is None else [[grad] for grad in merged]:
                self._optimizer.apply_tables(grads, lr, self._scales.trackers, iteration)
        with spans.dense_update:
            self._optimizer.update_dense(total.parameters, lr)
            self._optimizer.update_scales(total.scales.flat, lr)
        return outcome

    def _table_gradients(
        self,
        batch: Batch,
        bags: Sequence[Bags],
        global_batch: int,
        loss_share: float,
        scale: Tensor,
        gradients: DenseGradients,
        fetched: Callable[[], FetchedRows] | None = None,
    ) -> list[SparseGrad]:
        """Computes the table gradients of one share; leaves what the bottom MLP's backward needs in the workspace.

        Of fetched rows they count among those.
        """
        model = self._model
        rows = None if fetched is None else lookups(fetched)
        self._forward_backward_top(batch, bags, global_batch, loss_share, scale, gradients, rows)
        values = None
        if rows is not None:
            values, own_bags = rows()  # also of a share without examples, for which nobody waited yet
            bags = (own_bags,)
        with self._spans.coalesce:
            pooled = self._workspace.first(batch.size).grad_pooled
            of_rows = [
                model.kernels.coalesce(group.tables if values is None else values, own, grad)
                for group, own, grad in zip(model.groups, bags, pooled, strict=True)
            ]
            model.backward_tables_(of_rows, scale, gradients)
        return of_rows

    def _forward_backward_top(
        self,
        batch: Batch,
        bags: Sequence[Bags],
        global_batch: int,
        loss_share: float,
        scale: Tensor,
        gradients: DenseGradients,
        rows: AwaitRows | None = None,
    ) -> None:
        """Gradients of this share's part of the global mean loss; leaves those of the features in the workspace."""
        if batch.size == 0:
            gradients.parameters.zero_()
            gradients.scales.flat.zero_()
            gradients.input_maxima.zero_()
            gradients.loss.zero_()
            return
        workspace = self._workspace.first(batch.size)
        logits = self._model.forward(batch, bags, scale, workspace, rows)
        with self._spans.loss:
            grad_logits = workspace.grad_logits
            self._model.kernels.click_loss(logits, batch.label, loss_share, gradients.loss, grad_logits, batch.weight)
        self._model.inputs.write_seen(batch.size / global_batch, gradients.input_maxima)
        self._model.backward_top(grad_logits, workspace, gradients)

    def _backward_bottom(self, batch: Batch, gradients: DenseGradients) -> None:
        if batch.size:
            self._model.backward_bottom(self._workspace.first(batch.size), gradients)


def _table_shapes(groups: TableGroups) -> tuple[TableShape, ...]:
    several = len(groups) > 1
    return tuple(
        TableShape(group.tables.row_offset, group.tables.dim, group.numbers if several else ()) for group in groups
    )


def _outcome(gradients: DenseGradients) -> StepOutcome:
    """Reads the scalars before any weight is changed, so that a diverging step leaves the weights as they were."""
    loss, stop = gradients.scalars.tolist()
    if not math.isfinite(loss):
        raise _diverged(f"the loss is {loss}")
    if not gradients.are_finite():
        raise _diverged("a gradient of the MLPs is NaN or infinite")
    return StepOutcome(loss, stop > 0)


def _diverged(what: str) -> TrainingError:
    """Returns the error of a loss that is not finite; the batch is not to blame: it was checked."""
    error = TrainingError(
        f"{what}, of a batch that is sound: training has diverged; go back to an earlier checkpoint with a lower "
        "--train.learning-rate or some --train.warmup-steps"
    )
    error.unanimous = True  # the exchange gave every rank the same numbers
    return error
