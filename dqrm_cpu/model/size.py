"""How many bytes a model takes: as trained in FP32, and packed."""

from dataclasses import dataclass

from dqrm_cpu.config import Config
from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.model.dlrm import MlpShapes, mlp_shapes

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class ModelBytes:
    """Whole models: tables and MLPs."""

    fp32: int
    int4: int
    packed: int  # at the configured bit widths


def model_bytes(config: Config) -> ModelBytes:
    """FP32; INT4 throughout; and packed at the configured widths. Codes are packed row by row."""
    shapes = mlp_shapes(config)
    values = sum(config.model.table_rows) * config.model.embedding_dim + shapes.num_parameters
    quant = config.quant
    packed = _packed_bytes(config, shapes, quant.embedding_bits, quant.mlp_bits, quant.mlp_bias_bits)
    fp32 = values * _FLOAT_BYTES
    if quant.activation_bits != UNQUANTIZED:
        packed += _FLOAT_BYTES * len((*shapes.bottom, *shapes.top))
    return ModelBytes(
        fp32, _packed_bytes(config, shapes, 4, 4, UNQUANTIZED), fp32 if quant.method == "none" else packed
    )


def packed_row_bytes(values: int, bits: int) -> int:
    """A row of packed codes, padded to whole bytes."""
    return -(-values * bits // 8)


def _packed_bytes(config: Config, shapes: MlpShapes, embedding_bits: int, mlp_bits: int, bias_bits: int) -> int:
    """One FP32 scale per table, one per quantized MLP row, one per quantized bias vector."""
    rows = sum(config.model.table_rows)
    tables = rows * packed_row_bytes(config.model.embedding_dim, embedding_bits)
    scales = len(config.model.table_rows) * _FLOAT_BYTES
    per_row = 0 if mlp_bits == UNQUANTIZED else _FLOAT_BYTES
    per_bias = 0 if bias_bits == UNQUANTIZED else _FLOAT_BYTES
    layers = (*shapes.bottom, *shapes.top)
    mlps = sum(s.outputs * (packed_row_bytes(s.inputs, mlp_bits) + per_row) for s in layers)
    biases = sum(packed_row_bytes(s.outputs, bias_bits) + per_bias for s in layers)
    return tables + scales + mlps + biases
