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


class Layout(NamedTuple):
    """rows int32[N], then values [N, D] of `value_bytes` each; both parts begin and end on 16 bytes."""

    num_rows: int
    dim: int
    value_bytes: int

    @property
    def index_bytes(self) -> int:
        return self.num_rows * 4

    @property
    def all_value_bytes(self) -> int:
        return self.num_rows * self.dim * self.value_bytes

    @property
    def values_start(self) -> int:
        return align(self.index_bytes, PART_ALIGNMENT_BYTES)

    @property
    def message_bytes(self) -> int:
        return self.values_start + align(self.all_value_bytes, PART_ALIGNMENT_BYTES)

    def rows(self, message: Bytes) -> npt.NDArray[np.int32]:
        return message[: self.index_bytes].view(np.int32)

    def values(self, message: Bytes) -> Bytes:
        return message[self.values_start : self.values_start + self.all_value_bytes]

    def clear_padding(self, message: Bytes) -> None:
        """Memory of an earlier message never travels."""
        message[self.index_bytes : self.values_start] = 0
        message[self.values_start + self.all_value_bytes :] = 0


class Codec(Protocol):
    """One form of table gradients. The steps are f32[T]; codecs without a scale rule do not look at them."""

    @property
    def name(self) -> str: ...

    @property
    def value_bytes(self) -> int:
        """Of one value on the wire."""

    @property
    def scale_rule(self) -> ScaleRule | None: ...

    def absmax(self, grad: SparseGrad) -> Floats | None:
        """The largest magnitude in each table f32[T], NaN where a value is; None without a scale rule."""

    def encode(self, grad: SparseGrad, steps: Floats, out: Bytes) -> None:
        """Fills `out`, a message of the gradient's Layout."""

    def sent(self, grad: SparseGrad, steps: Floats, message: Bytes) -> Floats:
        """The values f32[N, D] that the others will understand."""

    def merge(self, messages: Sequence[Bytes], pointers: Longs, dim: int, steps: Floats) -> SparseGrad:
        """The sum of all messages in rank order, in memory of its own; pointers int64[ranks, T + 1]."""


class Fp32Codec:
    """Values as they are."""

    name = "sparse"
    value_bytes = 4
    scale_rule = None

    def __init__(self, merge: Merge) -> None:
        self._merge = merge

    def absmax(self, grad: SparseGrad) -> Floats | None:
        return None

    def encode(self, grad: SparseGrad, steps: Floats, out: Bytes) -> None:
        layout = layout_of(grad, self.value_bytes)
        layout.rows(out)[:] = grad.rows.numpy()
        layout.values(out).view(np.float32)[:] = grad.values.numpy().reshape(-1)
        layout.clear_padding(out)

    def sent(self, grad: SparseGrad, steps: Floats, message: Bytes) -> Floats:
        return grad.values.numpy()

    def merge(self, messages: Sequence[Bytes], pointers: Longs, dim: int, steps: Floats) -> SparseGrad:
        return self._merge(
            [_decoded(message, pointer, dim) for message, pointer in zip(messages, pointers, strict=True)]
        )


def layout_of(grad: SparseGrad, value_bytes: int) -> Layout:
    return Layout(grad.rows.numel(), grad.values.shape[1], value_bytes)


def _decoded(message: Bytes, pointer: Longs, dim: int) -> SparseGrad:
    """Views into the message."""
    layout = Layout(int(pointer[-1]), dim, Fp32Codec.value_bytes)
    values = layout.values(message).view(np.float32).reshape(layout.num_rows, dim)
    return SparseGrad(*(torch.from_numpy(part) for part in (pointer, layout.rows(message), values)))
