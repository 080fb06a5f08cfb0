"""Layers that multiply bytes against oracles in int64, to the bit: any width and rows, zeros, huge and tiny numbers."""

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.kernels.numba.split_panels import CAN_SPLIT, LEAST_OUTPUTS
from dqrm_cpu.kernels.packed_arrays import LEAST_MAGNITUDE, IntegerInputs, LayerArrays, NetworkArrays, TableArrays
from dqrm_cpu.kernels.packed_scoring import CompiledNetwork

ONE = np.ones(1, np.float32)
needs_split = pytest.mark.skipif(not CAN_SPLIT, reason="this processor has no instruction for which numbers are split")


def outcomes(
    x: np.ndarray, layer: LayerArrays, outputs: Iterable[int], gain: float = 1.0, before: Sequence[LayerArrays] = ()
) -> list[np.ndarray]:
    """f32[n] of some outputs of a layer that reads `gain` x and as many zeros, or what layers `before` make of them.

    The network of each hands on one output.
    """
    inputs = x.shape[1]
    table = TableArrays(np.zeros((1, inputs), np.uint8), 1, inputs, 8, ONE, None, 0, 1, False)
    same = LayerArrays(np.eye(inputs, dtype=np.float32) * np.float32(gain), 32, None, None, False)
    found = []
    for output in outputs:
        chosen = np.zeros((1, len(layer.values)), np.float32)
        chosen[0, output] = 1
        last = LayerArrays(chosen, 32, None, None, False)
        network = NetworkArrays(
            [table], [None], [same], [], [*before, layer, last], inputs, is_dot=False, is_mean=False
        )
        found.append(CompiledNetwork(network, threads=2).logits(x, np.zeros((len(x), 1), np.int64)))
    return found


def expected_outcome(x: np.ndarray, layer: LayerArrays) -> np.ndarray:
    """f32[n, outputs] by sums in int64."""
    assert layer.integers is not None
    assert layer.scale is not None
    assert layer.bias is not None
    x, first = np.concatenate([x, np.zeros_like(x)], axis=1), layer.integers.first_inputs
    most = np.float32(255 if layer.integers.is_unsigned else 127)
    total = np.zeros((len(x), len(layer.values)), np.float32)
    for block, codes in ((x[:, :first], layer.values[:, :first]), (x[:, first:], layer.values[:, first:])):
        largest = np.abs(block).max(axis=1, initial=0)
        factor = np.array([most / one if one >= LEAST_MAGNITUDE else np.float32(0) for one in largest], np.float32)
        whole = np.rint(block * factor[:, None]).astype(np.int64)
        total += (whole @ codes.astype(np.int64).T).astype(np.float32) * (largest / most)[:, None]
    total = total * layer.scale + layer.bias
    return np.maximum(total, 0) if layer.rectify else total


@settings(max_examples=40)
@given(st.data())
def test_it_is_the_oracle(data: st.DataObject) -> None:
    inputs, count = data.draw(st.integers(1, 70)), data.draw(st.sampled_from([1, 2, 31, 33, 130]))
    rows, is_unsigned = data.draw(st.integers(1, 130)), data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    layer = LayerArrays(
        values=rng.integers(-128, 128, size=(count, 2 * inputs)).astype(np.float32),
        bits=8,
        scale=rng.uniform(1e-3, 1, count).astype(np.float32),
        bias=rng.normal(size=count).astype(np.float32),
        rectify=data.draw(st.booleans()),
        integers=IntegerInputs(is_unsigned, data.draw(st.integers(1, 2 * inputs))),
    )
    x = rng.normal(size=(rows, inputs)) * 10.0 ** rng.integers(-33, 30, size=(rows, 1))
    x[rng.random(rows) < 0.1] = 0
    x = (np.abs(x) if is_unsigned else x).astype(np.float32)
    outputs = sorted({0, count - 1, data.draw(st.integers(0, count - 1))})
    expected = expected_outcome(x, layer)
    for output, found in zip(outputs, outcomes(x, layer, outputs), strict=True):
        np.testing.assert_array_equal(found, expected[:, output])


def test_the_largest_sums_fit() -> None:
    inputs = 1000
    layer = LayerArrays(
        np.full((2, 2 * inputs), -128, np.float32),
        8,
        ONE,
        np.zeros(2, np.float32),
        False,
        integers=IntegerInputs(False, 2 * inputs),
    )
    x = np.full((13, inputs), 127, np.float32)
    (found,) = outcomes(x, layer, [1])
    np.testing.assert_array_equal(found, np.float32(-128 * 127 * inputs))


