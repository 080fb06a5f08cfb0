"""The dot interaction, forward and backward, against autograd over `bmm`."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dqrm_cpu.lab.bench.harness.batch_pool import Work
from dqrm_cpu.lab.bench.harness.contestant import Contestant, Prepared, Step
from dqrm_cpu.lab.bench.kernels.kernel_inputs import KernelInputs
from dqrm_cpu.lab.bench.kernels.memory_floors import read_and_write
from dqrm_cpu.lab.bench.step.torch_dlrm import Interact, flat_interaction, indexed_interaction


def interaction_contestants(inputs: KernelInputs) -> Iterator[Contestant]:
    """Yields interactions, each of which returns the gradient f32[B, F, D]; the features are the same at every step."""
    number = inputs.num_features
    yield Prepared("ours_interaction", "one kernel forward, one backward", lambda: _ours(inputs))
    yield Prepared(
        "torch_interaction", "bmm, Z[:, i, j]; autograd", lambda: _torch(inputs, indexed_interaction(number))
    )
    yield Prepared(
        "torch_interaction_flat", "bmm, index_select; autograd", lambda: _torch(inputs, flat_interaction(number))
    )
    yield Prepared("interaction_floor", "reads and writes as much, computes nothing", lambda: _floor(inputs))


def _ours(inputs: KernelInputs) -> Step:
    features, grad_out = inputs.features(), inputs.grad_interaction()
    out, grad = torch.empty_like(grad_out), torch.empty_like(features)

    def step(work: Work) -> Tensor:
        inputs.kernels.interaction_forward(features, out)
        inputs.kernels.interaction_backward(features, grad_out, grad)
        return grad

    return step


def _torch(inputs: KernelInputs, interact: Interact) -> Step:
    features, grad_out = inputs.features().requires_grad_(), inputs.grad_interaction()

    def step(work: Work) -> Tensor:
        out = torch.cat([features[:, 0], interact(features)], dim=1)
        (grad,) = torch.autograd.grad(out, features, grad_out)
        return grad

    return step


def _floor(inputs: KernelInputs) -> Step:
    features, grad_out = inputs.features(), inputs.grad_interaction()
    out, grad = torch.empty_like(grad_out), torch.empty_like(features)
    forward, backward = ((features, out), (torch.cat([features.flatten(), grad_out.flatten()]), grad))

    def step(work: Work) -> Tensor:
        for source, target in (forward, backward):
            read_and_write(source.data_ptr(), source.numel(), target.data_ptr(), target.numel())
        return grad

    return step
