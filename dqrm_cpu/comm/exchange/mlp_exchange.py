"""Gradients of the MLPs between ranks: FP32, or a short form that is reduced at the destination (paper B.1).

Reduced at the destination: rank r gets part r of every rank's gradient, sums it, and hands the sum to all, in the short
form again. With error feedback the sender keeps what its codes left out, and the destination what those of the sum did.

The short forms are BF16, and INT8 with a scale for each block of values. They are elementwise work only, or sums of
integers: the same bits whatever the number of threads.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.codec import ScaleRule, require_finite
from dqrm_cpu.comm.exchange.residuals import Residuals
from dqrm_cpu.comm.exchange.settings import SentBytes
from dqrm_cpu.comm.exchange.table_exchange import require_gradients, sum_over_ranks_
from dqrm_cpu.comm.transport import Bytes, Transport, sum_in_order

BLOCK = 1024
"""Values under one scale; lengths are multiples of it."""


class MlpForm(Protocol):
    """A short form of MLP gradients. Codes are arrays of `code_type`, scales f32[values / BLOCK] or empty."""

    @property
    def code_type(self) -> type[np.int8] | type[np.int16]:
        """The type of a code."""

    @property
    def code_bytes(self) -> int:
        """The bytes of a code."""

    def info(self, values: Tensor) -> Tensor:
        """Returns what the ranks must know of each other's values before they encode them."""

    def scales(self, infos: Tensor, check: bool = True) -> Tensor:
        """Computes scales from the infos of all ranks; with `check`, values that are not finite raise on all ranks."""

    def scales_of(self, scales: Tensor, part: int, parts: int) -> Tensor:
        """Returns the scales of one of equal parts."""

    def encode(self, values: Tensor, scales: Tensor) -> Tensor:
        """Rounds values f32[n] to codes [n]."""

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Returns the values f32[n] of codes [n]."""

    def sum(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Sums codes [ranks, n] to f32[n], in rank order."""

    def require_finite_sums(self, scales: Tensor) -> None:
        """Raises where the sum of a part, which came with these scales [parts, n], is not finite."""


class Int8Form:
    """The form of integers of +-127 under one scale for each block, which all ranks share; summed in int32."""

    code_type = np.int8
    code_bytes = 1

    def __init__(self, rule: ScaleRule) -> None:
        self._rule = rule
        self._limit = rule.limit

    def info(self, values: Tensor) -> Tensor:
        return values.view(-1, BLOCK).abs().amax(1)

    def scales(self, infos: Tensor, check: bool = True) -> Tensor:
        if check:
            require_finite(infos.numpy(), "MLP block")
        return torch.from_numpy(self._rule.scales(infos.numpy()))

    def scales_of(self, scales: Tensor, part: int, parts: int) -> Tensor:
        return scales.view(parts, -1)[part]

    def encode(self, values: Tensor, scales: Tensor) -> Tensor:
        codes = (values.view(-1, BLOCK) / scales[:, None]).round_().clamp_(-self._limit, self._limit)
        return codes.to(torch.int8).view(-1)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        return (codes.view(-1, BLOCK) * scales[:, None]).view(-1)

    def sum(self, codes: Tensor, scales: Tensor) -> Tensor:
        return self.decode(codes.sum(0, dtype=torch.int32), scales)

    def require_finite_sums(self, scales: Tensor) -> None:
        require_finite(scales.numpy(), "the sum of MLP block")


class Bf16Form:
    """The form of values rounded to BF16, summed in FP32; values that are not finite stay what they are."""

    code_type = np.int16  # NumPy has no BF16, and transports only move bits
    code_bytes = 2

    def info(self, values: Tensor) -> Tensor:
        return torch.empty(0)

    def scales(self, infos: Tensor, check: bool = True) -> Tensor:
        return torch.empty(0)

    def scales_of(self, scales: Tensor, part: int, parts: int) -> Tensor:
        return scales

    def encode(self, values: Tensor, scales: Tensor) -> Tensor:
        return values.bfloat16().view(torch.int16)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        return codes.view(torch.bfloat16).float()

    def sum(self, codes: Tensor, scales: Tensor) -> Tensor:
        total = self.decode(codes[0].contiguous(), scales)
        for other in codes[1:]:
            total += self.decode(other.contiguous(), scales)
        return total

    def require_finite_sums(self, scales: Tensor) -> None:
        return


