"""Gradients of the MLPs between ranks: FP32, or a short form that is reduced at the destination (paper B.1).

Reduced at the destination: rank r gets part r of every rank's gradient, sums it, and hands the sum to all, in the short
form again. With error feedback the sender keeps what its codes left out, and the destination what those of the sum did.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.comm.buffers import Bytes
from dqrm_cpu.comm.exchange.mlp_forms import BLOCK, Form
from dqrm_cpu.comm.exchange.residuals import Residuals
from dqrm_cpu.comm.exchange.sent_bytes import SentBytes
from dqrm_cpu.comm.exchange.table_exchange import check_count, exchange_dense_
from dqrm_cpu.comm.transport import Transport, sum_in_order


class Parts(NamedTuple):
    """How a flat gradient is cut: one part a rank, each of whole blocks, zeros behind the last value."""

    length: int
    ranks: int

    @property
    def part(self) -> int:
        return -(-self.length // (self.ranks * BLOCK)) * BLOCK

    @property
    def padded(self) -> int:
        return self.part * self.ranks


class MlpExchange(Protocol):
    """Sums flat gradients f32[P + scalars] over all ranks, in rank order, into local[0]; the scalars stay exact."""

    @property
    def sent(self) -> SentBytes: ...

    def __call__(self, local: Sequence[Tensor]) -> None: ...


class Fp32Mlp:
    """Every bit."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.sent = SentBytes()

    def __call__(self, local: Sequence[Tensor]) -> None:
        before = self._transport.bytes_sent
        exchange_dense_(self._transport, [flat.numpy() for flat in local])
        self.sent = self.sent.plus(SentBytes(mlp=self._transport.bytes_sent - before))


class ShortMlp:
    """BF16 or INT8. `feedback`: what senders kept f32[ranks, padded], and destinations f32[ranks, part]."""

    def __init__(
        self, transport: Transport, form: Form, parts: Parts, feedback: tuple[Residuals, Residuals] | None
    ) -> None:
        self._transport = transport
        self._form = form
        self._parts = parts
        self._kept = None if feedback is None else feedback[0].local
        self._kept_of_sum = None if feedback is None else feedback[1].local
        # Zeros behind the last value stay zeros. Memory of its own at every step would be paid for page by page.
        self._room = torch.zeros(parts.ranks // transport.size, parts.padded)
        self.sent = SentBytes()

    def __call__(self, local: Sequence[Tensor]) -> None:
        check_count(self._transport, len(local))
        before, length = self._transport.bytes_sent, self._parts.length
        wanted = [self._wanted(slot, flat[:length]) for slot, flat in enumerate(local)]
        infos, scalars = self._gather([self._form.info(values) for values in wanted], [flat[length:] for flat in local])
        scales = self._form.scales(infos)
        encoded = [self._form.encode(values, scales) for values in wanted]
        codes = torch.stack(encoded) if len(encoded) > 1 else encoded[0][None]
        if self._kept is not None:
            for kept, values, sent in zip(self._kept, wanted, codes, strict=True):
                torch.sub(values, self._form.decode(sent, scales), out=kept)
        reduced = [self._reduce(slot, part, scales) for slot, part in self._delivered(codes)]
        self._broadcast(reduced, local[0][:length])
        sum_in_order(scalars, local[0][length:].numpy())
        self.sent = self.sent.plus(SentBytes(mlp=self._transport.bytes_sent - before))

    def _wanted(self, slot: int, values: Tensor) -> Tensor:
        """f32[padded]: the gradient, and what its sender kept of the one before."""
        wanted, length = self._room[slot], self._parts.length
        if self._kept is None:
            wanted[:length] = values
        else:
            torch.add(self._kept[slot][:length], values, out=wanted[:length])
        return wanted

    def _gather(self, infos: Sequence[Tensor], scalars: Sequence[Tensor]) -> tuple[Tensor, np.ndarray]:
        """Of all ranks: what the form asked for f32[ranks, n], and the scalars f32[ranks, s]."""
        own = [torch.cat([info, values]).numpy() for info, values in zip(infos, scalars, strict=True)]
        of_all = self._transport.allgather_small(own[0]) if len(own) == 1 else np.stack(own)
        split = infos[0].numel()
        return torch.from_numpy(of_all[:, :split].copy()), of_all[:, split:]

    def _delivered(self, codes: Tensor) -> list[tuple[int, Tensor]]:
        """Which part this process reduces, and its codes [ranks, part]; a process that simulates reduces them all."""
        if codes.shape[0] == 1:
            rows = self._transport.alltoall(codes.view(self._parts.ranks, -1).numpy())
            return [(self._transport.rank, torch.from_numpy(rows))]
        by_part = codes.view(self._parts.ranks, self._parts.ranks, -1)
        return [(part, by_part[:, part]) for part in range(self._parts.ranks)]

    def _reduce(self, part: int, codes: Tensor, scales: Tensor) -> Bytes:
        """The sum of one part, as the message that carries it: scales, then codes."""
        blocks = self._form.scales_of(scales, part, self._parts.ranks)
        total = self._form.sum(codes, blocks)
        slot = part if self._transport.size == 1 else 0
        if self._kept_of_sum is not None:
            total += self._kept_of_sum[slot]
        own_scales = self._form.scales(self._form.info(total)[None], check=False)
        short = self._form.encode(total, own_scales)
        if self._kept_of_sum is not None:
            self._kept_of_sum[slot][:] = total - self._form.decode(short, own_scales)
        return np.concatenate([own_scales.numpy().view(np.uint8), short.numpy().view(np.uint8)])

    def _broadcast(self, messages: Sequence[Bytes], total: Tensor) -> None:
        """Fills f32[P] with every part of the sum, as all understand it."""
        if len(messages) == 1:
            messages = self._transport.allgatherv(messages[0], [messages[0].size] * self._transport.size)
        split = messages[0].size - self._parts.part * self._form.code_bytes
        scales = [torch.from_numpy(message[:split].view(np.float32)) for message in messages]
        self._form.require_finite_sums(torch.stack(scales))
        for part, (message, own) in enumerate(zip(messages, scales, strict=True)):
            target = total[part * self._parts.part :][: self._parts.part]
            codes = torch.from_numpy(message[split:].view(self._form.code_type))
            target[:] = self._form.decode(codes, own)[: target.numel()]
