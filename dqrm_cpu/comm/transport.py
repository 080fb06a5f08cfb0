"""The interface of all transports between ranks, the order in which they sum, and the transport of one process.

A float sum depends on its order. Each transport moves bytes only; all sums happen here, in rank order, so that losses
are the same bits over MPI, over gloo and with ranks simulated in one process.
"""

import json
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
import numpy.typing as npt

from dqrm_cpu.base.decode import Json
from dqrm_cpu.errors import CommError, DqrmError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Array = npt.NDArray[Any]

GATHER_LIMIT_BYTES = 32 * 1024
"""Up to this many bytes of all ranks together, one gather is quicker than an exchange of parts and a gather of sums."""

ALIGNMENT_BYTES = 64
"""A cache line, and the widest vector register."""


def align(num_bytes: int, alignment: int = ALIGNMENT_BYTES) -> int:
    """Returns the least multiple of `alignment` that holds `num_bytes`."""
    return -(-num_bytes // alignment) * alignment


class Buffers:
    """Named, growing, aligned byte buffers, so that an exchange allocates nothing once it saw its largest message.

    A view keeps its contents until the same name is asked for again.
    """

    def __init__(self) -> None:
        self._held: dict[str, Bytes] = {}

    def take(self, name: str, num_bytes: int) -> Bytes:
        """Returns uint8[num_bytes] that starts on a cache line; its contents are undefined."""
        held = self._held.get(name)
        if held is None or held.size < num_bytes:
            # A quarter more than asked: sparse messages differ a little from step to step.
            size = align(max(1, num_bytes + num_bytes // 4))
            raw = np.empty(size + ALIGNMENT_BYTES, dtype=np.uint8)
            start = -raw.ctypes.data % ALIGNMENT_BYTES
            held = self._held[name] = raw[start : start + size]
        return held[:num_bytes]


class Stretches(NamedTuple):
    """The parts of a buffer that go to, or come from, each rank: each starts on a cache line, where the last ends."""

    counts: list[int]  # bytes, by rank
    starts: list[int]
    num_bytes: int  # of the whole buffer

    @classmethod
    def of(cls, counts: Sequence[int]) -> "Stretches":
        """Places parts of these lengths one behind the other."""
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + align(count))
        end = starts.pop()
        return cls(list(counts), starts, end)

    @property
    def widths(self) -> list[int]:
        """The bytes from the start of each part to that of the next."""
        return [align(count) for count in self.counts]

    def parts(self, buffer: Bytes) -> list[Bytes]:
        """Returns a view of each part."""
        return [buffer[start : start + count] for start, count in zip(self.starts, self.counts, strict=True)]


def sum_in_order(parts: Sequence[Array] | Array, out: Array) -> None:
    """Computes out = ((parts[0] + parts[1]) + parts[2]) + ...; `out` may be parts[0]."""
    if out is not parts[0]:
        np.copyto(out, parts[0])
    for part in parts[1:]:
        np.add(out, part, out=out)


def abort_message(rank: int, size: int, reason: str) -> str:
    """Returns the line by which a rank says why it ends the job."""
    return f"dqrm-cpu: rank {rank} of {size} ends the job: {reason}"


def write_abort_message(rank: int, size: int, reason: str) -> None:
    """Writes `abort_message` to stderr; the process is gone before anything above could print it."""
    sys.stdout.flush()
    sys.stderr.write(f"{abort_message(rank, size, reason)}\n")
    sys.stderr.flush()


class RankProgress:
    """The progress of a rank: the training step, and the operations that all of its threads have begun."""

    def __init__(self) -> None:
        self.step = 0  # the one under way, 0 before the first; the training loop sets it, so that errors can name it
        self.operations = 0  # begun since the start
        self._lock = threading.Lock()

    def begin_operation(self) -> None:
        """Counts an operation between the ranks."""
        with self._lock:
            self.operations += 1


class Transport(ABC):
    """The way by which arrays move between `size` ranks, which all call the same operations in the same order.

    As a context manager it closes itself; an exception that leaves the block on one rank only ends all ranks.
    `bytes_sent` counts what this rank handed over for other ranks. `reason` says why this transport was chosen.
    """

    def __init__(self, name: str, rank: int, size: int, reason: str) -> None:
        self.name = name
        self.rank = rank
        self.size = size
        self.reason = reason
        self.bytes_sent = 0
        self.progress = RankProgress()
        self.buffers = Buffers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None or self.size == 1 or _is_raised_on_every_rank(error):
            self.close()
        else:
            self.abort_on(error)

    def abort_on(self, error: BaseException) -> NoReturn:
        """Ends all ranks over an error that the other ranks cannot know of."""
        self.abort(_describe(error))

    def broadcast_json(self, value: Json, root: int = 0) -> Json:
        """Returns the value of `root` on every rank; what the others pass is not looked at."""
        payload = np.frombuffer(json.dumps(value).encode() if self.rank == root else b"", dtype=np.uint8)
        if self.size == 1:
            return _parsed(payload)
        length = np.array([payload.size], dtype=np.int64)
        self._broadcast(length, root)
        message = payload.copy() if self.rank == root else np.empty(int(length[0]), dtype=np.uint8)
        self._broadcast(message, root)
        if self.rank == root:
            self.bytes_sent += (length.nbytes + message.nbytes) * (self.size - 1)
        return _parsed(message)

    def allreduce_(self, array: Floats) -> None:
        """Sums over the ranks in rank order, in place: the same bits on every rank and over every transport."""
        flat = _flat(array)
        if self.size == 1 or not flat.size:
            return
        if flat.nbytes * self.size <= GATHER_LIMIT_BYTES:
            sum_in_order(self.allgather_small(flat), flat)
        else:
            self._reduce_at_destination(flat)

    def allgather_small(self, array: Array) -> Array:
        """Returns what each rank passed, array[size, *shape]; all pass the same shape and dtype."""
        gathered = np.empty((self.size, *array.shape), dtype=array.dtype)
        if self.size == 1:
            gathered[0] = array
        elif array.size:
            self._allgather(np.ascontiguousarray(array), gathered)
            self.bytes_sent += array.nbytes * (self.size - 1)
        return gathered

    def allgatherv(self, payload: Bytes, lengths: Sequence[int] | None = None) -> list[Bytes]:
        """Returns the payload of each rank, by rank; lengths may differ, and are exchanged unless all know them.

        The payloads are views that start on a cache line each, into memory that the next call overwrites.
        """
        if payload.dtype != np.uint8 or payload.ndim != 1 or not payload.flags.c_contiguous:
            raise ValueError(f"allgatherv moves contiguous bytes, not {payload.dtype}{list(payload.shape)}")
        if lengths is not None and (len(lengths) != self.size or lengths[self.rank] != payload.size):
            raise ValueError(f"rank {self.rank} sends {payload.size} bytes, but the lengths are {list(lengths)}")
        if self.size == 1:
            return [payload]
        if lengths is None:
            lengths = self.allgather_small(np.array([payload.size], dtype=np.int64))[:, 0].tolist()
        stretches = Stretches.of(lengths)
        received = self.buffers.take("allgatherv", stretches.num_bytes)
        if any(stretches.counts):
            self._allgatherv(payload, received, stretches.counts, stretches.starts)
        self.bytes_sent += payload.nbytes * (self.size - 1)
        return stretches.parts(received)

    def alltoall(self, parts: Array) -> Array:
        """Sends row r of parts[size, n] to rank r; returns in row r what rank r had for this one.

        The result is a view into memory that the next call overwrites.
        """
        if parts.shape[0] != self.size or not parts.flags.c_contiguous:
            raise ValueError(f"an all-to-all of {self.size} ranks takes as many contiguous parts, not {parts.shape[0]}")
        if self.size == 1:
            return parts
        received = self.buffers.take("alltoall", parts.nbytes).view(parts.dtype).reshape(parts.shape)
        self._alltoall(parts.reshape(-1), received.reshape(-1))
        self.bytes_sent += parts[0].nbytes * (self.size - 1)
        return received

    def alltoallv(self, send: Bytes, sent: Stretches, lengths: Sequence[int]) -> list[Bytes]:
        """Sends part r of `send` to rank r; returns what each rank had for this one, by rank, of these lengths.

        `send` has room for all of `sent`, padding with it. The parts returned are views that start on a cache line
        each, into memory that the next call overwrites.
        """
        if send.dtype != np.uint8 or send.shape != (sent.num_bytes,) or not send.flags.c_contiguous:
            raise ValueError(f"alltoallv moves {sent.num_bytes} contiguous bytes, not {send.dtype}{list(send.shape)}")
        own = sent.counts[self.rank]
        if len(sent.counts) != self.size or len(lengths) != self.size or lengths[self.rank] != own:
            raise ValueError(f"rank {self.rank} of {self.size} sends {sent.counts} bytes and receives {list(lengths)}")
        if self.size == 1:
            return sent.parts(send)
        arriving = Stretches.of(lengths)
        received = self.buffers.take("alltoallv", arriving.num_bytes)
        self._alltoallv(send, sent, received, arriving)
        self.bytes_sent += sum(sent.counts) - own
        return arriving.parts(received)

    def _reduce_at_destination(self, flat: Array) -> None:
        """Sums in parts: rank r receives every rank's part r, sums it, and hands the sum to all."""
        part = -(-flat.size // self.size)
        padded = flat
        if part * self.size != flat.size:
            padded = self.buffers.take("allreduce.send", part * self.size * flat.itemsize).view(flat.dtype)
            padded[: flat.size] = flat
            padded[flat.size :] = 0
        received = self.buffers.take("allreduce.receive", part * self.size * flat.itemsize).view(flat.dtype)
        parts = received.reshape(self.size, part)
        self._alltoall(padded, received)
        total = parts[0]
        for other in parts[1:]:
            np.add(total, other, out=total)
        self._allgather(total, padded)
        self.bytes_sent += 2 * part * flat.itemsize * (self.size - 1)
        if padded is not flat:
            flat[:] = padded[: flat.size]

    @abstractmethod
    def barrier(self) -> None:
        """Waits until every rank has called it."""

    @abstractmethod
    def close(self) -> None:
        """Leaves the other ranks without an error; they may go on until they close too."""

    @abstractmethod
    def abort(self, reason: str) -> NoReturn:
        """Writes the reason to stderr and ends all ranks at once."""

    @abstractmethod
    def _broadcast(self, buffer: Array, root: int) -> None: ...

    @abstractmethod
    def _allgather(self, send: Array, receive: Array) -> None:
        """Fills receive[r] with what rank r sends; contiguous arrays of one dtype."""

    @abstractmethod
    def _alltoall(self, send: Array, receive: Array) -> None:
        """Sends part r to rank r, as part `rank` of its receive; equal parts of contiguous arrays of one dtype."""

    @abstractmethod
    def _allgatherv(self, send: Bytes, receive: Bytes, counts: list[int], starts: list[int]) -> None:
        """Fills receive[starts[r] :][: counts[r]] with what rank r sends."""

    @abstractmethod
    def _alltoallv(self, send: Bytes, sent: Stretches, receive: Bytes, arriving: Stretches) -> None:
        """Sends part r to rank r and receives its part for this rank; what lies between parts may travel too."""


class SingleTransport(Transport):
    """The transport of a single process, which may simulate several ranks: it has nothing to move."""

    def __init__(self, reason: str = "one process") -> None:
        super().__init__("single", rank=0, size=1, reason=reason)

    def barrier(self) -> None:
        return

    def close(self) -> None:
        return

    def abort(self, reason: str) -> NoReturn:
        raise CommError(reason)

    def _broadcast(self, buffer: Array, root: int) -> None:
        return

    def _allgather(self, send: Array, receive: Array) -> None:
        receive.reshape(-1)[:] = send.reshape(-1)

    def _alltoall(self, send: Array, receive: Array) -> None:
        receive[:] = send

    def _allgatherv(self, send: Bytes, receive: Bytes, counts: list[int], starts: list[int]) -> None:
        receive[starts[0] : starts[0] + counts[0]] = send

    def _alltoallv(self, send: Bytes, sent: Stretches, receive: Bytes, arriving: Stretches) -> None:
        receive[:] = send


def _flat(array: Floats) -> Array:
    if array.dtype not in (np.float32, np.float64) or not array.flags.c_contiguous or not array.flags.writeable:
        raise ValueError(f"allreduce_ needs a contiguous, writable float32 or float64 array, not {array.dtype}")
    return array.reshape(-1)


def _parsed(message: Bytes) -> Json:
    value: Json = json.loads(message.tobytes())
    return value


def _is_raised_on_every_rank(error: BaseException) -> bool:
    if isinstance(error, DqrmError):
        return error.unanimous
    return isinstance(error, SystemExit) and error.code in (None, 0)


def _describe(error: BaseException) -> str:
    if isinstance(error, DqrmError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return f"out of memory{f' ({error})' if str(error) else ''}; use fewer ranks per host, or a larger machine"
    if isinstance(error, OSError) and error.strerror:
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}; check the file and its disk"
    return "".join(traceback.format_exception(error)).rstrip()
