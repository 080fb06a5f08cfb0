"""Sums of products of bytes, by the processor's instruction and without it, against NumPy; bytes of rounded floats."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from llvmlite import ir
from numba.core import types

from dqrm_cpu.kernels.jit.compile import njit
from dqrm_cpu.kernels.jit.memory import element_pointer, intrinsic
from dqrm_cpu.kernels.jit.simd import LANES, WORD_VECTOR, load
from dqrm_cpu.kernels.jit.simd_integers import (
    HAS_BYTE_PRODUCTS,
    byte_products_at_once,
    byte_products_by_halves,
    store_bytes,
)

_FORMS = [byte_products_by_halves] + ([byte_products_at_once] if HAS_BYTE_PRODUCTS else [])


def _kernel(generate: Callable[..., Any]) -> Callable[..., Any]:
    @intrinsic
    def summed(typing, start, unsigned, signed, out):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            places = [element_pointer(builder, at, ir.IntType(64)(0), WORD_VECTOR, 4) for at in args]
            words = [builder.load(place, align=4) for place in places[:3]]
            builder.store(generate(builder, *words), places[3], align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    @njit
    def sums_of(start, unsigned, signed, out):  # type: ignore[no-untyped-def]
        summed(start, unsigned, signed, out)

    return sums_of


@pytest.mark.parametrize("form", _FORMS)
def test_sums_are_exact(form: Callable[..., Any]) -> None:
    kernel, rng = _kernel(form), np.random.default_rng(1)
    for unsigned, signed in (
        (np.full(4 * LANES, 255), np.full(4 * LANES, -128)),
        (np.full(4 * LANES, 255), np.full(4 * LANES, 127)),
        *((rng.integers(256, size=4 * LANES), rng.integers(-128, 128, size=4 * LANES)) for _ in range(20)),
    ):
        start, out = rng.integers(-(2**29), 2**29, LANES).astype(np.int32), np.empty(LANES, np.int32)
        u, s = unsigned.astype(np.uint8), signed.astype(np.int8)
        kernel(*(array.ctypes.data for array in (start, u, s, out)))
        np.testing.assert_array_equal(out, start + (unsigned * signed).reshape(LANES, 4).sum(1))


@pytest.mark.parametrize(("added", "low", "high"), [(0, 0, 255), (128, -128, 127)])
def test_bytes_are_rounded_half_to_even(added: int, low: int, high: int) -> None:
    @njit
    def stored(x, out):  # type: ignore[no-untyped-def]
        store_bytes(out, 3, load(x, 0), added)

    for seed in range(10):
        rng = np.random.default_rng(seed)
        x = (rng.integers(2 * low, 2 * high + 1, LANES) / 2).astype(np.float32)
        x[0] = np.nan
        out = np.full(LANES + 4, 7, np.uint8)
        stored(x.ctypes.data, out.ctypes.data)
        expected = np.rint(np.nan_to_num(x, nan=0.0)).astype(np.int64) + added
        np.testing.assert_array_equal(out[3:-1], expected)
        assert out[:3].tolist() == [7, 7, 7]
        assert out[-1] == 7
