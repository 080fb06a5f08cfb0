"""How many bytes a model takes: as trained in FP32, packed, and in the memory of a training run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dqrm_cpu.config import Config
from dqrm_cpu.kernels.row_forms import UNQUANTIZED, stored_bytes
from dqrm_cpu.model.shapes import LayerShape, MlpShapes, mlp_shapes

_FLOAT = 4
_MIB = 1024**2
RUNTIME_BYTES = 420 * _MIB
"""Python, torch, numba and the compiled kernels of one process, before the model (measured, nothing to compile)."""
DATA_CACHE_BYTES = 1024 * _MIB
"""Rows of a part that are kept in memory between epochs at most."""


@dataclass(frozen=True)
class ModelBytes:
    """Bytes of a whole model, tables and MLPs."""

    fp32: int
    int4: int
    packed: int  # at the configured bit widths


def model_bytes(config: Config) -> ModelBytes:
    """Computes the bytes in FP32, in INT4 throughout, and packed at the configured widths, row by row."""
    shapes = mlp_shapes(config)
    values = _table_values(config) + shapes.num_parameters
    quant = config.quant
    packed = _packed_bytes(config, shapes, quant.embedding_bits, quant.mlp_bits, quant.mlp_bias_bits)
    fp32 = values * _FLOAT
    if quant.activation_bits != UNQUANTIZED:
        packed += _FLOAT * len(shapes.layers)
    return ModelBytes(
        fp32, _packed_bytes(config, shapes, 4, 4, UNQUANTIZED), fp32 if quant.method == "none" else packed
    )


def _table_values(config: Config) -> int:
    """Counts the weights of all tables."""
    return sum(rows * dim for rows, dim in zip(config.model.table_rows, config.model.dims, strict=True))


def packed_row_bytes(values: int, bits: int) -> int:
    """Returns the bytes of a row of packed codes, padded to whole ones."""
    return -(-values * bits // 8)


def _packed_bytes(config: Config, shapes: MlpShapes, embedding_bits: int, mlp_bits: int, bias_bits: int) -> int:
    """Counts packed bytes, with one FP32 scale per table, per quantized MLP row and per quantized bias vector."""
    pairs = zip(config.model.table_rows, config.model.dims, strict=True)
    tables = sum(rows * packed_row_bytes(dim, embedding_bits) for rows, dim in pairs)
    scales = len(config.model.table_rows) * _FLOAT
    per_row = 0 if mlp_bits == UNQUANTIZED else _FLOAT
    per_bias = 0 if bias_bits == UNQUANTIZED else _FLOAT
    mlps = sum(s.outputs * (packed_row_bytes(s.inputs, mlp_bits) + per_row) for s in shapes.layers)
    biases = sum(packed_row_bytes(s.outputs, bias_bits) + per_bias for s in shapes.layers if s.has_bias)
    return tables + scales + mlps + biases


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak resident memory of one process, by part."""

    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


