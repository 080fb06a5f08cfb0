"""Brings the rows that a batch looks up from the ranks that hold them, as codes.

Three messages: how many rows of which table each rank asks of each, their numbers, and the rows. Whoever asked keeps
the order in which it asked, whoever was asked the numbers: gradients go back the same way, without any number.

Which rows a batch wants does not depend on any weight, so that a step may ask for those of the batch that follows while
it computes; the rows themselves leave when they are due, after the update before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.settings import SentBytes
from dqrm_cpu.comm.exchange.table_exchange import Channel
from dqrm_cpu.comm.sharding.placement import Placement
from dqrm_cpu.comm.transport import Bytes, Stretches, Transport
from dqrm_cpu.kernels.row_codes import UniqueRows, decode_rows, encode_rows, row_bytes, unique_rows
from dqrm_cpu.kernels.types import Bags, Tables
from dqrm_cpu.timing.spans import Spans

Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]


class RowsOfRank(NamedTuple):
    """Rows int32[N] of tables as their holder counts them; table t's begin at pointer[t], int64[T + 1]."""

    pointer: Longs
    rows: Ints


@dataclass(frozen=True)
class Asked:
    """What one batch asked of the ranks, and what they asked of this one for theirs."""

    looked_up: UniqueRows
    order: Longs  # of the looked-up rows: by the rank that was asked, those that every rank has last
    num_sent: int  # rows asked of ranks, this one included: the first of `order`
    counts: Longs  # int64[ranks]: how many of each
    requests: tuple[RowsOfRank, ...]  # of each rank to this one


@dataclass(frozen=True)
class FetchedRows:
    """The rows of a batch, each once, and the batch's lookups in them."""

    tables: Tables  # values, quantized already; overwritten by the next fetch
    bags: Bags
    asked: Asked


class RowsToSend(NamedTuple):
    """The outcome of asking: what this process wants of the others, and what they want of it."""

    looked_up: UniqueRows
    wanted: "_Wanted"
    requests: tuple[RowsOfRank, ...]
    bytes_sent: int


Ask = Callable[[], RowsToSend]
"""Waits until every rank has asked."""


