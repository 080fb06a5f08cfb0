"""Quantized biases of the MLPs: the formula in NumPy, for every kind of weights and both precisions."""

import numpy as np
import pytest
import torch

from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from tiny import CPU, tiny_config


def oracle(bias: np.ndarray, bits: int) -> np.ndarray:
    limit = 2 ** (bits - 1)
    scale = np.abs(bias).max() / (limit - 1)
    values: np.ndarray = np.clip(np.rint(bias / scale), -limit, limit - 1) * scale
    return values


@pytest.mark.parametrize("quant", [{"method": "dqrm"}, {"method": "lsq"}, {"method": "hawq", "mlp_bits": 32}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kernels", ["numba", "torch"])
@pytest.mark.parametrize("bits", [4, 8])
def test_layers_read_quantized_biases(quant: dict[str, object], precision: str, kernels: str, bits: int) -> None:
    config = tiny_config(quant={**quant, "mlp_bias_bits": bits}, train={"precision": precision})
    model = Dlrm(config, select_kernels(kernels, CPU), CPU)
    model.initialize_(4)
    model.begin_learning_scales()
    for quantized in (True, False):
        model.quantize_weights(quantized)
        for mlp in (model._bottom, model._top):
            for layer, used in zip(mlp.layers, mlp._weights.layers, strict=True):
                bias = layer.bias.double().numpy()
                expected = torch.from_numpy(oracle(bias, bits) if quantized else bias).to(used.bias.dtype)
                torch.testing.assert_close(used.bias, expected, rtol=1e-5 if precision == "fp32" else 2**-8, atol=1e-7)
