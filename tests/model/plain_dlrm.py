"""DLRM or DCNv2 and INT4 training in plain torch with autograd, one table at a time: the oracle of model and step."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.linear_layers import LinearLayers


def fake_quantize(w: Tensor, absmax: Tensor, bits: int) -> Tensor:
    """Straight-through: the value of the quantized weight, the gradient of the identity."""
    limit = 2 ** (bits - 1)
    scale = (absmax / (limit - 1)).clamp(min=1e-8)
    quantized: Tensor = (w * (1 / scale)).round().clamp(-limit, limit - 1) * scale
    return w + (quantized - w).detach()


class PlainDlrm(nn.Module):
    """Same weights as a `Dlrm`, written the slow and obvious way."""

    def __init__(self, config: Config, model: Dlrm) -> None:
        super().__init__()
        self.config = config
        self.tables = nn.ParameterList(nn.Parameter(weight.clone()) for weight in model.groups.weights)
        self.projections = self._layers(model._projections)
        self.bottom = self._layers(model._bottom)
        self.cross = self._layers(model._cross)
        self.top = self._layers(model._top)

    @staticmethod
    def _layers(part: LinearLayers) -> nn.ModuleList:
        layers = nn.ModuleList()
        for parameters in part.layers:
            outputs, inputs = parameters.weight.shape
            layer = nn.Linear(inputs, outputs, bias=parameters.bias.numel() > 0)
            layer.weight.data.copy_(parameters.weight)
            if parameters.bias.numel():
                layer.bias.data.copy_(parameters.bias)
            layers.append(layer)
        return layers

    def forward(self, batch: Batch) -> Tensor:
        x = self._run(self.bottom, batch.dense, last_relu=True)
        features = torch.stack([x, *self._vectors(batch)], dim=1)
        if self.config.model.interaction in ("cat", "cross"):
            joined = self._crossed(features.flatten(1))
        else:
            rows, columns = torch.tril_indices(features.shape[1], features.shape[1], offset=-1)
            dots = torch.bmm(features, features.transpose(1, 2))[:, rows, columns]
            joined = torch.cat([x, dots], dim=1)
        return self._run(self.top, joined, last_relu=False).view(-1)

    def _vectors(self, batch: Batch) -> list[Tensor]:
        """One for each table; where rows have another width than the interaction, its own matrix times the sum."""
        projections, vectors = iter(self.projections), []
        for t, table in enumerate(self.tables):
            pooled = self._pool(t, batch)
            if table.shape[1] != self.config.model.embedding_dim:
                pooled = self._linear(next(projections), pooled, rectified=False)
            vectors.append(pooled)
        return vectors

    def _run(self, layers: nn.ModuleList, x: Tensor, last_relu: bool) -> Tensor:
        for i, layer in enumerate(layers):
            x = self._linear(layer, x, rectified=i > 0)
            if i < len(layers) - 1 or last_relu:
                x = x.relu()
        return x

    def _crossed(self, first: Tensor) -> Tensor:
        """DCNv2: x <- x_0 * (W x + b) + x for every layer, W = V U where the rank is low."""
        x, matrices = first, 2 if self.config.model.cross_rank else 1
        for at in range(0, len(self.cross), matrices):
            crossed = x
            for layer in self.cross[at : at + matrices]:
                crossed = self._linear(layer, crossed, rectified=False)
            x = first * crossed + x
        return x

    def _linear(self, layer: nn.Module, x: Tensor, rectified: bool) -> Tensor:
        quant = self.config.quant
        assert isinstance(layer, nn.Linear)
        quantized = quant.method != "none" and quant.mlp_bits < 32
        y = self.read_input(x, rectified) @ (self.quantized_weight(layer) if quantized else layer.weight).t()
        return y if layer.bias is None else y + self.read_bias(layer.bias)

    def read_input(self, x: Tensor, rectified: bool) -> Tensor:
        bits = self.config.quant.activation_bits
        if bits == 32:
            return x
        low, high = (0, 2**bits - 1) if rectified else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        scale = x.detach().abs().max() / high
        lost: Tensor = (x / scale).round().clamp(low, high) * scale - x
        return x + lost.detach()

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
