"""What is run beside the configuration, as the bars of the paper's figure 1c."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.kernels.types import Tables

WIRES = ("sparse", "int8-fp32", "int8")


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    about: str
    config: Config
    scan: Callable[[Tables], Tensor] | None = None  # instead of the kernels' own


def variants_of(config: Config, num_ranks: int, *, compare: bool) -> list[Variant]:
    """The configuration itself; and with `compare` those that it is to be seen beside."""
    own = Variant("this configuration", "as asked for", config)
    return [own, *_compared(config, num_ranks)] if compare else [own]


def _compared(config: Config, num_ranks: int) -> Iterator[Variant]:
    quant = replace(config.quant, method="dqrm", scale_period=1)
    scanned = replace(config, quant=replace(quant, scale_finder="scan"))
    yield Variant("FP32", "not quantized", replace(config, quant=replace(quant, method="none")))
    yield Variant("QAT, torch.aminmax", "period 1; torch.aminmax over every table", scanned, aminmax_scan)
    yield Variant("QAT, our scan", "period 1; our parallel scan of every table", scanned)
    tracked = replace(config, quant=replace(quant, scale_finder="track"))
    yield Variant("QAT, tracked", "period 1; max|W| tracked by the updates", tracked)
    if num_ranks > 1:
        for wire in WIRES:
            comm = replace(tracked.comm, wire=wire)
            yield Variant(f"wire {wire}", f"tracked, table gradients as {wire}", replace(tracked, comm=comm))


def aminmax_scan(tables: Tables) -> Tensor:
    """The paper's way with PyTorch's fastest operation: each table by itself."""
    offsets = tables.row_offset.tolist()
    extremes = [torch.aminmax(tables.weight[a:b]) for a, b in pairwise(offsets)]
    return torch.stack([torch.maximum(-found.min, found.max) for found in extremes])
