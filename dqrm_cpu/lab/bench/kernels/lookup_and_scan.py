"""Kernels that read tables: lookups with quantization, and the scan for max|W|; against PyTorch and merely reading."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from dqrm_cpu.kernels.jit.arena import arena_of
from dqrm_cpu.kernels.types import Bags
from dqrm_cpu.lab.bench.harness.batch_pool import Work
from dqrm_cpu.lab.bench.harness.contestant import Contestant, Prepared, Step
from dqrm_cpu.lab.bench.kernels.kernel_inputs import KernelInputs, views
from dqrm_cpu.lab.bench.kernels.memory_floors import read_all, read_rows
from dqrm_cpu.lab.bench.step.torch_dlrm import fake_quantize


def lookup_contestants(inputs: KernelInputs) -> Iterator[Contestant]:
    """Yields lookups; those that quantize return f32[B, T, D]."""
    yield Prepared("ours_lookup", "gather, quantize and pool in one kernel", lambda: _our_lookup(inputs))
    yield Prepared("torch_lookup", "per table EmbeddingBag, then quantize; stack", lambda: _torch_lookup(inputs))
    about = "EmbeddingBag per table, stack, all quantized at once in place"
    yield Prepared("torch_lookup_at_once", about, lambda: _torch_lookup_at_once(inputs))
    yield Prepared("lookup_floor", "reads the same rows and adds them up", lambda: _lookup_floor(inputs))


def scan_contestants(inputs: KernelInputs) -> Iterator[Contestant]:
    """Yields scans of whole tables; those that search return max|W| f32[T]."""
    yield Prepared("ours_scan", "parallel scan of all tables", lambda: _our_scan(inputs))
    yield Prepared("torch_aminmax", "torch.aminmax of each table", lambda: _torch_scan(inputs))
    yield Prepared("read_floor", "reads every byte of the tables in order and adds it up", lambda: _scan_floor(inputs))


def _our_lookup(inputs: KernelInputs) -> Step:
    tables, out = inputs.shared.untracked(), inputs.features()
    scale = inputs.scales(tables)

    def step(work: Work) -> Tensor:
        bags = Bags(work.batch.ids, None)
        inputs.kernels.gather_quantize_pool(tables, bags, scale, inputs.bits, out)
        return out[:, 1:]

    return step


def _torch_lookup(inputs: KernelInputs) -> Step:
    tables = inputs.shared.untracked()
    weights, bits = list(views(tables)), inputs.bits
    scales, offsets = inputs.scales(tables).unbind(), torch.arange(inputs.case.batch_size)

    def step(work: Work) -> Tensor:
        return torch.stack(
            [
                fake_quantize(embedding_bag(ids, weight, offsets, mode="sum"), scale, bits)
                for weight, ids, scale in zip(weights, work.long_ids, scales, strict=True)
            ],
            dim=1,
        )

    return step


def _torch_lookup_at_once(inputs: KernelInputs) -> Step:
    tables = inputs.shared.untracked()
    weights, limit = list(views(tables)), 1 << (inputs.bits - 1)
    scale = inputs.scales(tables)[:, None]
    inverse, offsets = 1 / scale, torch.arange(inputs.case.batch_size)

    def step(work: Work) -> Tensor:
        pooled = torch.stack(
            [
                embedding_bag(ids, weight, offsets, mode="sum")
                for weight, ids in zip(weights, work.long_ids, strict=True)
            ],
            dim=1,
        )
        return pooled.mul_(inverse).round_().clamp_(-limit, limit - 1).mul_(scale)

    return step


def _lookup_floor(inputs: KernelInputs) -> Step:
    arena = arena_of(inputs.shared.untracked())
    return lambda work: torch.tensor(read_rows(arena, work.batch.ids.data_ptr(), work.batch.size))


def _our_scan(inputs: KernelInputs) -> Step:
    tables = inputs.shared.untracked()
    return lambda work: inputs.kernels.scan_absmax(tables)


def _torch_scan(inputs: KernelInputs) -> Step:
    weights = list(views(inputs.shared.untracked()))

    def step(work: Work) -> Tensor:
        extremes = [torch.aminmax(weight) for weight in weights]
        return torch.stack([torch.maximum(-extreme.min, extreme.max) for extreme in extremes])

    return step


def _scan_floor(inputs: KernelInputs) -> Step:
    # Pairs of floats; the last one of an odd number is left out.
    floats = inputs.shared.untracked().weight.view(-1)
    words = floats[: floats.numel() // 2 * 2].view(torch.int64).numpy()
    return lambda work: torch.tensor(read_all(words))
