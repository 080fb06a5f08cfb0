"""Small models in bands that nobody trained, and what their files hold by a reader of a few plain lines."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from dqrm_cpu.config import Config
from dqrm_cpu.data.prepare.row_layout import Field, FieldRole, Layout
from dqrm_cpu.export.bands.choice import Choice
from dqrm_cpu.export.bands.classes import ranked_rows
from dqrm_cpu.export.bands.errors import model_rows, table_errors
from dqrm_cpu.export.bands.write import BandedModel, MemberRows
from dqrm_cpu.export.features import RawFeatures
from dqrm_cpu.export.model_files import weights_of_model
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.serving.description import IdRule
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.model import read_description
from dqrm_cpu.train.session import open_scales
from tiny import CPU, tiny_config

ROWS = (40, 3, 500)


def config_of(dim: int = 6, **quant: Any) -> Config:
    return tiny_config({"table_rows": ROWS, "embedding_dim": dim, "bottom_mlp": (9, dim)}, quant)


def counts_of(seed: int = 3) -> list[np.ndarray]:
    """Counts of ids that fall off as they do in logs; some ids were never seen."""
    rng = np.random.default_rng(seed)
    return [rng.permutation((200 / np.arange(1, rows + 1)).astype(np.int64)) for rows in ROWS]


def keys_of() -> list[np.ndarray]:
    rng = np.random.default_rng(8)
    return [rng.permutation(10 * rows)[: rows - 1].astype(np.uint64) + np.uint64(1) for rows in ROWS]


def features_of(config: Config, limits: tuple[int, ...] = ()) -> RawFeatures:
    single = len(ROWS) - len(limits)
    fields = (
        Field(FieldRole.LABEL),
        *(Field(FieldRole.INTEGER, f"I{k}") for k in range(config.model.num_dense)),
        *(Field(FieldRole.TEXT, f"C{k}") for k in range(single)),
        *(Field(FieldRole.BAG, f"B{k}", separator="|", limit=limit) for k, limit in enumerate(limits)),
    )
    return RawFeatures(Layout(fields), [], IdRule(64, 0), keys_of())


def banded_model(
    config: Config, substitute: str = "mean", limits: tuple[int, ...] = (), members: int = 1, is_float: bool = False
) -> BandedModel:
    ranked = [ranked_rows(counts, False) for counts in counts_of()]
    found = []
    for seed in range(1, members + 1):
        model = Dlrm(config, select_kernels("numba", CPU), CPU)
        model.initialize_(seed)
        generator = torch.Generator().manual_seed(5)
        for weight in model.groups.weights:
            weight.mul_(torch.rand(len(weight), 1, generator=generator))
        weights = weights_of_model(model, open_scales(config.quant, model).for_evaluation())
        assert weights.formula is not None
        tables = model_rows(weights.tables, weights.formula, weights.scale, is_float)
        errors = [table_errors(table, its) for table, its in zip(tables, ranked, strict=True)]
        found.append(MemberRows(tables, errors, weights.layers))
    return BandedModel(config, "", features_of(config, limits), ranked, found, substitute)


def write_banded(path: Path, model: BandedModel, budget: int) -> int:
    """Writes the best file of so many bytes; returns its bytes."""
    return model.write(path, Choice(model.options).largest_within(budget, model.size_of))


def plain_tables(path: Path, member: int = 1) -> list[np.ndarray]:
    """The rows of each table f32[rows, D], bit by bit."""
    tensors, description = load_file(path), read_description(MappedFile(path))
    prefix = "" if member == 1 else f"member{member}."
    bands = iter(zip(*(tensors[f"{prefix}tables.{part}"] for part in ("bands", "step", "offset")), strict=True))
    tables = []
    for t, column in enumerate(description.categories):
        rows: list[list[float]] = []
        content, at = tensors[f"{prefix}C{t + 1}.codes"].tobytes(), 0
        while len(rows) < column.rows:
            (count, bits), scale, offset = next(bands)
            width = -(-column.dim * int(bits) // 8)
            for _ in range(count):
                packed = int.from_bytes(content[at : at + width], "little")
                at += width
                codes = [(packed >> int(bits) * k) % (1 << int(bits)) for k in range(column.dim)]
                signed = [code - (1 << int(bits)) * (code >= 1 << int(bits) - 1) for code in codes]
                rows.append([np.float32(code) * scale + offset for code in signed])
        assert (len(rows), at) == (column.rows, len(content))
        tables.append(np.array(rows, np.float32))
    return tables


def rows_by_key(path: Path) -> list[dict[int, int]]:
    """The row that each key has in a file, by table."""
    tensors = load_file(path)
    names = [f"C{t + 1}" for t in range(len(ROWS))]
    return [
        dict(zip(*(tensors[f"{name}.{part}"].tolist() for part in ("keys", "rows")), strict=True)) for name in names
    ]
