"""How much memory a training run will take, before any of it is allocated."""

from dataclasses import dataclass

from dqrm_cpu.config import Config
from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.model.dlrm import mlp_shapes

_FLOAT = 4
_MIB = 1024**2
RUNTIME_BYTES = 420 * _MIB
"""Python, torch, numba and the compiled kernels of one process, before the model (measured, nothing to compile)."""
DATA_CACHE_BYTES = 1024 * _MIB
"""Rows of a part that are kept in memory between epochs at most."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak resident memory of one process, by part."""

    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


def estimate_memory(config: Config, world_size: int = 1) -> MemoryEstimate:
    """For one rank of `world_size`: each holds all tables (data parallel)."""
    model, train = config.model, config.train
    rows = sum(model.table_rows)
    adagrad = train.optimizer == "rowwise-adagrad"
    parts = {
        "tables": rows * model.embedding_dim * _FLOAT,
        "optimizer": rows * _FLOAT if adagrad else 0,
        "scale tracker": _tracker_bytes(config),
        "MLPs": _mlp_bytes(config, adagrad),
        "gradient exchange": _exchange_bytes(config, world_size),
        "batches": 2 * _forward_bytes(config, train.batch_size // world_size)
        + _forward_bytes(config, train.test_batch_size // world_size),
        "data": _data_bytes(config, world_size),
        "runtime": RUNTIME_BYTES,
    }
    return MemoryEstimate(parts)


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
    """What stays from step to step: what rounding took (error feedback), and the dense wire's copies of all tables."""
    comm = config.comm
    ranks = world_size * comm.simulated_ranks
    tables = sum(config.model.table_rows) * config.model.embedding_dim * _FLOAT
    dense = (1 + comm.simulated_ranks) * tables if comm.wire == "dense" else 0
    of_mlps = (ranks + 1) * mlp_shapes(config).num_parameters * _FLOAT if comm.error_feedback != "none" else 0
    of_tables = ranks * tables if comm.error_feedback == "all" else 0
    return dense + of_mlps + of_tables


def _forward_bytes(config: Config, batch: int) -> int:
    """Feature vectors, the interaction, activations; the gradients of a training step take as much again."""
    shapes = mlp_shapes(config)
    features = (1 + len(config.model.table_rows)) * config.model.embedding_dim
    layers = (*shapes.bottom, *shapes.top)
    activations = sum(shape.outputs for shape in layers)
    if config.quant.activation_bits != UNQUANTIZED:
        activations += sum(shape.inputs for shape in layers)  # the quantized copies, beside what they were made of
    return batch * (features + shapes.top[0].inputs + activations) * _FLOAT


def _data_bytes(config: Config, world_size: int) -> int:
    data, model = config.data, config.model
    if data.source != "synthetic":
        return 0  # read from the files' own pages, batch by batch
    row = (model.num_dense + len(model.table_rows) * data.max_bag_size + 1) * _FLOAT
    kept = (rows * row // world_size for rows in (data.train_rows, data.validation_rows, data.test_rows))
    return sum(size for size in kept if size <= DATA_CACHE_BYTES)
