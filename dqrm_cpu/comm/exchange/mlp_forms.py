"""Short forms of MLP gradients: BF16, and INT8 with a scale for each block of values.

Elementwise work only, or sums of integers: the same bits whatever the number of threads.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.scales import ScaleRule, require_finite

BLOCK = 1024
"""Values under one scale; lengths are multiples of it."""


class Form(Protocol):
    """Codes travel as arrays of `code_type`. Scales are f32[values / BLOCK], or empty where a form has none."""

    @property
    def code_type(self) -> type[np.int8] | type[np.int16]: ...

    @property
    def code_bytes(self) -> int: ...

    def info(self, values: Tensor) -> Tensor:
        """What the ranks must know of each other's values before they encode them."""

    def scales(self, infos: Tensor, check: bool = True) -> Tensor:
        """From the infos of all ranks; with `check`, values that are not finite raise, on all ranks alike."""

    def scales_of(self, scales: Tensor, part: int, parts: int) -> Tensor:
        """Those of one of equal parts."""

    def encode(self, values: Tensor, scales: Tensor) -> Tensor: ...

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor: ...

    def sum(self, codes: Tensor, scales: Tensor) -> Tensor:
        """codes [ranks, n] to their sum f32[n], in rank order."""

    def require_finite_sums(self, scales: Tensor) -> None:
        """Raises where the sum of a part, which came with these scales [parts, n], is not finite."""


class Int8Form:
    """Integers of +-127 under one step for each block, which all ranks share; summed in int32."""

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
        return torch.from_numpy(self._rule.steps(infos.numpy()))

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
    """Every value rounded to BF16; summed in FP32. Values that are not finite stay what they are."""

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
