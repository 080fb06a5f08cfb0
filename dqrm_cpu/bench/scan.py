"""Finding max|W| by reading whole tables, against torch.aminmax and against merely reading."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dqrm_cpu.bench.contestant import Contestant
from dqrm_cpu.bench.kernel_material import Material, views
from dqrm_cpu.bench.pool import Work
from dqrm_cpu.bench.prepared import Prepared, Step
from dqrm_cpu.bench.reading import read_all


def scan_contestants(material: Material) -> Iterator[Contestant]:
    """Those that scan return f32[T]."""
    yield Prepared("ours_scan", "parallel scan of all tables", lambda: _ours(material))
    yield Prepared("torch_aminmax", "torch.aminmax of each table", lambda: _torch(material))
    yield Prepared("read_floor", "reads every byte of the tables in order and adds it up", lambda: _floor(material))


def _ours(material: Material) -> Step:
    tables = material.arenas.shared()
    return lambda work: material.kernels.scan_absmax(tables)


def _torch(material: Material) -> Step:
    weights = list(views(material.arenas.shared()))

    def step(work: Work) -> Tensor:
        extremes = [torch.aminmax(weight) for weight in weights]
        return torch.stack([torch.maximum(-extreme.min, extreme.max) for extreme in extremes])

    return step


def _floor(material: Material) -> Step:
    # Pairs of floats; the last one of an odd number is left out.
    floats = material.arenas.shared().weight.view(-1)
    words = floats[: floats.numel() // 2 * 2].view(torch.int64).numpy()
    return lambda work: torch.tensor(read_all(words))
