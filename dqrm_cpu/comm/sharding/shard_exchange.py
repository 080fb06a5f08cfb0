"""Takes the gradients of looked-up rows to the ranks that hold the rows, which sum them as replicated tables would.

The rows need no numbers: whoever holds them knows what each rank asked for. Every value is encoded before it is known
where it goes, and the sums are those of the same codec in the order of the ranks, so that each row gets the bits that
it gets where every rank has all tables. Gradients of replicated tables go to everybody, as without placement.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from dqrm_cpu.comm.exchange.codec import Codec, Floats, Longs, layout_of, require_finite
from dqrm_cpu.comm.exchange.settings import SentBytes
from dqrm_cpu.comm.exchange.table_exchange import (
    Channel,
    SparseTableExchange,
    Words,
    gather_words,
    header_words,
    require_gradients,
)
from dqrm_cpu.comm.sharding.placement import Placement
from dqrm_cpu.comm.sharding.row_exchange import Asked
from dqrm_cpu.comm.transport import Bytes, Stretches, Transport
from dqrm_cpu.kernels.types import SparseGrad
from dqrm_cpu.timing.spans import Spans

_NO_SCALES = np.empty(0, dtype=np.float32)


class ShardExchange:
    """Sums gradients of rows over the ranks; each process gets the sums of the rows that it holds.

    `everywhere` exchanges those of replicated tables; None: there are none.
    """

    def __init__(
        self,
        transport: Transport,
        placement: Placement,
        codec: Codec,
        everywhere: SparseTableExchange | None,
        spans: Spans,
        channel: Channel,
    ) -> None:
        self._transport = transport
        self._placement = placement
        self._codec = codec
        self._everywhere = everywhere
        self._spans = spans
        self._channel = channel
        self._sent = SentBytes()

    @property
    def sent(self) -> SentBytes:
        """Counts the bytes that this rank has sent since the exchange was built."""
        return self._sent if self._everywhere is None else self._sent.plus(self._everywhere.sent)

    def begin(
        self, local: Sequence[SparseGrad], asked: Sequence[Asked], in_step: Callable[[], object] | None = None
    ) -> Callable[[], list[SparseGrad]]:
        """Begins an exchange, as `TableExchange.begin` does, of gradients of all rows that were asked for.

        `in_step` is called, before the gradients leave, where the ranks have just waited for each other: another
        message by the same channel is quick there. A thread that waits for a late rank keeps its core from the step.

        The function that it returns waits for the end, and returns sums whose rows count as their holder does: one
        gradient of the tables that lie on several ranks, and one of replicated tables where there are any.
        """
        require_gradients(self._transport, len(local))
        with self._spans.quantize_gradients:
            local = [grad._replace(rows=of_rank.looked_up.rows) for grad, of_rank in zip(local, asked, strict=True)]
            replicated = [] if self._everywhere is None else [self._replicated(grad) for grad in local]
        before = self._transport.bytes_sent
        words = self._words(local, replicated)
        header_bytes = self._transport.bytes_sent - before
        if in_step is not None:
            in_step()
        finishes = [self._begin_placed(local, asked, self._scales(words), header_bytes)]
        if self._everywhere is not None:
            assert words is not None
            finishes.append(self._everywhere.begin_with(replicated, words, 0))
        return lambda: [finish() for finish in finishes]

    def _words(self, local: Sequence[SparseGrad], replicated: Sequence[SparseGrad]) -> Words | None:
        """Gathers, by one small message, the largest magnitude of each table and the rows of replicated ones.

        None where there is nothing to tell: neither scales nor replicated tables.
        """
        if self._codec.scale_rule is None and not replicated:
            return None
        with self._spans.quantize_gradients:
            absmax = [self._codec.absmax(grad) for grad in local]
            headers = [header_words(*pair) for pair in zip(replicated or local, absmax, strict=True)]
        return gather_words(self._transport, headers, self._spans)

    def _scales(self, words: Words | None) -> Floats:
        """Returns the scale of each table f32[T] that all ranks come to; none for FP32."""
        rule = self._codec.scale_rule
        if rule is None or words is None:
            return _NO_SCALES
        absmax = words[:, 1].view(np.float32)
        require_finite(absmax, "table")
        return rule.scales(absmax)

    def _begin_placed(
        self, local: Sequence[SparseGrad], asked: Sequence[Asked], scales: Floats, header_bytes: int
    ) -> Callable[[], SparseGrad]:
        codec, dim = self._codec, local[0].values.shape[1]
        with self._spans.quantize_gradients:
            gradients = zip(local, asked, strict=True)
            messages = [self._message(slot, *of_one, scales) for slot, of_one in enumerate(gradients)]
        width = dim * codec.value_bytes
        # In a world of one process every simulated rank asked only this one.
        senders = asked[0].requests if len(asked) == 1 else [of_rank.requests[0] for of_rank in asked]
        lengths = [width * len(sender.rows) for sender in senders]
        pointers: Longs = np.stack([sender.pointer for sender in senders])

        def move(transport: Transport) -> Sequence[Bytes]:
            if len(messages) > 1:
                return [message[: layout.counts[0]] for message, layout in messages]
            return transport.alltoallv(*messages[0], lengths)

        def merge(received: Sequence[Bytes], bytes_sent: int) -> SparseGrad:
            self._sent = self._sent.plus(SentBytes(values=bytes_sent, scales=header_bytes))
            with self._spans.merge:
                return codec.sum_rows([sender.rows for sender in senders], received, pointers, dim, scales)

        return self._channel.start(move, merge)

    def _message(self, slot: int, grad: SparseGrad, asked: Asked, scales: Floats) -> tuple[Bytes, Stretches]:
        """Encodes a gradient, and puts its values in the order in which their rows were asked for."""
        layout, buffers = layout_of(grad, self._codec.value_bytes), self._transport.buffers
        encoded = buffers.take("shards.encode", layout.message_bytes)
        self._codec.encode(grad, scales, encoded)
        width = layout.dim * layout.value_bytes
        values = layout.values(encoded).reshape(layout.num_rows, width)
        out = Stretches.of((width * asked.counts).tolist())
        message = buffers.take(f"shards.send.{slot}", out.num_bytes)
        first = 0
        for part, count in zip(out.parts(message), asked.counts.tolist(), strict=True):
            if count:
                np.take(values, asked.order[first : first + count], axis=0, out=part.reshape(count, width))
            first += count
        return message, out

    def _replicated(self, grad: SparseGrad) -> SparseGrad:
        """Returns the part of a gradient that is about replicated tables."""
        counts = grad.table_ptr.diff()
        kept = torch.tensor(self._placement.replicated)
        chosen = kept.repeat_interleave(counts)
        pointer = torch.zeros_like(grad.table_ptr)
        torch.cumsum(counts * kept, 0, out=pointer[1:])
        return SparseGrad(pointer, grad.rows[chosen], grad.values[chosen])
