"""How a sparse gradient becomes the bytes of one message for all tables, and how the ranks' messages become one sum.

Counts and abs-max of every rank travel beforehand in one small gather: both sides know the shape of each message.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from dqrm_cpu.comm.buffers import Bytes, align
from dqrm_cpu.comm.exchange.scales import Floats, ScaleRule
from dqrm_cpu.kernels.types import SparseGrad

PART_ALIGNMENT_BYTES = 16

Longs = npt.NDArray[np.int64]
Merge = Callable[[Sequence[SparseGrad]], SparseGrad]
"""Sums the gradients of all ranks in rank order, in memory of its own."""


class MessageLayout(NamedTuple):
    """Where the parts of a message lie: rows int32[N], then values [N, D]; both begin and end on 16 bytes."""

    num_rows: int
    dim: int
    value_bytes: int  # of one value

    @property
    def index_bytes(self) -> int:
        """The bytes of the rows."""
        return self.num_rows * 4

    @property
    def all_value_bytes(self) -> int:
        """The bytes of all values."""
        return self.num_rows * self.dim * self.value_bytes

    @property
    def values_start(self) -> int:
        """The byte at which the values begin."""
        return align(self.index_bytes, PART_ALIGNMENT_BYTES)

    @property
    def message_bytes(self) -> int:
        """The bytes of the whole message, with its padding."""
        return self.values_start + align(self.all_value_bytes, PART_ALIGNMENT_BYTES)

    def rows(self, message: Bytes) -> npt.NDArray[np.int32]:
        """Returns a view of the rows int32[N]."""
        return message[: self.index_bytes].view(np.int32)

    def values(self, message: Bytes) -> Bytes:
        """Returns a view of the bytes of all values."""
        return message[self.values_start : self.values_start + self.all_value_bytes]

    def clear_padding(self, message: Bytes) -> None:
        """Zeroes what is neither row nor value: memory of an earlier message never travels."""
        message[self.index_bytes : self.values_start] = 0
        message[self.values_start + self.all_value_bytes :] = 0


class Codec(Protocol):
    """A form of table gradients between ranks. Scales are f32[T]; codecs without a scale rule ignore them."""

    @property
    def name(self) -> str:
        """The choice of comm.wire that it carries out."""

    @property
    def value_bytes(self) -> int:
        """The bytes of one value on the wire."""

    @property
    def scale_rule(self) -> ScaleRule | None:
        """How all ranks come to one scale; None where values need none."""

    def absmax(self, grad: SparseGrad) -> Floats | None:
        """Finds the largest magnitude in each table f32[T], NaN where a value is; None without a scale rule."""

    def encode(self, grad: SparseGrad, scales: Floats, out: Bytes) -> None:
        """Fills `out`, a message of the gradient's MessageLayout."""

    def sent(self, grad: SparseGrad, scales: Floats, message: Bytes) -> Floats:
        """Returns the values f32[N, D] that the other ranks will decode from the message of `grad`."""

    def merge(self, messages: Sequence[Bytes], pointers: Longs, dim: int, scales: Floats) -> SparseGrad:
        """Sums all messages in rank order, in memory of its own; pointers int64[ranks, T + 1]."""


class Fp32Codec:
    """The codec that sends values as they are."""

    name = "sparse"
    value_bytes = 4
    scale_rule = None

    def __init__(self, merge: Merge) -> None:
        self._merge = merge

    def absmax(self, grad: SparseGrad) -> Floats | None:
        return None

    def encode(self, grad: SparseGrad, scales: Floats, out: Bytes) -> None:
        layout = layout_of(grad, self.value_bytes)
        layout.rows(out)[:] = grad.rows.numpy()
        layout.values(out).view(np.float32)[:] = grad.values.numpy().reshape(-1)
        layout.clear_padding(out)

    def sent(self, grad: SparseGrad, scales: Floats, message: Bytes) -> Floats:
        return grad.values.numpy()

    def merge(self, messages: Sequence[Bytes], pointers: Longs, dim: int, scales: Floats) -> SparseGrad:
        return self._merge(
            [_decoded(message, pointer, dim) for message, pointer in zip(messages, pointers, strict=True)]
        )


def layout_of(grad: SparseGrad, value_bytes: int) -> MessageLayout:
    """Returns the layout of a gradient's message."""
    return MessageLayout(grad.rows.numel(), grad.values.shape[1], value_bytes)


def _decoded(message: Bytes, pointer: Longs, dim: int) -> SparseGrad:
    """Returns a gradient of views into the message."""
    layout = MessageLayout(int(pointer[-1]), dim, Fp32Codec.value_bytes)
    values = layout.values(message).view(np.float32).reshape(layout.num_rows, dim)
    return SparseGrad(*(torch.from_numpy(part) for part in (pointer, layout.rows(message), values)))
