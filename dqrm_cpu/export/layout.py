"""What a packed file must hold, by the configuration in its metadata: names, types and shapes of all tensors."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dqrm_cpu.config import Config, preset_config
from dqrm_cpu.config.load import check_config
from dqrm_cpu.config.schema import ENTRIES, flatten, unflatten
from dqrm_cpu.config.setting import BadValueError
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.export.container import PackedFile
from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.model.dlrm import mlp_shapes
from dqrm_cpu.model.layers import LayerShape
from dqrm_cpu.model.size import packed_row_bytes
from dqrm_cpu.model.tables import table_names
from dqrm_cpu.quant.select import select_formula

FORMATS = ("1", "2")
"""2 has checksums."""

LAYOUTS = ("dense", "sparse", "rowwise")
ROWS_PER_RANK = 512
ROWWISE_SCALE_BYTES = 4
"""Scale and bias in FP16 behind the codes of a row."""

_MOST_CONFIG_CHARACTERS = 1 << 18
_MOST_DOTS = 64
"""Between two signs of TOML's: a path may have some, keys of ours have one. tomllib takes a time that grows with the
square of a key's dots."""

_DECISIVE = ("model.table_rows", "model.embedding_dim", "quant.method", "quant.embedding_bits", "quant.mlp_bits")


@dataclass(frozen=True)
class Expected:
    """A tensor that must be there."""

    dtype: str  # as safetensors names it
    shape: tuple[int | None, ...]  # None: as many as there are live rows
    is_scale: bool = False  # so that all of it must be positive


def stored_config(file: PackedFile) -> Config:
    """The configuration in a file's metadata; settings that this version does not know are passed over."""
    text = file.metadata.get("config", "")
    dots = max(piece.count(".") for piece in re.split(r"[=,{}\[\]\n]", text[:_MOST_CONFIG_CHARACTERS]))
    if len(text) > _MOST_CONFIG_CHARACTERS or dots > _MOST_DOTS:
        raise file.foreign("its configuration is none of ours")
    values = flatten(preset_config("demo"))
    try:
        found = dict(_leaves(tomllib.loads(text)))
        for key, value in found.items():
            if key in ENTRIES and key != "preset":
                values[key] = ENTRIES[key].from_value(value)
        config = unflatten(values)
        check_config(config)
    except (tomllib.TOMLDecodeError, RecursionError, BadValueError, ValueError, ConfigError) as error:
        raise file.foreign(f"its configuration is wrong ({str(error)[:200]})") from error
    missing = [key for key in _DECISIVE if key not in found]
    if missing:
        raise file.foreign(f"its configuration lacks {missing[0]}")
    return config


def expected_tensors(config: Config, layout: str) -> Mapping[str, Expected]:
    """Of a file of that layout; the configuration has a method."""
    quant, model = config.quant, config.model
    found: dict[str, Expected] = {}
    row_bytes = packed_row_bytes(model.embedding_dim, quant.embedding_bits)
    names = table_names(len(model.table_rows))
    for name, rows in zip(names, model.table_rows, strict=True):
        if layout == "rowwise":
            found[f"{name}.codes"] = Expected("U8", (rows, row_bytes + ROWWISE_SCALE_BYTES))
        elif layout == "dense":
            found[f"{name}.codes"] = Expected("U8", (rows, row_bytes))
        else:
            found[f"{name}.bitmap"] = Expected("U8", (-(-rows // 8),))
            found[f"{name}.rank"] = Expected("I32", (-(-rows // ROWS_PER_RANK),))
            found[f"{name}.codes"] = Expected("U8", (None, row_bytes))
    if layout != "rowwise":
        found |= _grid("tables", config, quant.embedding_bits, len(names))
    shapes = mlp_shapes(config)
    for mlp, layers in (("bottom", shapes.bottom), ("top", shapes.top)):
        for number, layer in enumerate(layers):
            found |= dict(_layer(f"{mlp}.{number}", layer, config))
    return found


def _layer(name: str, layer: LayerShape, config: Config) -> Iterator[tuple[str, Expected]]:
    quant = config.quant
    if quant.mlp_bits == UNQUANTIZED:
        yield f"{name}.weight", Expected("F32", (layer.outputs, layer.inputs))
    else:
        yield f"{name}.codes", Expected("U8", (layer.outputs, packed_row_bytes(layer.inputs, quant.mlp_bits)))
        scales = 1 if quant.mlp_granularity == "matrix" else layer.outputs
        yield from _grid(name, config, quant.mlp_bits, scales).items()
    if quant.mlp_bias_bits == UNQUANTIZED:
        yield f"{name}.bias", Expected("F32", (layer.outputs,))
    else:
        yield f"{name}.bias_codes", Expected("U8", (1, packed_row_bytes(layer.outputs, quant.mlp_bias_bits)))
        yield f"{name}.bias_step", Expected("F32", (1,), is_scale=True)
    if quant.activation_bits != UNQUANTIZED:
        yield f"{name}.input_max", Expected("F32", (1,))


def _grid(name: str, config: Config, bits: int, scales: int) -> dict[str, Expected]:
    formula = select_formula(config.quant, bits)
    assert formula is not None
    found = {f"{name}.step": Expected("F32", (scales,), is_scale=True)}
    if formula.grid(torch.ones(1)).offset is not None:
        found[f"{name}.offset"] = Expected("F32", (scales,))
    return found


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
