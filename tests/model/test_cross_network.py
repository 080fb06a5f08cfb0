"""The cross network of DCNv2 by itself: against autograd, against differences, in every precision."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dqrm_cpu.config import load_config
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.gemm import Gemm, TorchGemm, select_gemm
from dqrm_cpu.model.interaction import CrossNetwork
from dqrm_cpu.model.layers import LayerParameters, split_parameters
from dqrm_cpu.model.mlp_weights import WeightSource
from dqrm_cpu.model.shapes import cross_shapes, mlp_shapes
from tiny import CPU, tiny_config

NUMBA = select_kernels("numba", CPU)
TORCH = select_kernels("torch", CPU)


class CrossOracle(nn.Module):
    """The formula of arXiv 2008.13535, section 3, in FP64: x <- x_0 * (V (U x) + b) + x, or with one matrix W."""

    def __init__(self, width: int, matrices: Sequence[LayerParameters], rank: int) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for layer in matrices:
            outputs, inputs = layer.weight.shape
            linear = nn.Linear(inputs, outputs, bias=layer.bias.numel() > 0, dtype=torch.float64)
            linear.weight.data.copy_(layer.weight)
            if layer.bias.numel():
                linear.bias.data.copy_(layer.bias)
            (self.up if outputs == width and layer.bias.numel() else self.down).append(linear)
        if not rank:
            self.down = nn.ModuleList(nn.Identity() for _ in self.up)

    def forward(self, first: Tensor) -> Tensor:
        x = first
        for down, up in zip(self.down, self.up, strict=True):
            x = first * up(down(x)) + x
        return x

    def gradients(self) -> list[tuple[Tensor, Tensor | None]]:
        """Of weight and bias, in the order of the matrices."""
        pairs = [part for pair in zip(self.down, self.up, strict=True) for part in pair if isinstance(part, nn.Linear)]
        found = []
        for linear in pairs:
            assert linear.weight.grad is not None
            found.append((linear.weight.grad, None if linear.bias is None else linear.bias.grad))
        return found


class DoubleGemm(TorchGemm):
    """Products in FP64, for differences."""

    name = "double"
    dtype = torch.float64


class SmallCross:
    """A network with random weights and biases, and room for its gradients."""

    def __init__(self, width: int, num_layers: int, rank: int, seed: int, gemm: Gemm, kernels: str = "torch") -> None:
        shapes = cross_shapes(width, num_layers, rank)
        self.generator = torch.Generator().manual_seed(seed)
        self.flat = torch.randn(sum(s.num_parameters for s in shapes), generator=self.generator) / width**0.5
        self.layers = split_parameters(self.flat, shapes)
        self.gradients = split_parameters(torch.full_like(self.flat, torch.nan), shapes)
        source = WeightSource(shapes, self.layers, {"numba": NUMBA, "torch": TORCH}[kernels], gemm.dtype)
        self.network = CrossNetwork(source, None, gemm, lambda _, x: x)
        self.network.follow_weights(quantized=False)
        self.dtype = gemm.dtype

    def random(self, batch: int, width: int) -> Tensor:
        return torch.randn(batch, width, generator=self.generator).to(self.dtype)


@pytest.mark.parametrize("kernels", ["numba", "torch"])
@given(
    batch=st.integers(1, 70),
    width=st.integers(2, 40),
    num_layers=st.integers(1, 4),
    rank=st.integers(0, 17),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients_are_those_of_autograd(
    kernels: str, batch: int, width: int, num_layers: int, rank: int, seed: int
) -> None:
    rank = min(rank, width - 1)
    small = SmallCross(width, num_layers, rank, seed, select_gemm("fp32", CPU), kernels)
    oracle = CrossOracle(width, small.layers, rank)
    first, of_out = small.random(batch, width), small.random(batch, width)
    first_in_full = first.double().requires_grad_()
    out = small.network.forward(first)
    expected = oracle(first_in_full)
    torch.autograd.backward(expected, of_out.double())
    of_first = small.network.backward(of_out.clone(), small.gradients, ())

    assert_close(out, expected)
    assert first_in_full.grad is not None
    assert_close(of_first, first_in_full.grad)
    for ours, (weight, bias) in zip(small.gradients, oracle.gradients(), strict=True):
        assert_close(ours.weight, weight)
        assert ours.bias.numel() == (0 if bias is None else width)
        if bias is not None:
            assert_close(ours.bias, bias)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Up to rounding: each value is a sum in which terms cancel, so the largest value sets the tolerance."""
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(found.double(), expected.detach(), rtol=0, atol=2e-5 * largest + 1e-30)


