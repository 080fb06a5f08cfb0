"""The embedding part of a step, forward and update together: what libraries of fused embeddings offer."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dqrm_cpu.bench.contestant import Contestant
from dqrm_cpu.bench.fbgemm import TableBatchedBags
from dqrm_cpu.bench.kernel_material import Material
from dqrm_cpu.bench.pool import Work
from dqrm_cpu.bench.prepared import Prepared, Step
from dqrm_cpu.bench.torch_dlrm import Bags as TorchBags
from dqrm_cpu.kernels.interface import Tracker
from dqrm_cpu.kernels.types import UNQUANTIZED, Bags, Tables
from dqrm_cpu.quant.scale import quantization_step


def embedding_contestants(material: Material) -> Iterator[Contestant]:
    """Each returns the tables f32[R, D]."""
    arenas = material.arenas
    yield Prepared(
        "ours_embedding_fp32", "lookup and SGD, not quantized", lambda: _ours(material, arenas.shared(), None)
    )
    yield Prepared(
        "ours_embedding_int4",
        "lookup in INT4 with exact scales, tracked SGD",
        lambda: _ours(material, *arenas.tracked()),
    )
    yield Prepared("torch_embedding", "EmbeddingBag per table, autograd, torch.optim.SGD", lambda: _torch(material))
    yield Prepared("fbgemm_embedding", "FBGEMM table-batched embeddings, EXACT_SGD", lambda: _fbgemm(material))


def _ours(material: Material, tables: Tables, tracker: Tracker | None) -> Step:
    grad, out, kernels = material.grad_features(), material.features(), material.kernels
    unused = torch.ones(tables.num_tables)

    def step(work: Work) -> Tensor:
        bags = Bags(work.batch.ids, None)
        if tracker is None:
            kernels.gather_quantize_pool(tables, bags, unused, UNQUANTIZED, out)
        else:
            exact = quantization_step(tracker.absmax(), material.bits)
            kernels.gather_quantize_pool(tables, bags, exact, material.bits, out)
        kernels.update_sgd_(tables, bags, grad, material.lr, 0.0, tracker)
        return tables.weight

    return step


def _torch(material: Material) -> Step:
    tables, grads = material.arenas.shared(), material.grad_tables()
    bags = TorchBags(tables, material.case.batch_size)
    optimizer = torch.optim.SGD(bags.weights(), lr=material.lr)

    def step(work: Work) -> Tensor:
        torch.autograd.backward(bags(work), grads)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return tables.weight

    return step


def _fbgemm(material: Material) -> Step:
    tables = material.arenas.shared()
    bags = TableBatchedBags(tables, material.case.batch_size, material.lr)
    grad = torch.cat(material.grad_tables(), dim=1)

    def step(work: Work) -> Tensor:
        torch.autograd.backward(list(bags(work)), [grad])
        return tables.weight

    return step