def estimate_memory(config: Config, world_size: int = 1, held_rows: Sequence[int] | None = None) -> MemoryEstimate:
    """Estimates the memory of one rank of `world_size`.

    `held_rows`: how many rows of each table it holds; None: all (data parallel).
    """
    train, batch = config.train, config.train.batch_size // world_size
    # Rows of others that a batch looks up: values, codes and gradients of each at once, at the most.
    fetched = 0 if held_rows is None else 3 * batch * sum(config.model.dims) * _FLOAT
    held = config
    if held_rows is not None:
        held = replace(config, model=replace(config.model, table_rows=tuple(held_rows)))
    rows = sum(held.model.table_rows)
    adagrad = train.optimizer == "rowwise-adagrad"
    parts = {
        "tables": _held_bytes(held),
        "optimizer": rows * _FLOAT * (int(adagrad) + int(train.interval_decay > 0)),
        "scale tracker": _tracker_bytes(held),
        "mean of snapshots": _averaged_bytes(held),
        "MLPs": _mlp_bytes(config, adagrad),
        "gradient exchange": _exchange_bytes(config, world_size) + fetched,
        "batches": _forward_bytes(config, batch)
        + _gradient_bytes(config, batch)
        + _forward_bytes(config, train.test_batch_size // world_size),
        "data": _data_bytes(config, world_size),
        "runtime": RUNTIME_BYTES,
    }
    return MemoryEstimate(parts)


def _held_bytes(config: Config) -> int:
    """Counts the bytes of all rows as training keeps them."""
    pairs = zip(config.model.table_rows, config.model.dims, strict=True)
    return sum(rows * stored_bytes(config.train.master_rows, dim) for rows, dim in pairs)


def _averaged_bytes(config: Config) -> int:
    if not config.train.average_snapshots:
        return 0
    return _held_bytes(config) + mlp_shapes(config).num_parameters * _FLOAT


def _tracker_bytes(config: Config) -> int:
    if config.quant.method == "none" or config.quant.scale_finder != "track":
        return 0
    # One bound per block of 64 rows, one per 64 blocks.
    return sum(rows // 64 + rows // 4096 + 2 for rows in config.model.table_rows) * _FLOAT


def _mlp_bytes(config: Config, adagrad: bool) -> int:
    # Parameters, the fake-quantized copy, a gradient per simulated rank, the accumulator.
    copies = 2 + config.comm.simulated_ranks + int(adagrad)
    return mlp_shapes(config).num_parameters * _FLOAT * copies


def _exchange_bytes(config: Config, world_size: int) -> int:
    """Counts what stays between steps: rounding errors (error feedback), and the dense wire's copies of all tables."""
    comm = config.comm
    ranks = world_size * comm.simulated_ranks
    tables = _table_values(config) * _FLOAT
    dense = (1 + comm.simulated_ranks) * tables if comm.wire == "dense" else 0
    of_mlps = (ranks + 1) * mlp_shapes(config).num_parameters * _FLOAT if comm.error_feedback != "none" else 0
    of_tables = ranks * tables if comm.error_feedback == "all" else 0
    return dense + of_mlps + of_tables


def _forward_bytes(config: Config, batch: int) -> int:
    """Counts feature vectors, the interaction and activations."""
    shapes = mlp_shapes(config)
    crossed = _activations(config, shapes.cross) + sum(shape.outputs for shape in shapes.cross if shape.has_bias)
    return batch * (_values_without_cross(config, shapes) + crossed) * _FLOAT


def _gradient_bytes(config: Config, batch: int) -> int:
    """Counts gradients of a training step: as much again as the forward, but of cross layers one at a time."""
    shapes = mlp_shapes(config)
    of_one = 4 * shapes.cross[-1].outputs if shapes.cross else 0  # of x_0 and x_l, their product, what goes through W
    return batch * (_values_without_cross(config, shapes) + of_one) * _FLOAT


def _values_without_cross(config: Config, shapes: MlpShapes) -> int:
    """Counts the values of an example: feature vectors, the interaction, activations of the MLPs."""
    model = config.model
    features = (1 + len(model.table_rows)) * model.embedding_dim
    if shapes.projections:  # what is pooled stands beside what becomes of it
        features += sum(model.dims)
    return features + shapes.top[0].inputs + _activations(config, (*shapes.bottom, *shapes.projections, *shapes.top))


def _activations(config: Config, layers: Sequence[LayerShape]) -> int:
    outputs = sum(shape.outputs for shape in layers)
    if config.quant.activation_bits == UNQUANTIZED:
        return outputs
    return outputs + sum(shape.inputs for shape in layers)  # the quantized copies, beside what they were made of


def _data_bytes(config: Config, world_size: int) -> int:
    data, model = config.data, config.model
    if data.source != "synthetic":
        return 0  # read from the files' own pages, batch by batch
    row = (model.num_dense + len(model.table_rows) * data.max_bag_size + 1) * _FLOAT
    kept = (rows * row // world_size for rows in (data.train_rows, data.validation_rows, data.test_rows))
    return sum(size for size in kept if size <= DATA_CACHE_BYTES)
