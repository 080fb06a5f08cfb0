"""Looking rows up and quantizing them, against plain PyTorch and against merely reading the rows."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from dqrm_cpu.bench.contestant import Contestant
from dqrm_cpu.bench.fake_quant import fake_quantize
from dqrm_cpu.bench.kernel_material import Material, views
from dqrm_cpu.bench.pool import Work
from dqrm_cpu.bench.prepared import Prepared, Step
from dqrm_cpu.bench.reading import read_rows
from dqrm_cpu.kernels.numba_impl.arena import arena_of
from dqrm_cpu.kernels.types import Bags


def lookup_contestants(material: Material) -> Iterator[Contestant]:
    """Those that quantize return f32[B, T, D]."""
    yield Prepared("ours_lookup", "gather, quantize and pool in one kernel", lambda: _ours(material))
    yield Prepared("torch_lookup", "per table EmbeddingBag, then quantize; stack", lambda: _torch(material))
    about = "EmbeddingBag per table, stack, all quantized at once in place"
    yield Prepared("torch_lookup_at_once", about, lambda: _torch_at_once(material))
    yield Prepared("lookup_floor", "reads the same rows and adds them up", lambda: _floor(material))


def _ours(material: Material) -> Step:
    tables, out = material.arenas.shared(), material.features()
    quantization_step = material.quantization_step(tables)

    def step(work: Work) -> Tensor:
        bags = Bags(work.batch.ids, None)
        material.kernels.gather_quantize_pool(tables, bags, quantization_step, material.bits, out)
        return out[:, 1:]

    return step


def _torch(material: Material) -> Step:
    tables = material.arenas.shared()
    weights, bits = list(views(tables)), material.bits
    steps, offsets = material.quantization_step(tables).unbind(), torch.arange(material.case.batch_size)

    def step(work: Work) -> Tensor:
        return torch.stack(
            [
                fake_quantize(embedding_bag(ids, weight, offsets, mode="sum"), step, bits)
                for weight, ids, step in zip(weights, work.long_ids, steps, strict=True)
            ],
            dim=1,
        )

    return step


def _torch_at_once(material: Material) -> Step:
    tables = material.arenas.shared()
    weights, limit = list(views(tables)), 1 << (material.bits - 1)
    quantization_step = material.quantization_step(tables)[:, None]
    inverse, offsets = 1 / quantization_step, torch.arange(material.case.batch_size)

    def step(work: Work) -> Tensor:
        pooled = torch.stack(
            [
                embedding_bag(ids, weight, offsets, mode="sum")
                for weight, ids in zip(weights, work.long_ids, strict=True)
            ],
            dim=1,
        )
        return pooled.mul_(inverse).round_().clamp_(-limit, limit - 1).mul_(quantization_step)

    return step


def _floor(material: Material) -> Step:
    arena = arena_of(material.arenas.shared())

    def step(work: Work) -> Tensor:
        return torch.tensor(read_rows(arena, work.batch.ids.data_ptr(), work.batch.size))

    return step
