"""Every method's values and gradients against its published formula, one weight at a time."""

from collections.abc import Callable

import pytest
import torch
from formula_oracle import dorefa, lsq, pact, uniform
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.quant.formula import Formula
from dqrm_cpu.quant.methods import DoReFa, Lsq, Pact, Uniform

BITS = st.sampled_from([2, 3, 4, 8, 16])
SEEDS = st.integers(0, 2**31)
SCALES = (0.3, 1.7)  # of row 0 and of row 1
TOLERANCE = 2.0**-20  # a few roundings of FP32


def weights(seed: int, scales: tuple[float, ...], bits: int) -> torch.Tensor:
    """f32[2, 40] from well inside the codes to beyond them; nowhere near the jumps, where FP32 may round otherwise."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)) - 3, 2 ** (bits - 1) + 3, (len(scales), 40), generator=generator)
    between = (torch.rand(codes.shape, generator=generator) - 0.5) * 0.8
    return (codes + between) * torch.tensor(scales)[:, None]


def column(scales: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(scales)[:, None]


def assert_near(found: torch.Tensor, expected: list[list[float]], unit: float) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-5, atol=TOLERANCE * unit)


@given(bits=BITS, seed=SEEDS)
def test_uniform_values(bits: int, seed: int) -> None:
    w = weights(seed, SCALES, bits)
    expected = [[uniform(x, s, bits) for x in row] for row, s in zip(w.tolist(), SCALES, strict=True)]
    assert_near(Uniform(bits).values(w, column(SCALES)), expected, 1)


@given(bits=BITS, seed=SEEDS, mask=st.booleans())
def test_uniform_gradient_passes_unless_masked(bits: int, seed: int, mask: bool) -> None:
    w, upstream = weights(seed, SCALES, bits), torch.randn(2, 40)
    grad = upstream.clone()
    formula = Uniform(bits, clip_mask=mask)
    assert formula.backward_(w, column(SCALES), grad) is None
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    saturated = [[not low <= round(x / s) <= high for x in row] for row, s in zip(w.tolist(), SCALES, strict=True)]
    expected = torch.where(torch.tensor(saturated), 0.0, upstream) if mask else upstream
    assert torch.equal(grad, expected)
    assert formula.straight_through is not mask
    assert formula.clipped(w, column(SCALES)).tolist() == saturated


@given(bits=BITS, seed=SEEDS)
def test_lsq(bits: int, seed: int) -> None:
    w, upstream = weights(seed, SCALES, bits), torch.randn(2, 40)
    expected = [[lsq(x, s, bits) for x in row] for row, s in zip(w.tolist(), SCALES, strict=True)]
    assert_near(Lsq(bits).values(w, column(SCALES)), [[e[0] for e in row] for row in expected], 1)
    grad = upstream.clone()
    of_scale = Lsq(bits).backward_(w, column(SCALES), grad)
    assert of_scale is not None
    assert_near(grad / upstream, [[e[1] for e in row] for row in expected], 1)
    assert_near(of_scale / upstream, [[e[2] for e in row] for row in expected], 2**bits)


@given(bits=BITS, seed=SEEDS)
def test_pact(bits: int, seed: int) -> None:
    clips = tuple(s * (2 ** (bits - 1) - 1) for s in SCALES)
    w, upstream = weights(seed, SCALES, bits), torch.randn(2, 40)
    expected = [[pact(x, a, bits) for x in row] for row, a in zip(w.tolist(), clips, strict=True)]
    assert_near(Pact(bits).values(w, column(clips)), [[e[0] for e in row] for row in expected], 1)
    grad = upstream.clone()
    of_scale = Pact(bits).backward_(w, column(clips), grad)
    assert of_scale is not None
    assert_near(grad / upstream, [[e[1] for e in row] for row in expected], 1)
    assert_near(of_scale / upstream, [[e[2] for e in row] for row in expected], 1)


@given(bits=st.sampled_from([2, 3, 4, 8]), seed=SEEDS)
def test_dorefa(bits: int, seed: int) -> None:
    """Levels are placed, and weights found that lie between the jumps around them."""
    generator = torch.Generator().manual_seed(seed)
    largest, n = 0.8, 2**bits - 1
    levels = torch.randint(0, n + 1, (1, 40), generator=generator)
    between = (torch.rand(levels.shape, generator=generator) - 0.5) * 0.8
    x = ((levels + between) / n).clamp(0, 1).double()
    w = torch.atanh((2 * x - 1) * torch.tanh(torch.tensor(largest, dtype=torch.float64))).float()
    expected = [dorefa(value, largest, bits) for value in w[0].tolist()]
    scale = DoReFa(bits).scale_of(torch.tensor([largest])).view(1, 1)
    assert_near(DoReFa(bits).values(w, scale), [[e[0] for e in expected]], 4)
    grad = torch.ones_like(w)
    assert DoReFa(bits).backward_(w, scale, grad) is None
    assert_near(grad, [[e[1] for e in expected]], 4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("kind", [Uniform, Lsq, Pact, DoReFa])
def test_stored_codes_mean_the_values(kind: Callable[[int], Formula], bits: int) -> None:
    """code * scale + offset, codes in b bits, two's complement."""
    formula = kind(bits)
    w, scale = torch.randn(3, 50), torch.tensor([[0.2], [0.9], [2.5]])
    codes, grid = formula.codes(w, scale), formula.grid(scale)
    assert torch.equal(codes, codes.round())
    assert codes.min() >= -(2 ** (bits - 1))
    assert codes.max() <= 2 ** (bits - 1) - 1
    found = codes * grid.scale + (0 if grid.offset is None else grid.offset)
    torch.testing.assert_close(found, formula.values(w, scale), rtol=1e-6, atol=1e-6)
