"""Feature vectors and their gradients in BF16: what is read is widened exactly, what is written is rounded once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import BITS, CASES, DIMS, IMPLEMENTATIONS, Case, copy_tables, implementation
from numba import njit

from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.jit import simd
from dqrm_cpu.kernels.reference import ReferenceKernels
from dqrm_cpu.kernels.types import UpdateRule

EXAMPLES = settings(max_examples=25)
ORACLE = ReferenceKernels()


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return implementation(request.param)


@njit
def _rounded(source, target, count):  # type: ignore[no-untyped-def]
    for k in range(0, count, simd.LANES):
        simd.store_bf16(target, k, simd.load_part(source, k, count - k), count - k)


@njit
def _widened(source, target, count):  # type: ignore[no-untyped-def]
    for k in range(0, count, simd.LANES):
        simd.store_part(target, k, simd.load_bf16(source, k, count - k), count - k)


@given(words=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_rounding_equals_torch(words: list[int]) -> None:
    source = torch.from_numpy(np.array(words, dtype=np.uint32).view(np.float32))
    target, beyond = torch.full((len(words) + 1,), 7.0, dtype=torch.bfloat16), 7.0
    _rounded(source.data_ptr(), target.data_ptr(), len(words))
    torch.testing.assert_close(target[:-1], source.bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert target[-1] == beyond


@given(words=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40))
def test_widening_is_exact(words: list[int]) -> None:
    source = torch.from_numpy(np.array(words, dtype=np.uint16).view(np.int16)).view(torch.bfloat16)
    target, beyond = torch.full((len(words) + 1,), 7.0), 7.0
    _widened(source.data_ptr(), target.data_ptr(), len(words))
    torch.testing.assert_close(target[:-1], source.float(), rtol=0, atol=0, equal_nan=True)
    assert target[-1] == beyond


@EXAMPLES
@given(case=CASES, bits=BITS)
def test_gather_rounds_once(kernels: Kernels, case: Case, bits: int) -> None:
    expected = torch.zeros_like(case.grad_features)
    actual = torch.zeros_like(expected, dtype=torch.bfloat16)
    kernels.gather_quantize_pool(case.tables, case.bags, case.scale, bits, actual)
    ORACLE.gather_quantize_pool(case.tables, case.bags, case.scale, bits, expected)
    assert torch.equal(actual, expected.bfloat16())


@EXAMPLES
@given(case=CASES)
def test_gradients_are_widened_exactly(kernels: Kernels, case: Case) -> None:
    lower = case.grad_features.bfloat16()
    grad = kernels.coalesce(case.tables, case.bags, lower)
    expected_grad = ORACLE.coalesce(case.tables, case.bags, lower.float())
    assert torch.equal(grad.values, expected_grad.values)
    actual, expected = copy_tables(case.tables), copy_tables(case.tables)
    kernels.update_(actual, case.bags, lower, UpdateRule(0.1, 0.01), None)
    ORACLE.update_(expected, case.bags, lower.float(), UpdateRule(0.1, 0.01), None)
    assert torch.equal(actual.weight, expected.weight)


@EXAMPLES
@given(
    batch=st.integers(0, 5),
    num_features=st.sampled_from([1, 2, 3, 4, 5, 16, 17, 27]),
    dim=DIMS,
    seed=st.integers(0, 99),
)
def test_interaction(kernels: Kernels, batch: int, num_features: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, num_features, dim, generator=generator).bfloat16()
    width = dim + num_features * (num_features - 1) // 2
    grad_out = torch.randn(batch, width, generator=generator).bfloat16()
    out, grad_features = torch.full_like(grad_out, 7.0), torch.full_like(features, 7.0)
    kernels.interaction_forward(features, out)
    kernels.interaction_backward(features, grad_out, grad_features)
    expected, expected_grad = torch.zeros(batch, width), torch.zeros_like(features, dtype=torch.float32)
    ORACLE.interaction_forward(features.float(), expected)
    ORACLE.interaction_backward(features.float(), grad_out.float(), expected_grad)
    # BF16 keeps 8 bits; sums of up to 130 terms are of the order of 10, and plain torch rounds some of them twice.
    torch.testing.assert_close(out.float(), expected, rtol=2**-7, atol=2**-5)
    torch.testing.assert_close(grad_features.float(), expected_grad, rtol=2**-7, atol=2**-5)


@EXAMPLES
@given(
    batch=st.integers(1, 3),
    num_features=st.sampled_from([1, 2, 3, 4, 5, 15, 16, 17, 18, 27, 33, 48, 64, 65]),
    dim=st.sampled_from([2, 6, 16, 31, 32, 62, 64, 128]),
    seed=st.integers(0, 99),
)
def test_interaction_of_integers_is_exact(kernels: Kernels, batch: int, num_features: int, dim: int, seed: int) -> None:
    """Sums of small integers are exact in any order: what is written is rounded once."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-4, 5, (batch, num_features, dim), generator=generator).bfloat16()
    width = dim + num_features * (num_features - 1) // 2
    grad_out = torch.randint(-4, 5, (batch, width), generator=generator).bfloat16()
    out, grad_features = torch.full_like(grad_out, 7.0), torch.full_like(features, 7.0)
    kernels.interaction_forward(features, out)
    kernels.interaction_backward(features, grad_out, grad_features)
    expected, expected_grad = torch.zeros(batch, width), torch.zeros_like(features, dtype=torch.float32)
    ORACLE.interaction_forward(features.float(), expected)
    ORACLE.interaction_backward(features.float(), grad_out.float(), expected_grad)
    assert torch.equal(out, expected.bfloat16())
    assert torch.equal(grad_features, expected_grad.bfloat16())
