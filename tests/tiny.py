"""A model small enough for a test that still has every part."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from dqrm_cpu.config import Config, preset_config

CPU = torch.device("cpu")


def tiny_config(
    model: Mapping[str, Any] | None = None,
    quant: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Config:
    """The demo preset with three small tables, narrow MLPs, few rows; any setting can be given."""
    config = preset_config("demo")
    small_model: dict[str, Any] = {
        "table_rows": (40, 3, 500),
        "embedding_dim": 6,
        "bottom_mlp": (9, 6),
        "top_mlp": (11, 1),
    }
    small_data: dict[str, Any] = {"min_count": 0, "train_rows": 2000, "validation_rows": 500, "test_rows": 500}
    small_train: dict[str, Any] = {"batch_size": 32, "test_batch_size": 200, "log_every": 5, "epochs": 1}
    return replace(
        config,
        model=replace(config.model, **{**small_model, **(model or {})}),
        quant=replace(config.quant, **(quant or {})),
        train=replace(config.train, **{**small_train, **(train or {})}),
        data=replace(config.data, **{**small_data, **(data or {})}),
    )
