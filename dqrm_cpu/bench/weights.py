"""The MLPs that every contestant starts from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.model.dlrm import mlp_shapes
from dqrm_cpu.model.layers import LayerParameters, initialize_, split_parameters


@dataclass(frozen=True)
class InitialMlps:
    """Fresh weights in the layout of `Dlrm.dense`, and views of each layer in it."""

    flat: Tensor
    bottom: tuple[LayerParameters, ...]
    top: tuple[LayerParameters, ...]


def initial_mlps(config: Config) -> InitialMlps:
    """The same for the same seed."""
    shapes = mlp_shapes(config)
    flat = torch.zeros(shapes.num_parameters)
    bottom = split_parameters(flat, shapes.bottom)
    top = split_parameters(flat[shapes.bottom_parameters :], shapes.top)
    generator = torch.Generator().manual_seed(config.seed)
    initialize_(shapes.bottom, bottom, generator)
    initialize_(shapes.top, top, generator)
    return InitialMlps(flat, bottom, top)
