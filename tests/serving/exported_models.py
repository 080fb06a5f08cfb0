"""Exported files of small models that nobody trained: any shape, any method, tables with several values in a cell."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dqrm_cpu.config import Config
from dqrm_cpu.data.prepare.row_layout import Field, FieldRole, Layout
from dqrm_cpu.export.features import RawFeatures
from dqrm_cpu.export.model_files import write_model
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.serving.description import Description, IdRule
from dqrm_cpu.train.session import open_scales
from tiny import CPU

KERNELS = select_kernels("numba", CPU)


def write_exported(path: Path, config: Config, layout: str = "dense", limits: Sequence[int] = ()) -> Path:
    """Writes a model with random weights, some rows of which are zero; `limits`: of the last tables' bags."""
    model, tables = Dlrm(config, KERNELS, CPU), len(config.model.table_rows)
    model.initialize_(1)
    generator = torch.Generator().manual_seed(5)
    for weight in model.groups.weights:
        weight[torch.rand(len(weight), generator=generator) < 0.4] *= 1e-6
    for _, layer, _ in model.mlp_layers():
        if layer.bias.numel():
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.1)
    model.inputs.running.fill_(1.0)
    single = tables - len(limits)
    fields = (
        Field(FieldRole.LABEL),
        *(Field(FieldRole.INTEGER, f"I{k}") for k in range(config.model.num_dense)),
        *(Field(FieldRole.TEXT, f"C{k}") for k in range(single)),
        *(Field(FieldRole.BAG, f"B{k}", separator="|", limit=limit) for k, limit in enumerate(limits)),
    )
    features = RawFeatures(Layout(fields), [], IdRule(64, 0, min(config.model.table_rows)))
    write_model(path, config, model, open_scales(config.quant, model).for_evaluation(), layout, "", features)
    return path


def random_rows(model: Description, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers f32[n, D] and ids [n, S] of a model; a bag has any number of values, then -1."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(count, len(model.dense))).astype(np.float32)
    ids = []
    for column in model.categories:
        found = rng.integers(column.rows, size=(count, column.limit or 1))
        if column.limit:
            found[np.arange(column.limit) >= rng.integers(column.limit + 1, size=(count, 1))] = -1
        ids.append(found)
    return dense, np.concatenate(ids, axis=1)
