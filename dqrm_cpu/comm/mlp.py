"""Gradients of the MLPs between ranks: FP32, or a short form that is reduced at the destination (paper B.1).

Reduced at the destination: rank r gets part r of every rank's gradient, sums it, and hands the sum to all, in the short
form again. With error feedback the sender keeps what its codes left out, and the destination what those of the sum did.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.comm.accounting import SentBytes
from dqrm_cpu.comm.exchange import check_count, exchange_dense_
from dqrm_cpu.comm.mlp_forms import BLOCK, Form
from dqrm_cpu.comm.residuals import Residuals
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

    sent: SentBytes

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
        self.sent = SentBytes()

    def __call__(self, local: Sequence[Tensor]) -> None:
        check_count(self._transport, len(local))
        before, length = self._transport.bytes_sent, self._parts.length
        wanted = [self._wanted(slot, flat[:length]) for slot, flat in enumerate(local)]
        infos, scalars = self._gather([self._form.info(values) for values in wanted], [flat[length:] for flat in local])
        scales = self._form.scales(infos)
        codes = torch.stack([self._form.encode(values, scales) for values in wanted])
        if self._kept is not None:
            for kept, values, sent in zip(self._kept, wanted, codes, strict=True):
                kept[:] = values - self._form.decode(sent, scales)
        total = self._broadcast([self._reduce(slot, part, scales) for slot, part in self._delivered(codes)])
        local[0][:length] = total[:length]
        sum_in_order(scalars, local[0][length:].numpy())
        self.sent = self.sent.plus(SentBytes(mlp=self._transport.bytes_sent - before))

    def _wanted(self, slot: int, values: Tensor) -> Tensor:
        """f32[padded]: the gradient, and what its sender kept of the one before."""
        wanted = torch.zeros(self._parts.padded) if self._kept is None else self._kept[slot].clone()
        wanted[: self._parts.length] += values
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

    def _reduce(self, part: int, codes: Tensor, scales: Tensor) -> np.ndarray:
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

    def _broadcast(self, messages: Sequence[np.ndarray]) -> Tensor:
        """f32[padded]: every part of the sum, as all understand it."""
        of_all = self._transport.allgather_small(messages[0]) if len(messages) == 1 else np.stack(messages)
        split = of_all.shape[1] - self._parts.part * self._form.code_bytes
        scales = torch.from_numpy(of_all[:, :split].copy().view(np.float32))
        codes = torch.from_numpy(of_all[:, split:].copy().view(self._form.code_type))
        self._form.require_finite_sums(scales)
        return torch.cat([self._form.decode(part, own) for part, own in zip(codes, scales, strict=True)])
