"""Kernels that change tables: updates of the rows that were looked up, and the embedding part of a step as a whole."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dqrm_cpu.kernels.interface import Tracker
from dqrm_cpu.kernels.jit.arena import arena_of
from dqrm_cpu.kernels.types import UNQUANTIZED, Bags, Tables, UpdateRule
from dqrm_cpu.lab.bench.harness.batch_pool import Work
from dqrm_cpu.lab.bench.harness.contestant import Contestant, Prepared, Step
from dqrm_cpu.lab.bench.kernels.kernel_inputs import KernelInputs, views
from dqrm_cpu.lab.bench.kernels.memory_floors import rewrite_rows
from dqrm_cpu.lab.bench.step.fbgemm import TableBatchedBags
from dqrm_cpu.lab.bench.step.torch_dlrm import EmbeddingBags
from dqrm_cpu.quant.methods import uniform_scale

ADAGRAD_EPS = 1e-8

Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From a table, its ids int64[B] and the gradient of its pooled vectors f32[B, D] to a sparse one, not coalesced."""


def sgd_contestants(inputs: KernelInputs) -> Iterator[Contestant]:
    """Yields updates by SGD, each of which returns the tables f32[R, D]."""
    about = "update straight from the pooled gradient"
    yield Prepared("ours_sgd", about, lambda: _our_update(inputs, inputs.shared.untracked(), None))
    yield Prepared(
        "ours_sgd_tracked", f"{about}, max|W| tracked", lambda: _our_update(inputs, *inputs.shared.tracked())
    )
    about = "backward of a sparse EmbeddingBag per table, torch.optim.SGD"
    yield Prepared("torch_sgd", about, lambda: _torch_sgd(inputs, bag_backward))
    about = "torch.optim.SGD alone, sparse gradients given"
    yield Prepared("torch_sgd_alone", about, lambda: _torch_sgd(inputs, sparse_gradient))
    about = "reads the gradient, reads and writes the same rows, computes nothing"
    yield Prepared("update_floor", about, lambda: _update_floor(inputs))


def adagrad_contestants(inputs: KernelInputs) -> Iterator[Contestant]:
    """Yields updates by row-wise Adagrad, each of which returns the tables f32[R, D]."""
    about = "row-wise Adagrad straight from the pooled gradient"
    yield Prepared("ours_adagrad", about, lambda: _our_update(inputs, inputs.shared.untracked(), None, adagrad=True))
    yield Prepared(
        "ours_adagrad_tracked",
        f"{about}, max|W| tracked",
        lambda: _our_update(inputs, *inputs.shared.tracked(), adagrad=True),
    )
    about = "backward of a sparse EmbeddingBag per table, coalesced; index_add_"
    yield Prepared("torch_adagrad", about, lambda: _torch_adagrad(inputs))


def _our_update(inputs: KernelInputs, tables: Tables, tracker: Tracker | None, adagrad: bool = False) -> Step:
    grad = inputs.grad_features()
    rule = UpdateRule(inputs.lr, 0.0)
    if adagrad:
        rule = UpdateRule(inputs.lr, 0.0, ADAGRAD_EPS, torch.zeros(tables.weight.shape[0]))

    def step(work: Work) -> Tensor:
        inputs.kernels.update_(tables, Bags(work.batch.ids, None), grad, rule, tracker)
        return tables.weight

    return step


def _torch_sgd(inputs: KernelInputs, gradient: Gradient) -> Step:
    tables, grads = inputs.shared.untracked(), inputs.grad_tables()
    weights = [nn.Parameter(view) for view in views(tables)]
    optimizer = torch.optim.SGD(weights, lr=inputs.lr)

    def step(work: Work) -> Tensor:
        for weight, ids, grad in zip(weights, work.long_ids, grads, strict=True):
            weight.grad = gradient(weight, ids, grad)
        optimizer.step()
        return tables.weight

    return step


def _update_floor(inputs: KernelInputs) -> Step:
    tables, grad = inputs.shared.untracked(), inputs.grad_features()

    def step(work: Work) -> Tensor:
        rewrite_rows(arena_of(tables), work.batch.ids.data_ptr(), work.batch.size, grad.data_ptr(), True)
        return tables.weight

    return step


