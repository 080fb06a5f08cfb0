"""What the kernels do for the MLPs, against the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import BITS, IMPLEMENTATIONS, implementation
from torch.nn.functional import binary_cross_entropy_with_logits

from dqrm_cpu.kernels.interface import TILE, Kernels
from dqrm_cpu.kernels.reference import ReferenceKernels
from dqrm_cpu.kernels.types import UNQUANTIZED, RowCopy

EXAMPLES = settings(max_examples=25)
ORACLE = ReferenceKernels()
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
WIDTHS = st.sampled_from([1, 3, 13, 16, 31, 32, 33, 130, 479])


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return implementation(request.param)


@EXAMPLES
@given(
    shapes=st.lists(st.tuples(st.sampled_from([0, 1, 2, 16, 33]), WIDTHS), min_size=1, max_size=3),
    bits=st.one_of(BITS, st.just(UNQUANTIZED)),
    dtype=DTYPES,
    seed=st.integers(0, 2**31),
)
def test_copies_of_rows_are_bit_exact(
    kernels: Kernels, shapes: list[tuple[int, int]], bits: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sources = [torch.randn(shape, generator=generator) for shape in shapes]
    for source in sources:
        source[:1] = 0
    actual, expected = ([torch.full_like(source, 7.0, dtype=dtype) for source in sources] for _ in range(2))
    kernels.row_copier([RowCopy(source, target, bits) for source, target in zip(sources, actual, strict=True)])()
    ORACLE.row_copier([RowCopy(source, target, bits) for source, target in zip(sources, expected, strict=True)])()
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_copies_follow_their_source(kernels: Kernels) -> None:
    source, target = torch.ones(2, 3), torch.zeros(2, 3)
    follow = kernels.row_copier([RowCopy(source, target, 4)])
    follow()
    source.fill_(2)
    follow()
    assert torch.equal(target, source)


def test_a_weight_that_is_not_a_number_stays_one(kernels: Kernels) -> None:
    target = torch.zeros(1, 2, dtype=torch.bfloat16)
    kernels.row_copier([RowCopy(torch.tensor([[float("nan"), 1.0]]), target, UNQUANTIZED)])()
    assert target[0].isnan().tolist() == [True, False]


@EXAMPLES
@given(
    batch=st.sampled_from([1, 15, 16, 63, 64, 65, 200]),
    width=WIDTHS,
    dtype=DTYPES,
    rectified=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_rectifier_and_sums(
    kernels: Kernels, batch: int, width: int, dtype: torch.dtype, rectified: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    activation = torch.randn(batch, width, generator=generator).relu().to(dtype) if rectified else None
    actual = torch.randn(batch, width, generator=generator).to(dtype)
    expected, bias, expected_bias = actual.clone(), torch.full((width,), 7.0), torch.full((width,), 7.0)
    kernels.rectify_backward_(actual, activation, bias, None)
    ORACLE.rectify_backward_(expected, activation, expected_bias, None)
    assert torch.equal(actual, expected)
    # 200 terms of about 1, each sum rounded to 2^-24 of up to 100.
    torch.testing.assert_close(bias, expected_bias, rtol=0, atol=1e-3)


@EXAMPLES
@given(batch=st.sampled_from([1, 16, 65, 128, 257]), width=WIDTHS, seed=st.integers(0, 2**31))
def test_transposition(kernels: Kernels, batch: int, width: int, seed: int) -> None:
    grad = torch.randn(batch, width, generator=torch.Generator().manual_seed(seed))
    room = torch.full((-(-width // TILE) * TILE, -(-batch // TILE) * TILE), 7.0)
    kernels.rectify_backward_(grad, None, torch.empty(width), room)
    assert torch.equal(room[:width, :batch], grad.t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_passes_where_an_activation_is_not_at_most_zero(kernels: Kernels, dtype: torch.dtype) -> None:
    nan, infinity, smallest = float("nan"), float("inf"), torch.finfo(dtype).smallest_normal
    gates = torch.tensor([[nan, -nan, infinity, -infinity, 0.0, -0.0, smallest, -smallest, 1.0]], dtype=dtype)
    grad = torch.full_like(gates, 3.0)
    kernels.rectify_backward_(grad, gates, torch.empty(9), None)
    assert grad.tolist() == [[3.0, 3.0, 3.0, 0.0, 0.0, 0.0, 3.0, 0.0, 3.0]]


@EXAMPLES
@given(
    logits=st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=40),
    repeats=st.sampled_from([1, 13, 40]),
    soft=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_loss_and_its_gradient(kernels: Kernels, logits: list[float], repeats: int, soft: bool, seed: int) -> None:
    x = torch.tensor(logits).repeat(repeats)
    labels = torch.rand(x.numel(), generator=torch.Generator().manual_seed(seed))
    labels = labels if soft else labels.round()
    found = []
    for each in (kernels, ORACLE):
        loss, grad = torch.empty(2)[1], torch.full_like(x, 7.0)
        each.click_loss(x, labels, 1 / x.numel(), loss, grad)
        found.append((loss, grad))
    (loss, grad), (expected, expected_grad) = found
    # Losses and probabilities are rounded a few times; torch subtracts numbers as large as the logit.
    of_logits = 4 * 2**-24 * x.abs().max().item() if kernels.name == "torch" else 0
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=of_logits)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=4 * 2**-24 / x.numel())


@EXAMPLES
@given(
    logits=st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=40),
    repeats=st.sampled_from([1, 13, 40]),
    seed=st.integers(0, 2**31),
)
def test_weights_multiply_each_sample(kernels: Kernels, logits: list[float], repeats: int, seed: int) -> None:
    """Against the oracle, and against autograd of the plain formula in FP64."""
    x, generator = torch.tensor(logits).repeat(repeats), torch.Generator().manual_seed(seed)
    labels = torch.rand(x.numel(), generator=generator).round()
    weights = torch.rand(x.numel(), generator=generator) * 4 * torch.rand(x.numel(), generator=generator).round()
    share = 1 / max(float(weights.sum()), 1.0)
    found = []
    for each in (kernels, ORACLE):
        loss, grad = torch.empty(2)[1], torch.full_like(x, 7.0)
        each.click_loss(x, labels, share, loss, grad, weights)
        found.append((loss, grad))
    free = x.double().requires_grad_()
    of_samples = binary_cross_entropy_with_logits(free, labels.double(), reduction="none")
    expected = (of_samples * weights.double()).sum() * share
    (expected_grad,) = torch.autograd.grad(expected, free)
    of_logits = 4 * 2**-24 * x.abs().max().item() if kernels.name == "torch" else 0
    for loss, grad in found:
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=4e-6, atol=4 * of_logits)
        torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=16 * 2**-24 * share)


def test_weights_of_one_change_no_bit(kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(5)
    x, labels = 3 * torch.randn(2000, generator=generator), torch.rand(2000, generator=generator).round()
    results = []
    for weights in (None, torch.ones(2000)):
        loss, grad = torch.empty(()), torch.empty(2000)
        kernels.click_loss(x, labels, 1 / 2000, loss, grad, weights)
        results.append((loss.item(), grad.tolist()))
    assert results[0] == results[1]


def test_a_logit_that_is_not_a_number_shows_in_the_loss(kernels: Kernels) -> None:
    loss, grad = torch.empty(()), torch.empty(2)
    kernels.click_loss(torch.tensor([0.5, float("nan")]), torch.ones(2), 0.5, loss, grad)
    assert loss.isnan() and grad.isnan().tolist() == [False, True]


def test_threads_do_not_change_the_loss() -> None:
    kernels, generator = implementation("numba"), torch.Generator().manual_seed(3)
    x, labels = torch.randn(5000, generator=generator), torch.rand(5000, generator=generator).round()
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        loss, grad = torch.empty(()), torch.empty(5000)
        kernels.click_loss(x, labels, 1e-3, loss, grad)
        found.append((loss.item(), grad.tolist()))
    torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]
