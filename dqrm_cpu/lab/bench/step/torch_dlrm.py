"""DLRM in plain PyTorch with autograd, the way its reference implementation is built: what users run today.

Fake quantization stands beside it: what peers use instead of our kernels.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from dqrm_cpu.config import Config
from dqrm_cpu.kernels.types import UNQUANTIZED, Tables
from dqrm_cpu.lab.bench.harness.batch_pool import Work
from dqrm_cpu.model.layers import LayerParameters
from dqrm_cpu.model.shapes import LayerShape

_SMALLEST_SCALE = 1e-8

Interact = Callable[[Tensor], Tensor]
"""Features f32[B, F, D] to the dots of each pair below the diagonal, f32[B, F (F - 1) / 2]."""


def indexed_interaction(num_features: int) -> Interact:
    """Selects `Z[:, i, j]`, as the DLRM reference does."""
    i, j = torch.tril_indices(num_features, num_features, -1)

    def interact(features: Tensor) -> Tensor:
        return torch.bmm(features, features.transpose(1, 2))[:, i, j]

    return interact


def flat_interaction(num_features: int) -> Interact:
    """Selects the same pairs by one `index_select` on flattened products: several times faster on a CPU."""
    i, j = torch.tril_indices(num_features, num_features, -1)
    flat = i * num_features + j

    def interact(features: Tensor) -> Tensor:
        return torch.bmm(features, features.transpose(1, 2)).flatten(1).index_select(1, flat)

    return interact


class QuantLinear(nn.Linear):
    """A linear layer that fake-quantizes its weights per output row at every forward (paper 4.2)."""

    bits = UNQUANTIZED

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, fake_quantize_rows(self.weight, self.bits), self.bias)


def make_mlp(shapes: Sequence[LayerShape], initial: Sequence[LayerParameters], bits: int) -> nn.Sequential:
    """Makes copies of these layers, with rectifiers between them."""
    modules: list[nn.Module] = []
    for shape, parameters in zip(shapes, initial, strict=True):
        layer = nn.Linear(shape.inputs, shape.outputs) if bits == UNQUANTIZED else _quantized(shape, bits)
        with torch.no_grad():
            layer.weight.copy_(parameters.weight)
            layer.bias.copy_(parameters.bias)
        modules += [layer, nn.ReLU(inplace=True)] if shape.relu else [layer]
    return nn.Sequential(*modules)


def _quantized(shape: LayerShape, bits: int) -> QuantLinear:
    layer = QuantLinear(shape.inputs, shape.outputs)
    layer.bits = bits
    return layer


class EmbeddingBags:
    """One `nn.EmbeddingBag` per table, whose weights are views of the arena."""

    def __init__(self, tables: Tables, batch_size: int) -> None:
        self._bags = [
            nn.EmbeddingBag.from_pretrained(tables.weight[a:b], freeze=False, mode="sum", sparse=True)
            for a, b in pairwise(tables.row_offset.tolist())
        ]
        self._offsets = torch.arange(batch_size)

    def __call__(self, work: Work) -> list[Tensor]:
        """Returns a pooled f32[B, D] per table."""
        offsets = self._offsets[: work.batch.size]
        return [bag(ids, offsets) for bag, ids in zip(self._bags, work.long_ids, strict=True)]

    def weights(self) -> list[Tensor]:
        """Returns the parameters, one per table."""
        return [bag.weight for bag in self._bags]


class TorchDlrm(nn.Module):
    """A bottom MLP and pooled rows, their interaction, top MLP. `pooled` returns f32[B, T * D] or its T parts."""

    def __init__(
        self,
        config: Config,
        bottom: nn.Module,
        pooled: Callable[[Work], Sequence[Tensor]],
        interact: Interact,
        top: nn.Module,
    ) -> None:
        super().__init__()
        self._shape = (1 + len(config.model.table_rows), config.model.embedding_dim)
        self.bottom, self.top = bottom, top
        self._pooled, self._interact = pooled, interact

    def forward(self, work: Work) -> Tensor:
        """Returns logits f32[B]."""
        x = self.bottom(work.batch.dense)
        features = torch.cat([x, *self._pooled(work)], dim=1).view(-1, *self._shape)
        logits: Tensor = self.top(torch.cat([x, self._interact(features)], dim=1)).view(-1)
        return logits


class _StraightThrough(torch.autograd.Function):
    """Rounding with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, limit: int) -> Tensor:
        return (values * (1 / scale)).round_().clamp_(-limit, limit - 1).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


def fake_quantize(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Rounds to codes of `bits` times `scale`, which broadcasts; its gradient is that of the value (paper 3.1)."""
    quantized: Tensor = _StraightThrough.apply(values, scale, 1 << (bits - 1))  # type: ignore[no-untyped-call]
    return quantized


def symmetric_scale(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Returns the scale of symmetric codes for the larger magnitude of the smallest and the largest weight."""
    absmax = torch.maximum(-low, high)
    return (absmax / ((1 << (bits - 1)) - 1)).clamp_(min=_SMALLEST_SCALE)


def fake_quantize_rows(weight: Tensor, bits: int) -> Tensor:
    """Quantizes with a scale for each output row, searched at every call."""
    low, high = torch.aminmax(weight.detach(), dim=1, keepdim=True)
    return fake_quantize(weight, symmetric_scale(low, high, bits), bits)
