"""What the kernels do for the MLPs, against the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import BITS, IMPLEMENTATIONS, implementation

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
@given(batch=st.sampled_from([1, 16, 65, 128]), width=WIDTHS, seed=st.integers(0, 2**31))
def test_transposition(kernels: Kernels, batch: int, width: int, seed: int) -> None:
    grad = torch.randn(batch, width, generator=torch.Generator().manual_seed(seed))
    room = torch.full((-(-width // TILE) * TILE, -(-batch // TILE) * TILE), 7.0)
    kernels.rectify_backward_(grad, None, torch.empty(width), room)
    assert torch.equal(room[:width, :batch], grad.t())


def test_a_gradient_passes_an_activation_that_is_not_a_number(kernels: Kernels) -> None:
    grad, activation = torch.ones(1, 3), torch.tensor([[float("nan"), 0.0, 1.0]])
    kernels.rectify_backward_(grad, activation, torch.empty(3), None)
    assert grad.tolist() == [[1.0, 0.0, 1.0]]
