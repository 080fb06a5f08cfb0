"""DLRM and its INT4 training in plain torch with autograd and one table at a time: the oracle of model and step."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.model.dlrm import Dlrm


def fake_quantize(w: Tensor, absmax: Tensor, bits: int) -> Tensor:
    """Straight-through: the value of the quantized weight, the gradient of the identity."""
    limit = 2 ** (bits - 1)
    step = (absmax / (limit - 1)).clamp(min=1e-8)
    quantized = (w * (1 / step)).round().clamp(-limit, limit - 1) * step
    return w + (quantized - w).detach()


class PlainDlrm(nn.Module):
    """Same weights as a `Dlrm`, written the slow and obvious way."""

    def __init__(self, config: Config, model: Dlrm) -> None:
        super().__init__()
        self.config = config
        bounds = model.tables.row_offset.tolist()
        self.tables = nn.ParameterList(nn.Parameter(model.tables.weight[a:b].clone()) for a, b in pairwise(bounds))
        self.bottom = self._mlp(model._bottom)
        self.top = self._mlp(model._top)

    @staticmethod
    def _mlp(mlp) -> nn.ModuleList:
        layers = nn.ModuleList()
        for shape, parameters in zip(mlp.shapes, mlp.layers, strict=True):
            layer = nn.Linear(shape.inputs, shape.outputs)
            layer.weight.data.copy_(parameters.weight)
            layer.bias.data.copy_(parameters.bias)
            layers.append(layer)
        return layers

    def forward(self, batch: Batch) -> Tensor:
        x = self._run(self.bottom, batch.dense, last_relu=True)
        features = torch.stack([x, *(self._pool(t, batch) for t in range(len(self.tables)))], dim=1)
        if self.config.model.interaction == "cat":
            joined = features.flatten(1)
        else:
            rows, columns = torch.tril_indices(features.shape[1], features.shape[1], offset=-1)
            dots = torch.bmm(features, features.transpose(1, 2))[:, rows, columns]
            joined = torch.cat([x, dots], dim=1)
        return self._run(self.top, joined, last_relu=False).view(-1)

    def _run(self, layers: nn.ModuleList, x: Tensor, last_relu: bool) -> Tensor:
        quant = self.config.quant
        for i, layer in enumerate(layers):
            x = self.read_input(x, rectified=i > 0)
            quantized = quant.method != "none" and quant.mlp_bits < 32
            x = x @ (self.quantized_weight(layer) if quantized else layer.weight).t() + self.read_bias(layer.bias)
            if i < len(layers) - 1 or last_relu:
                x = x.relu()
        return x

    def read_input(self, x: Tensor, rectified: bool) -> Tensor:
        bits = self.config.quant.activation_bits
        if bits == 32:
            return x
        low, high = (0, 2**bits - 1) if rectified else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        step = x.detach().abs().max() / high
        return x + ((x / step).round().clamp(low, high) * step - x).detach()

    def read_bias(self, bias: Tensor) -> Tensor:
        bits = self.config.quant.mlp_bias_bits
        return bias if bits == 32 else fake_quantize(bias, bias.detach().abs().max(), bits)

    def _pool(self, t: int, batch: Batch) -> Tensor:
        table, size = self.tables[t], batch.size
        pooled = []
        for b in range(size):
            ids = bag_ids(batch, t, b)
            rows = table[ids.long()]
            if self.config.quant.method != "none":
                rows = self.quantized_rows(rows, t)
            total = rows.sum(0)
            if self.config.model.pooling == "mean" and len(ids):
                total = total / len(ids)
            pooled.append(total)
        return torch.stack(pooled)

    def quantized_weight(self, layer: nn.Linear) -> Tensor:
        """dqrm's; other methods overrule it."""
        return fake_quantize(
            layer.weight, layer.weight.detach().abs().amax(1, keepdim=True), self.config.quant.mlp_bits
        )

    def quantized_rows(self, rows: Tensor, t: int) -> Tensor:
        """dqrm's, of rows of table t."""
        return fake_quantize(rows, self.tables[t].detach().abs().max(), self.config.quant.embedding_bits)

    def loss(self, batch: Batch) -> Tensor:
        return binary_cross_entropy_with_logits(self(batch), batch.label)


def bag_ids(batch: Batch, table: int, sample: int) -> Tensor:
    """The ids of one bag in either layout."""
    if batch.offsets is None:
        return batch.ids[table, sample : sample + 1]
    at = table * batch.size + sample
    return batch.ids[batch.offsets[at] : batch.offsets[at + 1]]
