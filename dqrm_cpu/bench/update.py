"""Updating the rows that were looked up, with and without the tracker, against plain PyTorch's sparse gradients."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dqrm_cpu.bench.contestant import Contestant
from dqrm_cpu.bench.kernel_material import Material, views
from dqrm_cpu.bench.pool import Work
from dqrm_cpu.bench.prepared import Prepared, Step
from dqrm_cpu.bench.reading import rewrite_rows
from dqrm_cpu.kernels.interface import Tracker
from dqrm_cpu.kernels.numba_impl.arena import arena_of
from dqrm_cpu.kernels.types import Bags, Tables

ADAGRAD_EPS = 1e-8

Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From a table, its ids int64[B] and the gradient of its pooled vectors f32[B, D] to a sparse one, not coalesced."""


def sgd_contestants(material: Material) -> Iterator[Contestant]:
    """Each returns the tables f32[R, D]."""
    about = "update straight from the pooled gradient"
    yield Prepared("ours_sgd", about, lambda: _ours_sgd(material, material.arenas.shared(), None))
    yield Prepared(
        "ours_sgd_tracked", f"{about}, max|W| tracked", lambda: _ours_sgd(material, *material.arenas.tracked())
    )
    about = "backward of a sparse EmbeddingBag per table, torch.optim.SGD"
    yield Prepared("torch_sgd", about, lambda: _torch_sgd(material, bag_backward))
    about = "torch.optim.SGD alone, sparse gradients given"
    yield Prepared("torch_sgd_alone", about, lambda: _torch_sgd(material, sparse_gradient))
    about = "reads the gradient, reads and writes the same rows, computes nothing"
    yield Prepared("update_floor", about, lambda: _floor(material))


def adagrad_contestants(material: Material) -> Iterator[Contestant]:
    """Each returns the tables f32[R, D]."""
    about = "row-wise Adagrad straight from the pooled gradient"
    yield Prepared("ours_adagrad", about, lambda: _ours_adagrad(material, material.arenas.shared(), None))
    yield Prepared(
        "ours_adagrad_tracked", f"{about}, max|W| tracked", lambda: _ours_adagrad(material, *material.arenas.tracked())
    )
    about = "backward of a sparse EmbeddingBag per table, coalesced; index_add_"
    yield Prepared("torch_adagrad", about, lambda: _torch_adagrad(material))


def _ours_sgd(material: Material, tables: Tables, tracker: Tracker | None) -> Step:
    grad = material.grad_features()

    def step(work: Work) -> Tensor:
        material.kernels.update_sgd_(tables, Bags(work.batch.ids, None), grad, material.lr, 0.0, tracker)
        return tables.weight

    return step


def _torch_sgd(material: Material, gradient: Gradient) -> Step:
    tables, grads = material.arenas.shared(), material.grad_tables()
    weights = [nn.Parameter(view) for view in views(tables)]
    optimizer = torch.optim.SGD(weights, lr=material.lr)

    def step(work: Work) -> Tensor:
        for weight, ids, grad in zip(weights, work.long_ids, grads, strict=True):
            weight.grad = gradient(weight, ids, grad)
        optimizer.step()
        return tables.weight

    return step


def _floor(material: Material) -> Step:
    tables, grad = material.arenas.shared(), material.grad_features()

    def step(work: Work) -> Tensor:
        rewrite_rows(arena_of(tables), work.batch.ids.data_ptr(), work.batch.size, grad.data_ptr())
        return tables.weight

    return step


def _ours_adagrad(material: Material, tables: Tables, tracker: Tracker | None) -> Step:
    grad, sums, lr = material.grad_features(), torch.zeros(tables.weight.shape[0]), material.lr

    def step(work: Work) -> Tensor:
        bags = Bags(work.batch.ids, None)
        material.kernels.update_rowwise_adagrad_(tables, sums, bags, grad, lr, ADAGRAD_EPS, 0.0, tracker)
        return tables.weight

    return step


def _torch_adagrad(material: Material) -> Step:
    tables, grads = material.arenas.shared(), material.grad_tables()
    weights = list(views(tables))
    sums = list(views(tables, torch.zeros(tables.weight.shape[0])))

    def step(work: Work) -> Tensor:
        for weight, total, ids, grad in zip(weights, sums, work.long_ids, grads, strict=True):
            unique = bag_backward(weight, ids, grad).coalesce()
            rows, values = unique.indices()[0], unique.values()
            total.index_add_(0, rows, values.square().mean(1))
            weight.index_add_(0, rows, values / (total[rows].sqrt() + ADAGRAD_EPS)[:, None], alpha=-material.lr)
        return tables.weight

    return step


def bag_backward(weight: Tensor, ids: Tensor, grad: Tensor) -> Tensor:
    """What autograd calls for a sparse EmbeddingBag with one id per bag."""
    bags = torch.arange(ids.numel())
    lengths = torch.ones_like(bags)
    gradient: Tensor = torch.ops.aten._embedding_bag_sparse_backward(
        grad, ids, bags, bags, lengths, weight.shape[0], False, 0, None, -1
    )
    return gradient


def sparse_gradient(weight: Tensor, ids: Tensor, grad: Tensor) -> Tensor:
    """The same without a copy of `grad`."""
    return torch.sparse_coo_tensor(ids[None], grad, weight.shape, check_invariants=False)
