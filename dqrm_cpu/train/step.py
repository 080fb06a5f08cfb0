"""One training step: forward, loss, backward, exchange, update; for one process, many ranks or simulated ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dqrm_cpu.comm.exchange.gradient_exchange import GradientShape, open_exchange
from dqrm_cpu.comm.exchange.sent_bytes import SentBytes
from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.data.batch import BadBatchError, Batch
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.kernels.types import Bags, SparseGrad
from dqrm_cpu.model.activations import Mode
from dqrm_cpu.model.dlrm import DenseGradients, Dlrm
from dqrm_cpu.quant.scale import Scales
from dqrm_cpu.train.optimizers import Optimizer


@dataclass(frozen=True)
class StepOutcome:
    """The same on every rank, but for `faults`."""

    loss: float  # mean over the global batch; NaN of a batch that was skipped
    stop_requested: bool  # on any rank
    bad_ranks: tuple[int, ...] = ()  # real or simulated, whose shares were not sound: the batch was skipped
    faults: tuple[BadBatchError, ...] = ()  # of this process' shares

    @property
    def skipped(self) -> bool:
        """Whether the step left everything as it was."""
        return bool(self.bad_ranks)


_EXACT_EXCHANGE = ExchangeSettings()


class TrainingStep:
    """Runs steps on preallocated buffers. `micro_batch` is the largest share of a global batch.

    Iterations before `quantized_from` train in FP32. A batch that is not sound raises BadBatchError before anything
    changes, or is left out by every rank where `skips_bad` says so.
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
    ) -> None:
        self._model = model
        self._spans = model.spans
        self._scales = scales
        self._optimizer = optimizer
        self._quantized_from = quantized_from
        self._transport = transport
        self._skips_bad = skips_bad
        shape = GradientShape(model.tables.row_offset, model.tables.dim, model.shapes.num_parameters, model.device)
        merge = model.kernels.merge_sparse
        self._exchange = open_exchange(exchange, transport, num_shares, shape, merge, self._spans)
        self._workspace = model.workspace(micro_batch)
        self._gradients = [model.gradients() for _ in range(num_shares)]
        # A single rank that is to round its gradient does so: that is how its effect is seen by itself.
        self._alone = transport.size == 1 and num_shares == 1 and self._exchange.is_exact

    @property
    def sent(self) -> SentBytes:
        """What this rank handed over for others since the step was built."""
        return self._exchange.sent

    def is_quantized_at(self, iteration: int) -> bool:
        """Whether the model is quantized in this iteration, not only when it is scored."""
        return self._model.table_formula is not None and iteration >= self._quantized_from

    def gather_state(self) -> None:
        """Completes `state` on every rank; all call it, before a checkpoint."""
        self._exchange.gather_state()

    def state(self) -> dict[str, Tensor]:
        """What the step remembers from one call to the next, as a checkpoint holds it."""
        return self._exchange.state()

    def __call__(
        self, iteration: int, shares: Sequence[Batch], global_batch: int, lr: float, stop_requested: bool
    ) -> StepOutcome:
        with self._spans.data:
            bags, faults = self._checked(shares)
        if self._skips_bad:
            bad_ranks, stop_anywhere = self._agreed(faults, stop_requested)
            if bad_ranks:
                return StepOutcome(math.nan, stop_anywhere, bad_ranks, faults)
        quantized = iteration >= self._quantized_from
        with self._spans.scale:
            step = self._scale(iteration) if quantized else self._scales.state.step
        self._model.quantize_weights(quantized, iteration)
        self._model.inputs.mode = Mode.BY_BATCH if quantized else Mode.WATCHED
        for gradients in self._gradients:
            gradients.stop_requested.fill_(stop_requested)
        if self._alone and self._model.straight_through:
            return self._step_alone(shares[0], bags[0], global_batch, step, lr)
        return self._step_together(shares, bags, global_batch, step, lr)

    def _checked(self, shares: Sequence[Batch]) -> tuple[list[Bags], tuple[BadBatchError, ...]]:
        """The lookups of each share that is sound, and what is wrong with the others where bad batches are skipped."""
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
        """The ranks whose shares are not sound, and whether any rank is to stop; a small message of its own.

        Before the backward: nothing that an exchange remembers may see a batch that is left out.
        """
        if self._transport.size == 1:
            return tuple(error.share for error in faults), stop_requested
        said = self._transport.allgather_small(np.array([bool(faults), stop_requested], dtype=np.int32))
        return tuple(np.flatnonzero(said[:, 0]).tolist()), bool(said[:, 1].any())

    def _scale(self, iteration: int) -> Tensor:
        self._model.begin_learning_scales()
        return self._scales.for_training(iteration)

    def _step_alone(self, batch: Batch, bags: Bags, global_batch: int, step: Tensor, lr: float) -> StepOutcome:
        gradients, spans = self._gradients[0], self._spans
        self._forward_backward_top(batch, bags, global_batch, step, gradients)
        self._backward_bottom(batch, gradients)
        outcome = _outcome(gradients)
        self._model.inputs.follow(gradients.input_maxima)
        grad_features = self._workspace.first(batch.size).grad_features
        with spans.embedding_update:
            self._optimizer.update_tables(bags, grad_features, lr, self._scales.tracker)
        with spans.dense_update:
            self._optimizer.update_dense(gradients.parameters, lr)
        return outcome

    def _step_together(
        self, shares: Sequence[Batch], bags: Sequence[Bags], global_batch: int, step: Tensor, lr: float
    ) -> StepOutcome:
        total, spans = self._gradients[0], self._spans
        sparse: list[SparseGrad] = []
        for batch, looked_up, gradients in zip(shares, bags, self._gradients, strict=True):
            sparse.append(self._table_gradient(batch, looked_up, global_batch, step, gradients))
            if len(sparse) == len(shares):
                # The tables' gradients are complete: they travel while the rest of the backward runs.
                finish = self._exchange.tables.begin(sparse)
            self._backward_bottom(batch, gradients)
        with spans.mlp_exchange:
            self._exchange.mlp.sum_([gradients.flat for gradients in self._gradients])
        merged = finish()
        outcome = _outcome(total)
        self._model.inputs.follow(total.input_maxima)
        with spans.embedding_update:
            self._optimizer.apply_tables(merged, lr, self._scales.tracker)
        with spans.dense_update:
            self._optimizer.update_dense(total.parameters, lr)
            self._optimizer.update_scales(total.scales.flat, lr)
        return outcome

    def _table_gradient(
        self, batch: Batch, bags: Bags, global_batch: int, step: Tensor, gradients: DenseGradients
    ) -> SparseGrad:
        """Of one share; leaves what the bottom MLP's backward needs in the workspace."""
        model = self._model
        self._forward_backward_top(batch, bags, global_batch, step, gradients)
        with self._spans.coalesce:
            of_rows = model.kernels.coalesce(model.tables, bags, self._workspace.first(batch.size).grad_features)
            model.backward_tables_(of_rows, step, gradients)
        return of_rows

    def _forward_backward_top(
        self, batch: Batch, bags: Bags, global_batch: int, step: Tensor, gradients: DenseGradients
    ) -> None:
        """Gradients of this share's part of the global mean loss; leaves those of the features in the workspace."""
        if batch.size == 0:
            gradients.parameters.zero_()
            gradients.scales.flat.zero_()
            gradients.input_maxima.zero_()
            gradients.loss.zero_()
            return
        workspace = self._workspace.first(batch.size)
        logits = self._model.forward(batch, bags, step, workspace)
        with self._spans.loss:
            grad_logits = workspace.grad_logits
            self._model.kernels.click_loss(logits, batch.label, 1 / global_batch, gradients.loss, grad_logits)
        self._model.inputs.write_seen(batch.size / global_batch, gradients.input_maxima)
        self._model.backward_top(grad_logits, workspace, gradients)

    def _backward_bottom(self, batch: Batch, gradients: DenseGradients) -> None:
        if batch.size:
            self._model.backward_bottom(self._workspace.first(batch.size), gradients)


def _outcome(gradients: DenseGradients) -> StepOutcome:
    """Reads the scalars before any weight is changed, so that a diverging step leaves the weights as they were."""
    loss, stop = gradients.scalars.tolist()
    if not math.isfinite(loss):
        raise _diverged(f"the loss is {loss}")
    if not gradients.are_finite():
        raise _diverged("a gradient of the MLPs is NaN or infinite")
    return StepOutcome(loss, stop > 0)


def _diverged(what: str) -> TrainingError:
    """The batch is not to blame: it was checked."""
    error = TrainingError(
        f"{what}, of a batch that is sound: training has diverged; go back to an earlier checkpoint with a lower "
        "--train.learning-rate or some --train.warmup-steps"
    )
    error.unanimous = True  # the exchange gave every rank the same numbers
    return error