class RowExchange:
    """Fetches rows of tables that lie on several ranks; all ranks fetch at once, also for no lookup at all.

    `tables` holds the rows that this process has of each table. Messages travel by `channel`; None: at once.
    """

    def __init__(
        self,
        transport: Transport,
        placement: Placement,
        tables: Tables,
        spans: Spans,
        channel: Channel | None = None,
    ) -> None:
        if placement.world_size != transport.size:
            raise ValueError(f"a placement on {placement.world_size} ranks in a world of {transport.size}")
        self.placement = placement
        self.transport = transport
        self.sent = SentBytes()
        self._tables = tables
        self._spans = spans
        self._channel = Channel(transport, spans) if channel is None else channel
        self._values = torch.empty(0, tables.dim)
        self._row_offset = torch.tensor([0, *placement.table_rows]).cumsum(0)
        self._pieces = _Pieces.of(placement)

    @property
    def is_beside(self) -> bool:
        """Says whether messages travel beside what the caller computes, so that asking early hides something."""
        return self._channel.is_beside

    def fetch(self, bags: Bags, scales: Tensor, bits: int) -> FetchedRows:
        """Brings all rows that the bags look up, as codes of so many bits; scales f32[T]."""
        return self.begin(self.ask(bags), scales, bits)()

    def ask(self, bags: Bags) -> Ask:
        """Begins to tell every rank which of its rows the bags look up; rows may change until `begin`."""
        return self.prepare(bags)()

    def prepare(self, bags: Bags) -> Callable[[], Ask]:
        """Finds which rows of every rank the bags look up; the function that it returns begins to ask for them."""
        with self._spans.gather_quantize:
            looked_up = unique_rows(self._row_offset, bags)
            wanted = self._pieces.sort(looked_up)
            counts = np.ascontiguousarray(wanted.counts[:-1].astype(np.int32))
            out = Stretches.of((4 * counts.sum(axis=1)).tolist())
            # Not of the transport's buffers: whoever fetches in between must not write to what still travels.
            message, first = np.empty(out.num_bytes, dtype=np.uint8), 0
            for part in out.parts(message):
                numbers = part.view(np.int32)
                numbers[:] = wanted.rows[first : first + numbers.size]
                first += numbers.size

        def move(transport: Transport) -> tuple[RowsOfRank, ...]:
            theirs = transport.alltoall(counts).astype(np.int64)
            arrived = transport.alltoallv(message, out, (4 * theirs.sum(axis=1)).tolist())
            return tuple(
                RowsOfRank(_pointer(of_rank), part.view(np.int32).copy())
                for of_rank, part in zip(theirs, arrived, strict=True)
            )

        def to_send(requests: tuple[RowsOfRank, ...], bytes_sent: int) -> RowsToSend:
            return RowsToSend(looked_up, wanted, requests, bytes_sent)

        return lambda: self._channel.start(move, to_send)

    def begin(self, ask: Ask, scales: Tensor, bits: int) -> Callable[[], FetchedRows]:
        """Begins to fetch what was asked for, as the rows are now; the function that it returns waits for them.

        Before it has returned nobody may ask anew.
        """
        looked_up, wanted, requests, bytes_before = ask()
        with self._spans.gather_quantize:
            width = row_bytes(self._tables.dim, bits)
            answers = Stretches.of([width * len(request.rows) for request in requests])
            sent = self.transport.buffers.take("rows.answer", answers.num_bytes)
            for request, part in zip(requests, answers.parts(sent), strict=True):
                self._encode(request, scales, bits, part)
            counts = wanted.counts[:-1].sum(axis=1)
            lengths = (width * counts).tolist()

        def decode(arrived: Sequence[Bytes], bytes_sent: int) -> FetchedRows:
            self._count(wanted, requests, width, bytes_before + bytes_sent)
            with self._spans.gather_quantize:
                values = self._room(looked_up.rows.numel())
                self._decode(wanted, arrived, scales, bits, values)
            asked = Asked(looked_up, wanted.order, int(counts.sum()), counts, requests)
            return FetchedRows(Tables(values, looked_up.table_ptr), looked_up.bags, asked)

        return self._channel.start(lambda transport: transport.alltoallv(sent, answers, lengths), decode)

    def _encode(self, request: RowsOfRank, scales: Tensor, bits: int, out: Bytes) -> None:
        pointer, rows = torch.from_numpy(request.pointer), torch.from_numpy(request.rows)
        encode_rows(self._tables, pointer, rows, scales, bits, out)

    def _decode(self, wanted: "_Wanted", arrived: Sequence[Bytes], scales: Tensor, bits: int, values: Tensor) -> None:
        """Writes every row to its place: those of each rank, then those that are here anyhow."""
        local = RowsOfRank(_pointer(wanted.counts[-1]), wanted.rows[int(wanted.counts[:-1].sum()) :])
        own = self.transport.buffers.take("rows.own", row_bytes(self._tables.dim, bits) * len(local.rows))
        self._encode(local, scales, bits, own)
        first = 0
        for of_rank, part in zip(wanted.counts, [*arrived, own], strict=True):
            pointer = _pointer(of_rank)
            places = wanted.order[first : first + int(pointer[-1])]
            decode_rows(part, torch.from_numpy(pointer), scales, bits, places, values)
            first += len(places)

    def _room(self, num_rows: int) -> Tensor:
        if self._values.shape[0] < num_rows:
            self._values = torch.empty(num_rows + num_rows // 4, self._tables.dim)
        return self._values[:num_rows]

    def _count(self, wanted: "_Wanted", requests: Sequence[RowsOfRank], width: int, num_bytes: int) -> None:
        """Adds what was sent to other ranks: numbers of rows, rows, and the counts before them."""
        rank = self.transport.rank
        asked = int(wanted.counts[:-1].sum() - wanted.counts[rank].sum())
        answered = sum(len(request.rows) for request in requests) - len(requests[rank].rows)
        indices, values = 4 * asked, width * answered
        self.sent = self.sent.plus(SentBytes(indices, values, scales=num_bytes - indices - values))


class _Wanted(NamedTuple):
    """The rows of a batch by the rank that holds them; rows that every rank has count as those of one rank more."""

    order: Longs  # int64[N]: numbers of looked-up rows
    rows: Ints  # int32[N]: as their holder counts them, in that order
    counts: Longs  # int64[ranks + 1, T]


class _Pieces(NamedTuple):
    """The stretches of all tables in the order of their rows, those of replicated tables as of one rank more."""

    first: Longs  # int64[P]: the first row of each, counted through all tables
    rank: Longs  # int64[P]
    table: Longs  # int64[P]
    num_ranks: int
    row_offset: Longs  # int64[T + 1]

    @classmethod
    def of(cls, placement: Placement) -> "_Pieces":
        offset = np.cumsum([0, *placement.table_rows])
        stretches, size = placement.owned, placement.world_size
        table = np.array([stretch.table for stretch in stretches])
        first = offset[table] + np.array([stretch.first_row for stretch in stretches])
        rank = np.array([size if placement.replicated[one.table] else one.rank for one in stretches])
        return cls(first, rank, table, size, offset)

    def sort(self, looked_up: UniqueRows) -> _Wanted:
        """Sorts looked-up rows by the rank that holds them, else as they are."""
        rows, pointer = looked_up.rows.numpy(), looked_up.table_ptr.numpy()
        numbers = rows + np.repeat(self.row_offset[:-1], np.diff(pointer))
        bounds = np.searchsorted(numbers, [*self.first, self.row_offset[-1]])
        sizes = np.diff(bounds)
        within = (numbers - np.repeat(self.first, sizes)).astype(np.int32)
        order = np.argsort(np.repeat(self.rank, sizes).astype(np.int16), kind="stable")
        counts = np.zeros((self.num_ranks + 1, len(pointer) - 1), dtype=np.int64)
        counts[self.rank, self.table] = sizes
        return _Wanted(order, within[order], counts)


def _pointer(counts: Longs) -> Longs:
    pointer = np.zeros(counts.size + 1, dtype=np.int64)
    np.cumsum(counts, out=pointer[1:])
    return pointer