def _torch_adagrad(inputs: KernelInputs) -> Step:
    tables, grads = inputs.shared.untracked(), inputs.grad_tables()
    weights = list(views(tables))
    sums = list(views(tables, torch.zeros(tables.weight.shape[0])))

    def step(work: Work) -> Tensor:
        for weight, total, ids, grad in zip(weights, sums, work.long_ids, grads, strict=True):
            unique = bag_backward(weight, ids, grad).coalesce()
            rows, values = unique.indices()[0], unique.values()
            total.index_add_(0, rows, values.square().mean(1))
            weight.index_add_(0, rows, values / (total[rows].sqrt() + ADAGRAD_EPS)[:, None], alpha=-inputs.lr)
        return tables.weight

    return step


def bag_backward(weight: Tensor, ids: Tensor, grad: Tensor) -> Tensor:
    """Calls what autograd calls for a sparse EmbeddingBag with one id per bag."""
    bags = torch.arange(ids.numel())
    lengths = torch.ones_like(bags)
    gradient: Tensor = torch.ops.aten._embedding_bag_sparse_backward(
        grad, ids, bags, bags, lengths, weight.shape[0], False, 0, None, -1
    )
    return gradient


def sparse_gradient(weight: Tensor, ids: Tensor, grad: Tensor) -> Tensor:
    """Returns the same as `bag_backward` without a copy of `grad`."""
    return torch.sparse_coo_tensor(ids[None], grad, weight.shape, check_invariants=False)


def embedding_contestants(inputs: KernelInputs) -> Iterator[Contestant]:
    """Yields lookup and update together, as libraries of fused embeddings offer; each returns the tables f32[R, D]."""
    shared = inputs.shared
    yield Prepared(
        "ours_embedding_fp32",
        "lookup and SGD, not quantized",
        lambda: _our_embedding(inputs, shared.untracked(), None),
    )
    yield Prepared(
        "ours_embedding_int4",
        "lookup in INT4 with exact scales, tracked SGD",
        lambda: _our_embedding(inputs, *shared.tracked()),
    )
    yield Prepared(
        "torch_embedding", "EmbeddingBag per table, autograd, torch.optim.SGD", lambda: _torch_embedding(inputs)
    )
    yield Prepared("fbgemm_embedding", "FBGEMM table-batched embeddings, EXACT_SGD", lambda: _fbgemm_embedding(inputs))


def _our_embedding(inputs: KernelInputs, tables: Tables, tracker: Tracker | None) -> Step:
    grad, out, kernels = inputs.grad_features(), inputs.features(), inputs.kernels
    unused, rule = torch.ones(tables.num_tables), UpdateRule(inputs.lr, 0.0)

    def step(work: Work) -> Tensor:
        bags = Bags(work.batch.ids, None)
        if tracker is None:
            kernels.gather_quantize_pool(tables, bags, unused, UNQUANTIZED, out)
        else:
            exact = uniform_scale(tracker.absmax(), inputs.bits)
            kernels.gather_quantize_pool(tables, bags, exact, inputs.bits, out)
        kernels.update_(tables, bags, grad, rule, tracker)
        return tables.weight

    return step


def _torch_embedding(inputs: KernelInputs) -> Step:
    tables, grads = inputs.shared.untracked(), inputs.grad_tables()
    bags = EmbeddingBags(tables, inputs.case.batch_size)
    optimizer = torch.optim.SGD(bags.weights(), lr=inputs.lr)

    def step(work: Work) -> Tensor:
        torch.autograd.backward(bags(work), grads)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return tables.weight

    return step


def _fbgemm_embedding(inputs: KernelInputs) -> Step:
    tables = inputs.shared.untracked()
    bags = TableBatchedBags(tables, inputs.case.batch_size, inputs.lr)
    grad = torch.cat(inputs.grad_tables(), dim=1)

    def step(work: Work) -> Tensor:
        torch.autograd.backward(list(bags(work)), [grad])
        return tables.weight

    return step