@pytest.mark.parametrize("rank", [0, 3])
def test_gradients_are_difference_quotients(rank: int) -> None:
    """In FP64. The output is affine in each single weight and bias, so that a quotient is exact for a step of any size.

    A step of a power of two on weights of few bits: no parameter in FP32 is rounded.
    """
    small = SmallCross(6, 3, rank, 4, DoubleGemm())
    small.flat.copy_((small.flat * 64).round() / 64)
    small.network.follow_weights(quantized=False)
    first, of_out = small.random(9, 6), small.random(9, 6)

    def loss() -> float:
        small.network.follow_weights(quantized=False)
        return float((small.network.forward(first) * of_out).sum())

    loss()
    of_first = small.network.backward(of_out.clone(), small.gradients, ())
    found = torch.cat([part.flatten() for one in small.gradients for part in (one.weight, one.bias)])
    for i in range(small.flat.numel()):
        small.flat[i] += 0.25
        above = loss()
        small.flat[i] -= 0.5
        quotient = (above - loss()) / 0.5
        small.flat[i] += 0.25
        assert float(found[i]) == pytest.approx(quotient, rel=1e-5, abs=1e-5)
    for b, w in ((0, 0), (3, 5), (8, 2)):
        value, step = float(first[b, w]), 1e-5
        first[b, w] = value + step
        above = loss()
        first[b, w] = value - step
        below, first[b, w] = loss(), value
        assert float(of_first[b, w]) == pytest.approx((above - below) / (2 * step), rel=1e-6)


@pytest.mark.bf16
@pytest.mark.parametrize("rank", [0, 8])
def test_bf16_stays_close_to_fp32(rank: int) -> None:
    """Eight bits of mantissa: 2^-8 for each of the factors that three layers have, forward and backward."""
    found = []
    for precision in ("fp32", "bf16"):
        small = SmallCross(32, 3, rank, 2, select_gemm(precision, CPU))
        first, of_out = small.random(50, 32), small.random(50, 32)
        out = small.network.forward(first)
        assert out.dtype == small.dtype
        of_first = small.network.backward(of_out, small.gradients, ())
        found.append((out, of_first, *(one.weight for one in small.gradients)))
    for fp32, bf16 in zip(*found, strict=True):
        assert (fp32 - bf16.float()).norm() < 16 * 2**-8 * fp32.norm()


def test_without_layers_nothing_happens() -> None:
    small = SmallCross(6, 0, 0, 1, select_gemm("fp32", CPU))
    x, grad = small.random(3, 6), small.random(3, 6)
    assert small.network.forward(x) is x
    assert small.network.backward(grad, (), ()) is grad


def test_what_comes_in_stays_as_it_is() -> None:
    small = SmallCross(6, 2, 2, 1, select_gemm("fp32", CPU))
    first = small.random(4, 6)
    before = first.clone()
    small.network.forward(first)
    assert torch.equal(first, before)


def test_the_layers_of_mlperf() -> None:
    """26 tables and the bottom MLP of 128 values each; three layers of rank 512."""
    settings = {
        "model.interaction": "cross",
        "model.cross_rank": "512",
        "model.embedding_dim": "128",
        "model.bottom_mlp": "512,256,128",
    }
    shapes = mlp_shapes(load_config("demo", None, settings))
    assert sum(shape.num_parameters for shape in shapes.cross) == 3 * (2 * 512 * 27 * 128 + 27 * 128)
    assert shapes.top[0].inputs == 27 * 128
    assert shapes.names[3:9] == tuple(f"cross.{i}.{part}" for i in range(3) for part in ("down", "up"))


def test_a_fresh_network_has_no_biases_and_weights_of_the_right_size() -> None:
    config = tiny_config(model={"interaction": "cross", "embedding_dim": 64, "bottom_mlp": (64,), "cross_rank": 32})
    model = Dlrm(config, TORCH, CPU)
    model.initialize_(5)
    for name, layer, _ in model.mlp_layers():
        if not name.startswith("cross"):
            continue
        assert not layer.bias.any()
        outputs, inputs = layer.weight.shape
        expected = (2 / (inputs + outputs)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("place", [0, 7, 31])
def test_a_gradient_that_is_not_finite_is_seen_in_a_layer_without_bias(place: int) -> None:
    model = Dlrm(tiny_config(model={"interaction": "cross", "cross_rank": 4}), TORCH, CPU)
    gradients = model.gradients()
    assert gradients.are_finite()
    gradients.cross[0].weight.view(-1)[place] = torch.inf
    assert not gradients.are_finite()