class MlpParts(NamedTuple):
    """The parts of a flat gradient: one a rank, each of whole blocks, zeros behind the last value."""

    length: int
    ranks: int

    @property
    def part(self) -> int:
        """The values of one part."""
        return -(-self.length // (self.ranks * BLOCK)) * BLOCK

    @property
    def padded(self) -> int:
        """The values of all parts."""
        return self.part * self.ranks


class MlpExchange(Protocol):
    """Sums flat gradients of the MLPs over all ranks, in rank order."""

    @property
    def sent(self) -> SentBytes:
        """Counts the bytes that this rank has sent since the exchange was built."""

    def sum_(self, local: Sequence[Tensor]) -> None:
        """Sums f32[P + scalars] over all ranks into local[0]; the scalars stay exact. `local` as in TableExchange."""


class Fp32MlpExchange:
    """An MLP exchange that sends every bit."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.sent = SentBytes()

    def sum_(self, local: Sequence[Tensor]) -> None:
        before = self._transport.bytes_sent
        sum_over_ranks_(self._transport, [flat.numpy() for flat in local])
        self.sent = self.sent.plus(SentBytes(mlp=self._transport.bytes_sent - before))


class ShortMlpExchange:
    """An MLP exchange in BF16 or INT8.

    `feedback` holds what senders kept f32[ranks, padded], and what destinations did f32[ranks, part].
    """

    def __init__(
        self, transport: Transport, form: MlpForm, parts: MlpParts, feedback: tuple[Residuals, Residuals] | None
    ) -> None:
        self._transport = transport
        self._form = form
        self._parts = parts
        self._kept = None if feedback is None else feedback[0].local
        self._kept_of_sum = None if feedback is None else feedback[1].local
        # Zeros behind the last value stay zeros. Memory of its own at every step would be paid for page by page.
        self._padded = torch.zeros(parts.ranks // transport.size, parts.padded)
        self.sent = SentBytes()

    def sum_(self, local: Sequence[Tensor]) -> None:
        require_gradients(self._transport, len(local))
        before, length = self._transport.bytes_sent, self._parts.length
        wanted = [self._wanted(slot, flat[:length]) for slot, flat in enumerate(local)]
        infos, scalars = self._gather([self._form.info(values) for values in wanted], [flat[length:] for flat in local])
        scales = self._form.scales(infos)
        encoded = [self._form.encode(values, scales) for values in wanted]
        codes = torch.stack(encoded) if len(encoded) > 1 else encoded[0][None]
        if self._kept is not None:
            for kept, values, sent in zip(self._kept, wanted, codes, strict=True):
                torch.sub(values, self._form.decode(sent, scales), out=kept)
        reduced = [self._reduce(slot, part, scales) for slot, part in self._exchange_parts(codes)]
        self._gather_sums(reduced, local[0][:length])
        sum_in_order(scalars, local[0][length:].numpy())
        self.sent = self.sent.plus(SentBytes(mlp=self._transport.bytes_sent - before))

    def _wanted(self, slot: int, values: Tensor) -> Tensor:
        """Returns f32[padded]: the gradient, and what its sender kept of the one before."""
        wanted, length = self._padded[slot], self._parts.length
        if self._kept is None:
            wanted[:length] = values
        else:
            torch.add(self._kept[slot][:length], values, out=wanted[:length])
        return wanted

    def _gather(self, infos: Sequence[Tensor], scalars: Sequence[Tensor]) -> tuple[Tensor, np.ndarray]:
        """Returns the infos f32[ranks, n] and the scalars f32[ranks, s] of all ranks."""
        own = [torch.cat([info, values]).numpy() for info, values in zip(infos, scalars, strict=True)]
        of_all = self._transport.allgather_small(own[0]) if len(own) == 1 else np.stack(own)
        split = infos[0].numel()
        return torch.from_numpy(of_all[:, :split].copy()), of_all[:, split:]

    def _exchange_parts(self, codes: Tensor) -> list[tuple[int, Tensor]]:
        """Returns the part that this process reduces, and its codes [ranks, part]; one that simulates reduces all."""
        if codes.shape[0] == 1:
            rows = self._transport.alltoall(codes.view(self._parts.ranks, -1).numpy())
            return [(self._transport.rank, torch.from_numpy(rows))]
        by_part = codes.view(self._parts.ranks, self._parts.ranks, -1)
        return [(part, by_part[:, part]) for part in range(self._parts.ranks)]

    def _reduce(self, part: int, codes: Tensor, scales: Tensor) -> Bytes:
        """Sums one part; returns the message that carries the sum: scales, then codes."""
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

    def _gather_sums(self, messages: Sequence[Bytes], total: Tensor) -> None:
        """Fills f32[P] with every part of the sum, as all ranks decode it."""
        if len(messages) == 1:
            messages = self._transport.allgatherv(messages[0], [messages[0].size] * self._transport.size)
        split = messages[0].size - self._parts.part * self._form.code_bytes
        scales = [torch.from_numpy(message[:split].view(np.float32)) for message in messages]
        self._form.require_finite_sums(torch.stack(scales))
        for part, (message, own) in enumerate(zip(messages, scales, strict=True)):
            target = total[part * self._parts.part :][: self._parts.part]
            codes = torch.from_numpy(message[split:].view(self._form.code_type))
            target[:] = self._form.decode(codes, own)[: target.numel()]
