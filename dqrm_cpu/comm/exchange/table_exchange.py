"""What the ranks do with the tables' gradients after each backward (section 3.3): everyone ends with the same sum.

A process that simulates N ranks runs the same codec and sums in the same order as N real ranks: the same bits come out.

With overlap the message travels while the step computes what is left of its backward: over a second channel between the
ranks, in a thread of its own, so that it never waits behind the gradients of the MLPs nor they behind it. What travels
and how it is summed stays the same, to the bit.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.codec import (
    Codec,
    Floats,
    Longs,
    MessageLayout,
    layout_of,
    merge_messages,
    require_finite,
)
from dqrm_cpu.comm.exchange.residuals import TableResiduals
from dqrm_cpu.comm.exchange.settings import SentBytes
from dqrm_cpu.comm.transport import Bytes, Transport, sum_in_order
from dqrm_cpu.comm.transports.process_transport import ProcessTransport
from dqrm_cpu.config.rules import DENSE_WIRE_LIMIT_BYTES
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.kernels.types import SparseGrad
from dqrm_cpu.timing.spans import Spans

Finish = Callable[[], SparseGrad]
"""Waits for the end of an exchange that has begun, and returns the sum."""

Words = npt.NDArray[np.int32]
"""Headers of messages."""

_NO_SCALES = np.empty(0, dtype=np.float32)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Done(Generic[T]):
    """The result of an operation, what it sent for other ranks, and when it ended, on the clock of spans."""

    value: T
    bytes_sent: int
    start_ns: int
    end_ns: int


class Channel:
    """Carries out operations between the ranks: at once, or in a thread beside what the caller does next."""

    def __init__(self, transport: Transport, spans: Spans, executor: Executor | None = None) -> None:
        self._transport = transport  # only this channel uses it while an operation is under way
        self._spans = spans
        self._executor = executor  # of one thread, which carries out one operation after the other

    @property
    def is_beside(self) -> bool:
        """Says whether operations run in a thread, so that several may wait for their turn."""
        return self._executor is not None

    def start(self, operation: Callable[[Transport], T], then: Callable[[T, int], R]) -> Callable[[], R]:
        """Starts an operation; the function that it returns waits for the end, and returns what `then` makes of it.

        `then` gets what the operation returned and how many bytes it sent. Without a thread it is called at once:
        before anything else may use the memory that the message came to.
        """
        if self._executor is None:
            with self._spans.wire:
                done = self._run(operation)
            made = then(done.value, done.bytes_sent)
            return lambda: made
        future = self._executor.submit(self._run_beside, operation)

        def finish() -> R:
            since = perf_counter_ns()
            with self._spans.wire:
                done = future.result()
            self._spans.wire_hidden(min(since, done.end_ns) - done.start_ns)
            return then(done.value, done.bytes_sent)

        return finish

    def _run_beside(self, operation: Callable[[Transport], T]) -> _Done[T]:
        """Runs an operation in the other thread, where a failure ends the job: nobody may be waiting for it yet."""
        try:
            with self._spans.wire_beside:
                return self._run(operation)
        except BaseException as error:
            self._transport.abort_on(error)

    def _run(self, operation: Callable[[Transport], T]) -> _Done[T]:
        start_ns, before = perf_counter_ns(), self._transport.bytes_sent
        value = operation(self._transport)
        return _Done(value, self._transport.bytes_sent - before, start_ns, perf_counter_ns())


class TableExchange(Protocol):
    """Sums the gradients of all tables over all ranks, in rank order."""

    @property
    def sent(self) -> SentBytes:
        """Counts the bytes that this rank has sent since the exchange was built."""

    def begin(self, local: Sequence[SparseGrad]) -> Finish:
        """Begins an exchange; before it finishes this one the caller may begin others, then sum the MLPs' gradients.

        `local` holds this rank's gradient; in a world of one process, one for each rank that it simulates.
        """


class SparseTableExchange:
    """A table exchange of the rows looked up, in two collectives for all tables.

    The first gathers counts and abs-max of every rank, the second one message of each.
    """

    def __init__(
        self,
        transport: Transport,
        codec: Codec,
        residuals: TableResiduals | None = None,
        spans: Spans | None = None,
        channel: Channel | None = None,
        numbers: Sequence[int] = (),
    ) -> None:
        """`numbers`: those of the tables in the model, where others have an exchange of their own; empty: all."""
        self._transport = transport
        self._numbers = numbers
        self._codec = codec
        self._residuals = residuals
        self._spans = Spans() if spans is None else spans
        self._channel = Channel(transport, self._spans) if channel is None else channel
        self.sent = SentBytes()

    def begin(self, local: Sequence[SparseGrad]) -> Finish:
        require_gradients(self._transport, len(local))
        before = self._transport.bytes_sent
        with self._spans.quantize_gradients:
            if self._residuals is not None:
                local = [self._residuals.added(slot, grad) for slot, grad in enumerate(local)]
            headers = [header_words(grad, self._codec.absmax(grad)) for grad in local]
        words = gather_words(self._transport, headers, self._spans)
        return self.begin_with(local, words, self._transport.bytes_sent - before)

    def begin_with(self, local: Sequence[SparseGrad], words: Words, header_bytes: int) -> Finish:
        """Begins an exchange of gradients whose headers all ranks know, by a message of so many bytes."""
        dim = local[0].values.shape[1]
        with self._spans.quantize_gradients:
            pointers, scales = self._pointers_and_scales(words)
            messages = [self._encode(slot, grad, scales) for slot, grad in enumerate(local)]
        own = layout_of(local[0], self._codec.value_bytes)
        lengths = [MessageLayout(int(pointer[-1]), dim, self._codec.value_bytes).message_bytes for pointer in pointers]

        def merge(received: Sequence[Bytes], bytes_sent: int) -> SparseGrad:
            self._count(own, header_bytes + bytes_sent)
            with self._spans.merge:
                return merge_messages(self._codec, received, pointers, dim, scales)

        def exchange(transport: Transport) -> Sequence[Bytes]:
            received = _all_messages(transport, messages, lengths)
            # The next dimension's messages come to the same memory, perhaps before these are summed.
            return [part.copy() for part in received] if self._numbers and self._channel.is_beside else received

        return self._channel.start(exchange, merge)

    def _pointers_and_scales(self, words: Words) -> tuple[Longs, Floats]:
        """Reads all headers: where each rank's tables begin among its rows, int64[ranks, T + 1], and scales f32[T]."""
        rule = self._codec.scale_rule
        pointers = np.zeros((words.shape[0], words.shape[2] + 1), dtype=np.int64)
        np.cumsum(words[:, 0], axis=1, out=pointers[:, 1:])
        if rule is None:
            return pointers, _NO_SCALES
        absmax = words[:, 1].view(np.float32)
        require_finite(absmax, "table", self._numbers)
        return pointers, rule.scales(absmax)

    def _encode(self, slot: int, grad: SparseGrad, scales: Floats) -> Bytes:
        size = layout_of(grad, self._codec.value_bytes).message_bytes
        message = self._transport.buffers.take(f"encode.{grad.values.shape[1]}.{slot}", size)
        self._codec.encode(grad, scales, message)
        if self._residuals is not None:
            self._residuals.keep(slot, grad, self._codec.sent(grad, scales, message))
        return message

    def _count(self, own: MessageLayout, num_bytes: int) -> None:
        others = self._transport.size - 1
        indices, values = own.index_bytes * others, own.all_value_bytes * others
        self.sent = self.sent.plus(SentBytes(indices, values, scales=num_bytes - indices - values))


