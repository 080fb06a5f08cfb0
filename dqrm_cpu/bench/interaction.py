"""The dot interaction, forward and backward, against autograd over `bmm`."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dqrm_cpu.bench.contestant import Contestant
from dqrm_cpu.bench.kernel_material import Material
from dqrm_cpu.bench.pool import Work
from dqrm_cpu.bench.prepared import Prepared, Step
from dqrm_cpu.bench.reading import read_and_write
from dqrm_cpu.bench.torch_dlrm import Interact, flat_interaction, indexed_interaction


def interaction_contestants(material: Material) -> Iterator[Contestant]:
    """Each returns the gradient f32[B, F, D]; the features are the same at every step."""
    number = material.num_features
    yield Prepared("ours_interaction", "one kernel forward, one backward", lambda: _ours(material))
    yield Prepared(
        "torch_interaction", "bmm, Z[:, i, j]; autograd", lambda: _torch(material, indexed_interaction(number))
    )
    yield Prepared(
        "torch_interaction_flat", "bmm, index_select; autograd", lambda: _torch(material, flat_interaction(number))
    )
    yield Prepared("interaction_floor", "reads and writes as much, computes nothing", lambda: _floor(material))


def _ours(material: Material) -> Step:
    features, grad_out = material.features(), material.grad_interaction()
    out, grad = torch.empty_like(grad_out), torch.empty_like(features)

    def step(work: Work) -> Tensor:
        material.kernels.interaction_forward(features, out)
        material.kernels.interaction_backward(features, grad_out, grad)
        return grad

    return step


def _torch(material: Material, interact: Interact) -> Step:
    features, grad_out = material.features().requires_grad_(), material.grad_interaction()

    def step(work: Work) -> Tensor:
        out = torch.cat([features[:, 0], interact(features)], dim=1)
        (grad,) = torch.autograd.grad(out, features, grad_out)
        return grad

    return step


def _floor(material: Material) -> Step:
    features, grad_out = material.features(), material.grad_interaction()
    out, grad = torch.empty_like(grad_out), torch.empty_like(features)
    forward, backward = ((features, out), (torch.cat([features.flatten(), grad_out.flatten()]), grad))

    def step(work: Work) -> Tensor:
        for source, target in (forward, backward):
            read_and_write(source.data_ptr(), source.numel(), target.data_ptr(), target.numel())
        return grad

    return step
