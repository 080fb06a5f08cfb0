"""The production baseline: row by row, asymmetric, each row's range narrowed by a greedy search (arXiv 1911.02079).

    x^ = code * scale + bias, codes 0 to 2^b - 1; scale and bias in FP16 behind the codes of each row.
    The search starts from [min, max] of the row and takes a 200th of it off whichever end hurts the squared error less,
    until 16% are gone; the best local optimum on the way is used, the whole range if there is none. Errors are those of
    scale and bias in FP16.

It runs in torch's own operators, the ones that its quantized embedding bags are packed with.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.export.layout import ROWWISE_SCALE_BYTES
from dqrm_cpu.export.stream import Streamed, write_tensors
from dqrm_cpu.export.write import metadata, mlp_tensors
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.size import packed_row_bytes
from dqrm_cpu.model.tables import table_names

ROWWISE_BITS = (2, 4)
_BINS = 200
_RATIO = 0.16
_ROWS_AT_ONCE = 1 << 16


def pack_rows(weight: Tensor, bits: int) -> Tensor:
    """f32[N, D] to uint8[N, bytes of the codes + 4]."""
    packed: Tensor = getattr(torch.ops.quantized, f"embedding_bag_{bits}bit_prepack")(weight, True, _BINS, _RATIO)
    return packed


def unpack_rows(packed: Tensor, bits: int) -> Tensor:
    """uint8[N, bytes] to f32[N, D]."""
    values: Tensor = getattr(torch.ops.quantized, f"embedding_bag_{bits}bit_unpack")(packed)
    return values


def write_rowwise(path: Path, config: Config, model: Dlrm, identity: str = "") -> int:
    """Tables row-wise, MLPs as the configuration's method has them; returns the bytes of the file."""
    bits, dim = config.quant.embedding_bits, model.tables.dim
    if bits not in ROWWISE_BITS or dim * bits % 8:
        raise ConfigError(
            f"row-wise quantization has {bits} bits and {dim} values a row; it takes 2 or 4 bits and whole bytes: "
            "set quant.embedding_bits to 2 or 4"
        )
    bounds = pairwise(model.tables.row_offset.tolist())
    names = table_names(model.tables.num_tables)
    tables = [
        _table(name, model.tables.weight[first:end], bits) for name, (first, end) in zip(names, bounds, strict=True)
    ]
    return write_tensors(path, [*tables, *mlp_tensors(model)], metadata(config, "rowwise", identity))


def _table(name: str, weight: Tensor, bits: int) -> Streamed:
    def parts() -> Iterator[NDArray[np.generic]]:
        for part in torch.split(weight, _ROWS_AT_ONCE):
            yield pack_rows(part.cpu().contiguous(), bits).numpy()

    row_bytes = packed_row_bytes(weight.shape[1], bits) + ROWWISE_SCALE_BYTES
    return Streamed(f"{name}.codes", "uint8", (weight.shape[0], row_bytes), parts)
