"""Each vector operation against NumPy, through kernels that do nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from dqrm_cpu.kernels.jit import memory, simd, simd_integers

FLOATS = np.concatenate(
    [np.array([0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1e30, np.inf, -np.inf, np.nan, 1e-40]), np.linspace(-9, 9, 60)]
).astype(np.float32)


@njit
def _copy(source, target, count):  # type: ignore[no-untyped-def]
    for k in range(0, count, simd.LANES):
        simd.store_part(target, k, simd.load_part(source, k, count - k), count - k)


@njit
def _combine(a, b, c, target):  # type: ignore[no-untyped-def]
    x, y, z = simd.load(a, 0), simd.load(b, 0), simd.load(c, 0)
    simd.store(target, 0, simd.add(x, y))
    simd.store(target, simd.LANES, simd.subtract(x, y))
    simd.store(target, 2 * simd.LANES, simd.multiply(x, y))
    simd.store(target, 3 * simd.LANES, simd.divide(x, y))
    simd.store(target, 4 * simd.LANES, simd.multiply_add(x, y, z))
    return simd.total(x)


@njit
def _clamped(source, target, low, high):  # type: ignore[no-untyped-def]
    simd.store(target, 0, simd.round_clamp(simd.load(source, 0), low, high))


@njit
def _magnitudes(a, b):  # type: ignore[no-untyped-def]
    found = simd_integers.larger(simd_integers.magnitude(simd.load(a, 0)), simd_integers.magnitude(simd.load(b, 0)))
    return simd_integers.largest(found), simd_integers.as_float(simd_integers.largest(found))


@njit
def _transposed(source, stride, rows, columns, target, target_stride):  # type: ignore[no-untyped-def]
    simd.transpose(source, stride, rows, columns, target, target_stride)


@njit
def _codes(source, target, count, code_bytes):  # type: ignore[no-untyped-def]
    simd_integers.store_codes(target, 0, simd.load(source, 0), count, code_bytes)


@njit
def _numbers(ints, longs, floats):  # type: ignore[no-untyped-def]
    memory.set_int(ints, 1, memory.int_at(ints, 0) - 1)
    memory.raise_int(ints, 2, 5)
    memory.raise_int(ints, 2, 3)
    memory.set_long(longs, 1, memory.long_at(longs, 0) + 1)
    memory.set_float(floats, 1, memory.float_at(floats, 0))
    return memory.claim(longs), memory.claim(longs)


def place(array: np.ndarray) -> int:
    return array.ctypes.data


def lanes(seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(simd.LANES) * scale).astype(np.float32)


@given(count=st.integers(0, 70))
def test_parts_touch_nothing_beyond(count: int) -> None:
    target = np.full(FLOATS.size + 80, 7, np.float32)
    _copy(place(FLOATS), place(target), count)
    assert target[:count].tobytes() == FLOATS[:count].tobytes()
    assert (target[count:] == 7).all()


@given(seed=st.integers(0, 2**31))
def test_arithmetic_is_rounded_as_numpy_rounds(seed: int) -> None:
    a, b, c = lanes(seed), lanes(seed + 1), lanes(seed + 2)
    target = np.zeros((5, simd.LANES), np.float32)
    total = _combine(place(a), place(b), place(c), place(target))
    assert np.array_equal(target[:4], np.stack([a + b, a - b, a * b, a / b]))
    # The product of two f32 is exact in f64; the sum there is off by far less than an f32 half unit, but for ties.
    assert np.allclose(target[4], (a.astype(np.float64) * b + c).astype(np.float32), rtol=1e-7, atol=1e-9)
    assert total == pytest.approx(float(a.astype(np.float64).sum()), abs=1e-5)


@pytest.mark.parametrize("start", range(0, FLOATS.size - simd.LANES, simd.LANES))
def test_rounding_half_to_even_and_nan(start: int) -> None:
    part, target = FLOATS[start : start + simd.LANES].copy(), np.zeros(simd.LANES, np.float32)
    _clamped(place(part), place(target), np.float32(-8), np.float32(7))
    assert np.array_equal(target, np.clip(np.rint(part), -8, 7), equal_nan=True)


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-42, 1e-3, 1.0, 1e30]))
def test_magnitudes_order_as_floats(seed: int, scale: float) -> None:
    a, b = lanes(seed, scale), lanes(seed + 1, scale)
    largest = np.maximum(np.abs(a), np.abs(b)).max()
    bits = int(largest.view(np.int32))
    assert _magnitudes(place(a), place(b)) == (bits, largest)


def test_nan_has_the_largest_magnitude() -> None:
    a, b = np.full(simd.LANES, np.inf, np.float32), lanes(0)
    b[simd.LANES // 2] = np.nan
    assert np.isnan(_magnitudes(place(a), place(b))[1])


@given(rows=st.integers(0, simd.LANES), columns=st.integers(0, simd.LANES))
def test_transpose(rows: int, columns: int) -> None:
    source = np.arange(1, 1 + rows * (columns + 3), dtype=np.float32).reshape(rows, columns + 3)
    target = np.full((simd.LANES, simd.LANES + 5), 7, np.float32)
    _transposed(place(source), columns + 3, rows, columns, place(target), simd.LANES + 5)
    expected = np.zeros((simd.LANES, simd.LANES), np.float32)
    expected[:columns, :rows] = source[:, :columns].T
    assert np.array_equal(target[:, : simd.LANES], expected)
    assert (target[:, simd.LANES :] == 7).all()


@pytest.mark.parametrize("kind", [np.int8, np.int16])
@pytest.mark.parametrize("count", [0, 1, 5, simd.LANES])
def test_codes(kind: type[np.signedinteger], count: int) -> None:
    limits = np.iinfo(kind)
    source = np.zeros(simd.LANES, np.float32)
    source[:5] = [limits.min, limits.max, -1, np.nan, 3]
    target = np.full(simd.LANES + 1, 9, kind)
    _codes(place(source), place(target), count, np.dtype(kind).itemsize)
    assert np.array_equal(target[:count], np.nan_to_num(source)[:count].astype(kind))
    assert (target[count:] == 9).all()


def test_numbers_at_an_address() -> None:
    ints = np.array([-5, 0, -(2**31)], np.int32)
    longs, floats = np.array([2**40, 0], np.int64), np.array([1.5, 0], np.float32)
    assert _numbers(place(ints), place(longs), place(floats)) == (2**40, 2**40 + 1)
    assert ints.tolist() == [-5, -6, 5]
    assert longs.tolist() == [2**40 + 2, 2**40 + 1]
    assert floats.tolist() == [1.5, 1.5]


@pytest.mark.skipif(simd.LANES != 16, reason="needs AVX-512")
def test_vectors_fill_the_widest_registers() -> None:
    source = np.zeros(simd.LANES, np.float32)
    _clamped(place(source), place(source), np.float32(0), np.float32(0))
    assert "zmm" in next(iter(_clamped.inspect_asm().values()))
