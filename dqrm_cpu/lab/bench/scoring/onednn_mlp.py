"""MLPs in INT8 by oneDNN, as PyTorch's compiler would call it: the fastest that PyTorch has for what was calibrated."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_SIGNED_MOST, _UNSIGNED_MOST = 127, 255
_SIGNED_ZERO = 128


class _Codes(NamedTuple):
    """The form of numbers that are rounded to unsigned bytes."""

    scale: float
    zero_point: int


class _Layer(NamedTuple):
    inputs: _Codes
    weight: Tensor  # as oneDNN lays it out
    weight_scale: Tensor  # f32[outputs]
    weight_zero_point: Tensor
    bias: Tensor
    rectify: bool


class OnednnMlp(nn.Module):
    """Layers with INT8 weights, a scale for each output; the first batch chooses the scales of what they read."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self._mlp = mlp
        self._layers: list[_Layer] = []

    def forward(self, x: Tensor) -> Tensor:
        """Returns f32[B, outputs]; bytes go from one layer to the next."""
        if not self._layers:
            self._layers = _calibrated(self._mlp, x)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is to move to another package, and says so once
                _rounded(x, self._layers[0].inputs)
        y = _rounded(x, self._layers[0].inputs)
        for number, layer in enumerate(self._layers):
            is_last = number + 1 == len(self._layers)
            result = _Codes(1.0, 0) if is_last else self._layers[number + 1].inputs
            y = torch.ops.onednn.qlinear_pointwise(
                y,
                *layer.inputs,
                layer.weight,
                layer.weight_scale,
                layer.weight_zero_point,
                layer.bias,
                *result,
                torch.float32 if is_last else torch.uint8,
                "relu" if layer.rectify else "none",
                [],
                "",
            )
        return y


def _calibrated(mlp: Any, x: Tensor) -> list[_Layer]:
    """Rounds the weights, and takes the scales from what the layers read of this batch."""
    modules, layers = list(mlp), []
    for number, linear in enumerate(modules):
        if not isinstance(linear, nn.Linear):
            continue
        rectify = number + 1 < len(modules)
        scale = linear.weight.abs().amax(dim=1).clamp(min=1e-12) / _SIGNED_MOST
        codes = (linear.weight / scale[:, None]).round().to(torch.int8)
        layers.append(
            _Layer(
                _codes_for(x),
                torch.ops.onednn.qlinear_prepack(codes, list(x.shape)),
                scale,
                torch.zeros(len(scale), dtype=torch.int64),
                linear.bias,
                rectify,
            )
        )
        x = linear(x).clamp(min=0) if rectify else linear(x)
    return layers


def _rounded(x: Tensor, codes: _Codes) -> Tensor:
    rounded: Tensor = torch.quantize_per_tensor(x, *codes, torch.quint8).int_repr()
    return rounded


def _codes_for(x: Tensor) -> _Codes:
    if bool((x < 0).any()):
        return _Codes(float(x.abs().max()) / _SIGNED_MOST, _SIGNED_ZERO)
    return _Codes(float(x.max().clamp(min=1e-12)) / _UNSIGNED_MOST, 0)
