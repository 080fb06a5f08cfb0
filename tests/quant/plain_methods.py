"""DLRM under the other methods, in plain torch with autograd: each formula as its paper writes the forward."""

import math

import torch
from torch import Tensor, nn

from dqrm_cpu.config import Config
from dqrm_cpu.model.dlrm import Dlrm
from plain_dlrm import PlainDlrm


def rounded(x: Tensor) -> Tensor:
    """Straight through."""
    return x + (x.round() - x).detach()


def lsq(w: Tensor, s: Tensor, bits: int, num_weights: int) -> Tensor:
    limit = 2 ** (bits - 1)
    factor = 1 / math.sqrt(num_weights * (limit - 1))
    slowed = (s - s * factor).detach() + s * factor  # the value of s, its gradient times the factor
    codes: Tensor = (w / slowed).clamp(-limit, limit - 1)
    return rounded(codes) * slowed


def pact(w: Tensor, a: Tensor, bits: int) -> Tensor:
    scale = a / (2 ** (bits - 1) - 1)
    clipped = torch.minimum(torch.maximum(w, -a), a)
    lost: Tensor = (clipped / scale).round() * scale - clipped
    return clipped + lost.detach()


def dorefa(w: Tensor, largest: Tensor, bits: int) -> Tensor:
    n = 2**bits - 1
    values: Tensor = 2 * rounded(n * (torch.tanh(w) / (2 * torch.tanh(largest)) + 0.5)) / n - 1
    return values


def masked(w: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Uniform, and no gradient for what is saturated."""
    limit = 2 ** (bits - 1)
    codes = (w / scale).round()
    inside = (codes >= -limit) & (codes <= limit - 1)
    passed = torch.where(inside, w, w.detach())
    lost: Tensor = codes.clamp(-limit, limit - 1) * scale - passed
    return passed + lost.detach()


class PlainMethods(PlainDlrm):
    """Scales start as those of the model; a parameter each for every table and layer, where the method learns them."""

    def __init__(self, config: Config, model: Dlrm) -> None:
        super().__init__(config, model)
        learned = model.scales
        self.table_scales = nn.ParameterList(nn.Parameter(scale.clone()) for scale in learned.tables)
        self.layer_scales = nn.ParameterList(nn.Parameter(scale.clone()) for scale in learned.matrices)
        self._position = {
            id(layer): i for i, layer in enumerate([*self.bottom, *self.projections, *self.cross, *self.top])
        }

    def keep_scales_positive(self) -> None:
        """After each update: a learned scale that would pass 0 stays at the smallest one there is."""
        with torch.no_grad():
            for scale in (*self.table_scales, *self.layer_scales):
                scale.clamp_(min=1e-8)

    def quantized_rows(self, rows: Tensor, t: int) -> Tensor:
        quant, table = self.config.quant, self.tables[t]
        largest = table.detach().abs().max()
        match quant.method:
            case "lsq":
                return lsq(rows, self.table_scales[t], quant.embedding_bits, table.numel())
            case "pact":
                return pact(rows, self.table_scales[t], quant.embedding_bits)
            case "dorefa":
                return dorefa(rows, largest, quant.embedding_bits)
        scale = largest / (2 ** (quant.embedding_bits - 1) - 1) * quant.step_width[0]
        return masked(rows, scale, quant.embedding_bits)

    def quantized_weight(self, layer: nn.Linear) -> Tensor:
        quant, w = self.config.quant, layer.weight
        of_matrix = quant.mlp_granularity == "matrix"
        magnitude = w.detach().abs()
        largest = magnitude.max() if of_matrix else magnitude.amax(1, keepdim=True)
        match quant.method:
            case "lsq":
                scale = self.layer_scales[self._position[id(layer)]]
                return lsq(w, scale, quant.mlp_bits, w.numel() // scale.numel())
            case "pact":
                return pact(w, self.layer_scales[self._position[id(layer)]], quant.mlp_bits)
            case "dorefa":
                return dorefa(w, largest, quant.mlp_bits)
        return masked(w, largest / (2 ** (quant.mlp_bits - 1) - 1), quant.mlp_bits)
