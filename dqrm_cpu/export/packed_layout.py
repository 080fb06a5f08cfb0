"""What a packed file must hold, by the configuration in its metadata: names, types and shapes of all tensors."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dqrm_cpu.config import Config
from dqrm_cpu.config.load import check_config
from dqrm_cpu.config.schema import SETTINGS, flatten, unflatten
from dqrm_cpu.config.setting import BadValueError
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.export.safetensors_reader import PackedFile
from dqrm_cpu.kernels.row_forms import UNQUANTIZED
from dqrm_cpu.model.shapes import LayerShape, mlp_shapes, table_names
from dqrm_cpu.model.size import packed_row_bytes
from dqrm_cpu.quant.methods import select_formula
from dqrm_cpu.serving.description import BANDS, MODEL, Description, DescriptionError
from dqrm_cpu.serving.ids import keys_tensors
from dqrm_cpu.serving.model import BANDED, ENSEMBLE, SINGLE, format_of

SELF_CONTAINED = (SINGLE, ENSEMBLE, BANDED)

FORMATS = ("1", "2", SINGLE, "4", ENSEMBLE, BANDED)
"""2 has checksums; 3 says what raw rows are, too, and holds their vocabulary; 4 has tables of several dimensions; 5 is
as 3, of several models; 6 is as 3 or 5, its tables in bands of rows of different bits."""

CORRECTED = "corrected"
"""Key of the metadata that says that the bias of the last layer makes up for rows that training did not see."""

LAYOUTS = ("dense", "sparse", "rowwise", BANDS)
ROWS_PER_RANK = 512

ROWWISE_BITS = (2, 4)
ROWWISE_SCALE_BYTES = 4
"""Scale and bias in FP16 behind the codes of a row."""

_MOST_CONFIG_CHARACTERS = 1 << 18
_MOST_DOTS = 64
"""Between two signs of TOML's: a path may have some, keys of ours have one. tomllib takes a time that grows with the
square of a key's dots."""

_DECISIVE = ("model.table_rows", "model.embedding_dim", "quant.method", "quant.embedding_bits", "quant.mlp_bits")


@dataclass(frozen=True)
class Expected:
    """The type and shape of a tensor that must be there."""

    dtype: str  # as safetensors names it
    shape: tuple[int | None, ...]  # None: as many as there are live rows, keys or bands, or bytes in those
    is_scale: bool = False  # so that all of it must be positive


def stored_config(file: PackedFile) -> Config:
    """Reads the configuration in a file's metadata; settings that this version does not know are passed over."""
    text = file.metadata.get("config", "")
    dots = max(piece.count(".") for piece in re.split(r"[=,{}\[\]\n]", text[:_MOST_CONFIG_CHARACTERS]))
    if len(text) > _MOST_CONFIG_CHARACTERS or dots > _MOST_DOTS:
        raise file.foreign("its configuration is none of ours")
    values = flatten(Config())
    try:
        settings = dict(_leaves(tomllib.loads(text)))
        for key, value in settings.items():
            if key in SETTINGS and key != "preset":
                values[key] = SETTINGS[key].from_value(value)
        config = unflatten(values)
        check_config(config)
        _ = config.model.dims  # of the tables that there are
    except (tomllib.TOMLDecodeError, RecursionError, BadValueError, ValueError, ConfigError) as error:
        raise file.foreign(f"its configuration is wrong ({str(error)[:200]})") from error
    missing = [key for key in _DECISIVE if key not in settings]
    if missing:
        raise file.foreign(f"its configuration lacks {missing[0]}")
    return config


def stored_description(file: PackedFile) -> Description | None:
    """Returns what an exported file says of raw rows; None of a file that says nothing of them."""
    version = file.metadata["format"]
    if version not in SELF_CONTAINED:
        return None
    try:
        description = Description.from_json(file.metadata.get(MODEL, ""))
    except DescriptionError as error:
        raise file.foreign(str(error)) from error
    if version != format_of(description):
        raise file.foreign(
            f"it has format {version}, the layout {description.layout} and {description.members} members"
        )
    return description


def vocabulary_entries(description: Description | None) -> Mapping[str, Expected]:
    """Returns the tensors that hold a file's vocabulary, where it has one."""
    if description is None:
        return {}
    found = {}
    for keys, rows in keys_tensors(description).values():
        found[keys] = Expected(f"U{description.ids.key_bits}", (None,))
        found[rows] = Expected("I32", (None,))
    return found


def expected_tensors(config: Config, layout: str) -> Mapping[str, Expected]:
    """Returns the tensors of a file of that layout; the configuration has a method."""
    quant, model = config.quant, config.model
    tensors: dict[str, Expected] = {}
    names = table_names(len(model.table_rows))
    for name, rows, dim in zip(names, model.table_rows, model.dims, strict=True):
        row_bytes = packed_row_bytes(dim, quant.embedding_bits)
        if layout == "rowwise":
            tensors[f"{name}.codes"] = Expected("U8", (rows, row_bytes + ROWWISE_SCALE_BYTES))
        elif layout == "dense":
            tensors[f"{name}.codes"] = Expected("U8", (rows, row_bytes))
        elif layout == BANDS:
            tensors[f"{name}.codes"] = Expected("U8", (None,))
        else:
            tensors[f"{name}.bitmap"] = Expected("U8", (-(-rows // 8),))
            tensors[f"{name}.rank"] = Expected("I32", (-(-rows // ROWS_PER_RANK),))
            tensors[f"{name}.codes"] = Expected("U8", (None, row_bytes))
    if layout == BANDS:
        tensors["tables.bands"] = Expected("I32", (None, 2))
        tensors["tables.step"] = Expected("F32", (None,), is_scale=True)
        tensors["tables.offset"] = Expected("F32", (None,))
    elif layout != "rowwise":
        tensors |= _grid("tables", config, quant.embedding_bits, len(names))
    shapes = mlp_shapes(config)
    for name, layer in zip(shapes.names, shapes.layers, strict=True):
        tensors |= dict(_layer(name, layer, config))
    return tensors


def _layer(name: str, layer: LayerShape, config: Config) -> Iterator[tuple[str, Expected]]:
    quant = config.quant
    if quant.mlp_bits == UNQUANTIZED:
        yield f"{name}.weight", Expected("F32", (layer.outputs, layer.inputs))
    else:
        yield f"{name}.codes", Expected("U8", (layer.outputs, packed_row_bytes(layer.inputs, quant.mlp_bits)))
        scales = 1 if quant.mlp_granularity == "matrix" else layer.outputs
        yield from _grid(name, config, quant.mlp_bits, scales).items()
    if layer.has_bias and quant.mlp_bias_bits == UNQUANTIZED:
        yield f"{name}.bias", Expected("F32", (layer.outputs,))
    elif layer.has_bias:
        yield f"{name}.bias_codes", Expected("U8", (1, packed_row_bytes(layer.outputs, quant.mlp_bias_bits)))
        yield f"{name}.bias_step", Expected("F32", (1,), is_scale=True)
    if quant.activation_bits != UNQUANTIZED:
        yield f"{name}.input_max", Expected("F32", (1,))


def _grid(name: str, config: Config, bits: int, scales: int) -> dict[str, Expected]:
    formula = select_formula(config.quant, bits)
    assert formula is not None
    tensors = {f"{name}.step": Expected("F32", (scales,), is_scale=True)}
    if formula.grid(np.ones(1, np.float32)).offset is not None:
        tensors[f"{name}.offset"] = Expected("F32", (scales,))
    return tensors


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
