"""One message a rank: laid out as documented, decoded without a copy of the values, in the widths that are promised."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comm_oracle import merge, sparse_input
from dqrm_cpu.comm.exchange.codec import Codec, Fp32Codec, ScaleRule, layout_of, merge_messages
from dqrm_cpu.comm.exchange.integer_codec import IntegerCodec
from dqrm_cpu.comm.transport import Buffers
from dqrm_cpu.kernels.types import SparseGrad

INT8_LIMIT, INT16_LIMIT = 127, 32767
INTEGER_CODECS = {
    "int8": IntegerCodec("int8", False, ScaleRule(INT8_LIMIT)),
    "int8-fp32": IntegerCodec("int8", True, ScaleRule(INT8_LIMIT)),
    "int16": IntegerCodec("int16", False, ScaleRule(INT16_LIMIT)),
    "int16-fp32": IntegerCodec("int16", True, ScaleRule(INT16_LIMIT)),
}


def encode(codec: Codec, grad: SparseGrad, scales: np.ndarray) -> np.ndarray:
    message = Buffers().take("message", layout_of(grad, codec.value_bytes).message_bytes)
    message[:] = 255
    codec.encode(grad, scales.astype(np.float32), message)
    return message


def gradient(counts: Sequence[int], dim: int, bits: np.ndarray) -> SparseGrad:
    rows = np.concatenate([np.arange(count) * 3 for count in counts]).astype(np.int32)
    pointer = torch.tensor([0, *np.cumsum(counts).tolist()])
    return SparseGrad(pointer, torch.from_numpy(rows), torch.from_numpy(bits.view(np.float32).reshape(-1, dim)))


def test_layout() -> None:
    grad = SparseGrad(torch.tensor([0, 1, 1, 3]), torch.tensor([7, 1, 2], dtype=torch.int32), torch.ones(3, 1))
    expected = np.zeros(32, np.uint8)  # 3 rows in 16, 3 values in 16
    expected[:12] = np.array([7, 1, 2], np.int32).view(np.uint8)
    expected[16:28] = np.ones(3, np.float32).view(np.uint8)
    assert encode(Fp32Codec(merge), grad, np.empty(0)).tolist() == expected.tolist()


def test_integer_layout() -> None:
    grad = SparseGrad(torch.tensor([0, 1, 1, 3]), torch.tensor([7, 1, 2], dtype=torch.int32), torch.ones(3, 1))
    grad.values[1] = -3
    expected = np.zeros(32, np.uint8)
    expected[:12] = np.array([7, 1, 2], np.int32).view(np.uint8)
    expected[16:19] = np.array([2, -3, 1], np.int8).view(np.uint8)
    assert encode(INTEGER_CODECS["int8"], grad, np.array([0.5, 1, 1])).tolist() == expected.tolist()


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6), dim=st.integers(1, 20), seed=st.integers(0, 2**32 - 1)
)
@settings(max_examples=30, deadline=None)
def test_fp32_keeps_every_bit(counts: list[int], dim: int, seed: int) -> None:
    grad = gradient(counts, dim, np.random.default_rng(seed).integers(0, 2**32, sum(counts) * dim, dtype=np.uint32))
    codec = Fp32Codec(lambda grads: grads[0])
    message = encode(codec, grad, np.empty(0))
    back = merge_messages(codec, [message], grad.table_ptr.numpy()[None], dim, np.empty(0, np.float32))
    assert back.table_ptr.tolist() == grad.table_ptr.tolist()
    assert back.rows.numpy().tobytes() == grad.rows.numpy().tobytes()
    assert back.values.numpy().tobytes() == grad.values.numpy().tobytes()


def test_decoding_copies_neither_rows_nor_values() -> None:
    grad = sparse_input(0)
    codec = Fp32Codec(lambda grads: grads[0])
    message = encode(codec, grad, np.empty(0))
    dim = grad.values.shape[1]
    back = merge_messages(codec, [message], grad.table_ptr.numpy()[None], dim, np.empty(0, np.float32))
    assert np.shares_memory(back.values.numpy(), message)
    assert np.shares_memory(back.rows.numpy(), message)


@pytest.mark.parametrize("name", INTEGER_CODECS)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    dim=st.sampled_from([1, 3, 8, 16, 17, 33]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=20, deadline=None)
def test_integers_are_off_by_half_a_step_at_most(name: str, counts: list[int], dim: int, seed: int) -> None:
    random, codec = np.random.default_rng(seed), INTEGER_CODECS[name]
    values = (random.standard_normal(sum(counts) * dim) * 10.0 ** random.integers(-30, 30)).astype(np.float32)
    grad = gradient(counts, dim, values)
    absmax = codec.absmax(grad)
    assert absmax is not None
    scales = codec.scale_rule.scales(absmax[None])
    sent = codec.sent(grad, scales, encode(codec, grad, scales))
    half = np.repeat(scales.astype(np.float64) / 2, counts)[:, None]
    # The product of code and scale is rounded to FP32 once more.
    rounding = np.abs(sent.astype(np.float64)) * 2.0**-23
    assert (np.abs(sent.astype(np.float64) - grad.values.numpy()) <= half + rounding).all()


@pytest.mark.parametrize("name", INTEGER_CODECS)
def test_absmax_is_that_of_each_table(name: str) -> None:
    grad = gradient([2, 0, 3], 2, np.array([1, -5, 2, 3, -7, 0, 1, 1, 1, 8], np.float32))
    assert INTEGER_CODECS[name].absmax(grad).tolist() == [5, 0, 8]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", INTEGER_CODECS)
def test_what_is_beyond_the_largest_code_saturates(name: str) -> None:
    codec = INTEGER_CODECS[name]
    grad = gradient([3], 1, np.array([1e9, -1e9, 3e38], np.float32))
    sent = codec.sent(grad, np.ones(1, np.float32), encode(codec, grad, np.ones(1)))
    limit = codec.scale_rule.limit
    assert sent.ravel().tolist() == [limit, -limit, limit]