class DenseTableExchange:
    """A table exchange of whole gradients f32[R, D], also where no row was looked up: what others are compared with.

    A row whose sum is 0 everywhere counts as not looked up: weight decay passes it over.
    """

    def __init__(self, transport: Transport, row_offset: Tensor, dim: int, spans: Spans, channel: Channel) -> None:
        num_bytes = int(row_offset[-1]) * dim * 4
        if num_bytes > DENSE_WIRE_LIMIT_BYTES:
            raise ConfigError(
                f"comm.wire dense sends the whole gradient of all tables, {num_bytes / 2**30:.2f} GiB at every step; "
                f"it is made for up to {DENSE_WIRE_LIMIT_BYTES / 2**20:.0f} MiB: set it to sparse, int8 or int16"
            )
        self._transport = transport
        self._row_offset = row_offset
        self._dim = dim
        self._spans = spans
        self._channel = channel
        self.sent = SentBytes()

    def begin(self, local: Sequence[SparseGrad]) -> Finish:
        require_gradients(self._transport, len(local))
        with self._spans.quantize_gradients:
            own = [self._whole(slot, grad) for slot, grad in enumerate(local)]

        def merge(total: Floats, bytes_sent: int) -> SparseGrad:
            self.sent = self.sent.plus(SentBytes(values=bytes_sent))
            with self._spans.merge:
                return self._sparse(total.reshape(-1, self._dim))

        return self._channel.start(lambda transport: sum_over_ranks_(transport, own), merge)

    def _whole(self, slot: int, grad: SparseGrad) -> Floats:
        num_rows, offsets = int(self._row_offset[-1]), self._row_offset.numpy()[:-1]
        buffer = self._transport.buffers.take(f"dense.{self._dim}.{slot}", num_rows * self._dim * 4).view(np.float32)
        buffer[:] = 0
        rows = grad.rows.numpy() + np.repeat(offsets, np.diff(grad.table_ptr.numpy()))
        buffer.reshape(num_rows, self._dim)[rows] = grad.values.numpy()
        return buffer

    def _sparse(self, whole: Floats) -> SparseGrad:
        rows = np.flatnonzero((whole != 0).any(axis=1))
        offsets = self._row_offset.numpy()
        pointer = np.searchsorted(rows, offsets)
        within = (rows - np.repeat(offsets[:-1], np.diff(pointer))).astype(np.int32)
        return SparseGrad(torch.from_numpy(pointer), torch.from_numpy(within), torch.from_numpy(whole[rows]))


