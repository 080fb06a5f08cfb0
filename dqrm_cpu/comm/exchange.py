"""What the ranks do with their gradients after each backward (section 3.3): everyone ends with the same sum.

A process that simulates N ranks runs the same codec and sums in the same order as N real ranks: the same bits come out.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dqrm_cpu.comm.accounting import SentBytes
from dqrm_cpu.comm.buffers import Bytes
from dqrm_cpu.comm.codec import Codec, Fp32Codec, Layout, Longs, Merge, layout_of
from dqrm_cpu.comm.residuals import TableResiduals
from dqrm_cpu.comm.scales import Floats, require_finite
from dqrm_cpu.comm.transport import Transport, sum_in_order
from dqrm_cpu.kernels.types import SparseGrad
from dqrm_cpu.profile.spans import Spans

_NO_STEPS = np.empty(0, dtype=np.float32)


class SparseExchange:
    """Two collectives for all tables: counts and abs-max of every rank, then one message of each."""

    def __init__(
        self, transport: Transport, codec: Codec, residuals: TableResiduals | None = None, spans: Spans | None = None
    ) -> None:
        self._transport = transport
        self._codec = codec
        self._residuals = residuals
        self._spans = Spans() if spans is None else spans
        self.sent = SentBytes()

    def __call__(self, local: Sequence[SparseGrad]) -> SparseGrad:
        """The gradients of all ranks, merged in rank order.

        `local` holds this rank's gradient; in a world of one process, one for each rank that it simulates.
        """
        check_count(self._transport, len(local))
        before, dim = self._transport.bytes_sent, local[0].values.shape[1]
        with self._spans.quantize_gradients:
            if self._residuals is not None:
                local = [self._residuals.added(slot, grad) for slot, grad in enumerate(local)]
            own = [_header(grad, self._codec.absmax(grad)) for grad in local]
        with self._spans.wire:
            words = self._transport.allgather_small(own[0]) if len(own) == 1 else np.stack(own)
        with self._spans.quantize_gradients:
            pointers, steps = self._understood(words)
            messages = [self._encode(slot, grad, steps) for slot, grad in enumerate(local)]
        if self._transport.size > 1:
            layouts = [Layout(int(pointer[-1]), dim, self._codec.value_bytes) for pointer in pointers]
            with self._spans.wire:
                messages = self._transport.allgatherv(messages[0], [layout.message_bytes for layout in layouts])
        self._count(layout_of(local[0], self._codec.value_bytes), self._transport.bytes_sent - before)
        with self._spans.merge:
            return self._codec.merge(messages, pointers, dim, steps)

    def _understood(self, words: npt.NDArray[np.int32]) -> tuple[Longs, Floats]:
        """Of all headers: where each rank's tables begin among its rows, int64[ranks, T + 1], each table's step."""
        rule = self._codec.scale_rule
        pointers = np.zeros((words.shape[0], words.shape[2] + 1), dtype=np.int64)
        np.cumsum(words[:, 0], axis=1, out=pointers[:, 1:])
        if rule is None:
            return pointers, _NO_STEPS
        absmax = words[:, 1].view(np.float32)
        require_finite(absmax, "table")
        return pointers, rule.steps(absmax)

    def _encode(self, slot: int, grad: SparseGrad, steps: Floats) -> Bytes:
        size = layout_of(grad, self._codec.value_bytes).message_bytes
        message = self._transport.buffers.take(f"encode.{slot}", size)
        self._codec.encode(grad, steps, message)
        if self._residuals is not None:
            self._residuals.keep(slot, grad, self._codec.sent(grad, steps, message))
        return message

    def _count(self, own: Layout, num_bytes: int) -> None:
        others = self._transport.size - 1
        indices, values = own.index_bytes * others, own.all_value_bytes * others
        self.sent = self.sent.plus(SentBytes(indices, values, scales=num_bytes - indices - values))


def _header(grad: SparseGrad, absmax: Floats | None) -> npt.NDArray[np.int32]:
    """int32[1 or 2, T]: rows of each table, and the bits of its largest magnitude."""
    counts = np.diff(grad.table_ptr.numpy()).astype(np.int32)
    return np.stack([counts] if absmax is None else [counts, absmax.view(np.int32)])


def exchange_sparse(
    transport: Transport, local: Sequence[SparseGrad], merge: Merge, codec: Codec | None = None
) -> SparseGrad:
    """One exchange by itself; as FP32 unless another codec is given."""
    return SparseExchange(transport, Fp32Codec(merge) if codec is None else codec)(local)


def exchange_dense_(transport: Transport, local: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """The sum over all ranks of flat gradients, in rank order, written into local[0] and returned."""
    check_count(transport, len(local))
    if len(local) > 1:
        sum_in_order(local, local[0])
    transport.allreduce_(local[0])
    return local[0]


def check_count(transport: Transport, count: int) -> None:
    """This rank's gradient, or in a world of one process those of all that it simulates."""
    if count < 1 or (count > 1 and transport.size > 1):
        raise ValueError(f"{count} gradients of one process in a world of {transport.size}")
