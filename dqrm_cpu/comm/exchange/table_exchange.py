"""What the ranks do with their gradients after each backward (section 3.3): everyone ends with the same sum.

A process that simulates N ranks runs the same codec and sums in the same order as N real ranks: the same bits come out.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dqrm_cpu.comm.buffers import Bytes
from dqrm_cpu.comm.exchange.codec import Codec, Fp32Codec, Layout, Longs, Merge, layout_of
from dqrm_cpu.comm.exchange.overlap import Carrier, Delivery
from dqrm_cpu.comm.exchange.residuals import TableResiduals
from dqrm_cpu.comm.exchange.scales import Floats, require_finite
from dqrm_cpu.comm.exchange.sent_bytes import SentBytes
from dqrm_cpu.comm.transport import Transport, sum_in_order
from dqrm_cpu.kernels.types import SparseGrad
from dqrm_cpu.profile.spans import Spans

Finish = Callable[[], SparseGrad]
"""Waits for the end of an exchange that has begun, and gives what came of it."""


class TableExchange(Protocol):
    """Gradients of all tables, one for each rank that this process stands for, to their sum over all ranks."""

    @property
    def sent(self) -> SentBytes: ...

    def begin(self, local: Sequence[SparseGrad]) -> Finish: ...


_NO_STEPS = np.empty(0, dtype=np.float32)


class SparseExchange:
    """Two collectives for all tables: counts and abs-max of every rank, then one message of each."""

    def __init__(
        self,
        transport: Transport,
        codec: Codec,
        residuals: TableResiduals | None = None,
        spans: Spans | None = None,
        carrier: Carrier | None = None,
    ) -> None:
        self._transport = transport
        self._codec = codec
        self._residuals = residuals
        self._spans = Spans() if spans is None else spans
        self._carrier = Carrier(transport, self._spans) if carrier is None else carrier
        self.sent = SentBytes()

    def begin(self, local: Sequence[SparseGrad]) -> Finish:
        """`local` holds this rank's gradient; in a world of one process, one for each rank that it simulates.

        What comes of it are the gradients of all ranks, merged in rank order.
        """
        check_count(self._transport, len(local))
        before, dim = self._transport.bytes_sent, local[0].values.shape[1]
        with self._spans.quantize_gradients:
            if self._residuals is not None:
                local = [self._residuals.added(slot, grad) for slot, grad in enumerate(local)]
            headers = [_header(grad, self._codec.absmax(grad)) for grad in local]
        with self._spans.wire:
            words = self._transport.allgather_small(headers[0]) if len(headers) == 1 else np.stack(headers)
        with self._spans.quantize_gradients:
            pointers, steps = self._understood(words)
            messages = [self._encode(slot, grad, steps) for slot, grad in enumerate(local)]
        own, header_bytes = layout_of(local[0], self._codec.value_bytes), self._transport.bytes_sent - before
        lengths = [Layout(int(pointer[-1]), dim, self._codec.value_bytes).message_bytes for pointer in pointers]

        def merged(delivery: Delivery[Sequence[Bytes]]) -> SparseGrad:
            self._count(own, header_bytes + delivery.bytes_sent)
            with self._spans.merge:
                return self._codec.merge(delivery.value, pointers, dim, steps)

        return self._carrier.start(lambda way: _all_messages(way, messages, lengths), merged)

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


def _all_messages(transport: Transport, local: Sequence[Bytes], lengths: Sequence[int]) -> Sequence[Bytes]:
    """Those of every rank; one process that simulates them has them all."""
    return transport.allgatherv(local[0], lengths) if len(local) == 1 else local


def _header(grad: SparseGrad, absmax: Floats | None) -> npt.NDArray[np.int32]:
    """int32[1 or 2, T]: rows of each table, and the bits of its largest magnitude."""
    counts = np.diff(grad.table_ptr.numpy()).astype(np.int32)
    return np.stack([counts] if absmax is None else [counts, absmax.view(np.int32)])


def exchange_sparse(
    transport: Transport, local: Sequence[SparseGrad], merge: Merge, codec: Codec | None = None
) -> SparseGrad:
    """One exchange by itself; as FP32 unless another codec is given."""
    return SparseExchange(transport, Fp32Codec(merge) if codec is None else codec).begin(local)()


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