def open_channel(transport: Transport, overlap: str, spans: Spans) -> Channel:
    """Opens the channel that `overlap`, a choice of the comm settings, asks for; every rank calls it.

    All ranks come to the same kind of channel.
    """
    if overlap == "off" or not isinstance(transport, ProcessTransport) or transport.size == 1:
        return Channel(transport, spans)
    obstacle = transport.overlap_obstacle()
    if overlap == "on" and obstacle:
        raise ConfigError(f"comm.overlap on is not possible over {transport.name}, {obstacle}: set it to auto or off")
    if not bool(transport.allgather_small(np.array([not obstacle])).all()):
        return Channel(transport, spans)
    twin, executor = transport.second_channel()
    return Channel(twin, spans, executor)


def sum_over_ranks_(transport: Transport, local: Sequence[Floats]) -> Floats:
    """Sums flat gradients over all ranks, in rank order, into local[0], and returns it; `local` as in TableExchange."""
    require_gradients(transport, len(local))
    if len(local) > 1:
        sum_in_order(local, local[0])
    transport.allreduce_(local[0])
    return local[0]


def require_gradients(transport: Transport, count: int) -> None:
    """Raises ValueError unless a process passes one gradient, or as the only process one for each simulated rank."""
    if count < 1 or (count > 1 and transport.size > 1):
        raise ValueError(f"{count} gradients of one process in a world of {transport.size}")


def _all_messages(transport: Transport, local: Sequence[Bytes], lengths: Sequence[int]) -> Sequence[Bytes]:
    """Returns the messages of every rank; one process that simulates them has them all."""
    return transport.allgatherv(local[0], lengths) if len(local) == 1 else local


def header_words(grad: SparseGrad, absmax: Floats | None) -> Words:
    """Returns int32[1 or 2, T]: the rows of each table, and the bits of its largest magnitude."""
    counts = np.diff(grad.table_ptr.numpy()).astype(np.int32)
    return np.stack([counts] if absmax is None else [counts, absmax.view(np.int32)])


def gather_words(transport: Transport, headers: Sequence[Words], spans: Spans) -> Words:
    """Returns the headers of all ranks, int32[ranks, 1 or 2, T]; one process that simulates them has them all."""
    with spans.wire:
        return transport.allgather_small(headers[0]) if len(headers) == 1 else np.stack(headers)