def test_a_number_that_is_not_finite_spoils_its_row_alone() -> None:
    layer = LayerArrays(
        np.ones((2, 10), np.float32), 8, ONE, np.zeros(2, np.float32), True, integers=IntegerInputs(False, 3)
    )
    x = np.ones((50, 5), np.float32)
    x[7, 1] = x[20, 4] = -100
    (found,) = outcomes(x, layer, [0], gain=1e37)
    assert np.flatnonzero(~np.isfinite(found)).tolist() == [7, 20]


def split_outcome(x: np.ndarray, layer: LayerArrays, is_unsigned: bool) -> np.ndarray:
    """f32[n, outputs] by sums in int64 of each of the three bytes of x f32[n, inputs]."""
    assert layer.scale is not None
    assert layer.bias is not None
    codes, zero = layer.values.astype(np.int64), 0 if is_unsigned else 1 << 23
    exponent = np.abs(x).max(axis=1, initial=0).view(np.int32).astype(np.int64) >> 23
    unit = 2.0 ** (exponent - 127 - 23 + (not is_unsigned))
    unit[exponent < 27] = 0
    whole = np.rint(np.divide(x, unit[:, None], where=unit[:, None] > 0, out=np.zeros(x.shape)))
    words = np.minimum(whole.astype(np.int64) + zero, (1 << 24) - 1)
    low, middle, high = ((((words >> shift) & 255) @ codes.T).astype(np.float64) for shift in (0, 8, 16))
    high -= (zero >> 16) * codes.sum(axis=1)
    total = (high * 256 + middle).astype(np.float32).astype(np.float64)
    joined: np.ndarray = (total * 256 + low).astype(np.float32) * unit.astype(np.float32)[:, None]
    joined = joined * layer.scale + layer.bias
    return np.maximum(joined, 0) if layer.rectify else joined


@needs_split
@settings(max_examples=40)
@given(st.data())
def test_split_numbers_are_the_oracle(data: st.DataObject) -> None:
    inputs, rows, is_unsigned = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 130)), data.draw(st.booleans())
    count, bits = data.draw(st.sampled_from([LEAST_OUTPUTS, LEAST_OUTPUTS + 31])), data.draw(st.integers(2, 8))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    layer = LayerArrays(
        values=rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), size=(count, 2 * inputs)).astype(np.float32),
        bits=bits,
        scale=rng.uniform(1e-3, 1, count).astype(np.float32),
        bias=rng.normal(size=count).astype(np.float32),
        rectify=data.draw(st.booleans()),
    )
    x = (rng.normal(size=(rows, inputs)) * 10.0 ** rng.integers(-33, 30, size=(rows, 1))).astype(np.float32)
    x[rng.random(rows) < 0.1] = 0
    x[rng.random(rows) < 0.1] = np.nextafter(np.float32(-2), np.float32(0))  # no power of two is less above it
    read = np.concatenate([x, np.zeros_like(x)], axis=1)
    rectified = LayerArrays(np.eye(2 * inputs, dtype=np.float32), 32, None, None, rectify=True)
    expected = split_outcome(np.maximum(read, 0) if is_unsigned else read, layer, is_unsigned)
    outputs = sorted({0, count - 1, data.draw(st.integers(0, count - 1))})
    found = outcomes(x, layer, outputs, before=[rectified] if is_unsigned else ())
    for output, of_output in zip(outputs, found, strict=True):
        np.testing.assert_array_equal(of_output, expected[:, output])


@needs_split
def test_split_numbers_are_as_exact_as_sums_in_fp32() -> None:
    rng, inputs = np.random.default_rng(3), 200
    codes, scale = rng.integers(-8, 8, size=(LEAST_OUTPUTS, 2 * inputs)).astype(np.float32), np.float32(0.02)
    x = rng.normal(size=(300, inputs)).astype(np.float32)
    exact = x.astype(np.float64) @ codes[:, :inputs].T.astype(np.float64) * float(scale)
    rounded = (x @ codes[:, :inputs].T * scale).astype(np.float64)
    layer = LayerArrays(codes, 4, np.full(1, scale), None, False)
    outputs = range(0, LEAST_OUTPUTS, 16)
    found = np.stack(outcomes(x, layer, outputs), axis=1)
    assert np.abs(found - exact[:, outputs]).max() < 2 * np.abs(rounded - exact).max()


@needs_split
def test_a_split_number_that_is_not_finite_spoils_its_row_alone() -> None:
    layer = LayerArrays(np.ones((LEAST_OUTPUTS, 10), np.float32), 8, ONE, None, True)
    x = np.ones((50, 5), np.float32)
    x[7, 1] = x[20, 4] = -100
    (found,) = outcomes(x, layer, [0], gain=1e37)
    assert np.flatnonzero(~np.isfinite(found)).tolist() == [7, 20]
