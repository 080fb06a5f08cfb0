"""The FP32 message: laid out as documented, decoded without a copy, refused where it does not fit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comm_oracle import sparse_input
from dqrm_cpu.comm.buffers import Buffers
from dqrm_cpu.comm.codec import Fp32Codec
from dqrm_cpu.errors import CommError
from dqrm_cpu.kernels.types import SparseGrad

CODEC = Fp32Codec()


def encode(grad: SparseGrad) -> np.ndarray:
    message = Buffers().take("message", CODEC.encoded_bytes(grad))
    message[:] = 255
    CODEC.encode(grad, message)
    return message


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6), dim=st.integers(1, 20), seed=st.integers(0, 2**32 - 1)
)
def test_round_trip_keeps_every_bit(counts: list[int], dim: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    num_rows = sum(counts)
    grad = SparseGrad(
        torch.tensor([0, *np.cumsum(counts).tolist()]),
        torch.from_numpy(random.integers(0, 2**31, num_rows, dtype=np.int32)),
        torch.from_numpy(random.integers(0, 2**32, (num_rows, dim), dtype=np.uint32).view(np.float32)),
    )
    back = CODEC.decode(encode(grad), len(counts), dim)
    assert back.table_ptr.tolist() == grad.table_ptr.tolist()
    assert back.rows.numpy().tobytes() == grad.rows.numpy().tobytes()
    assert back.values.numpy().tobytes() == grad.values.numpy().tobytes()
    assert back.values.shape == grad.values.shape


def test_layout() -> None:
    grad = SparseGrad(torch.tensor([0, 1, 1, 3]), torch.tensor([7, 1, 2], dtype=torch.int32), torch.ones(3, 1))
    expected = np.zeros(64, np.uint8)  # 3 counts in 32, 3 rows in 16, 3 values in 16
    expected[:24] = np.array([1, 0, 2], np.int64).view(np.uint8)
    expected[32:44] = np.array([7, 1, 2], np.int32).view(np.uint8)
    expected[48:60] = np.ones(3, np.float32).view(np.uint8)
    assert encode(grad).tolist() == expected.tolist()


def test_decoding_copies_neither_rows_nor_values() -> None:
    grad = sparse_input(0)
    message = encode(grad)
    back = CODEC.decode(message, grad.table_ptr.numel() - 1, grad.values.shape[1])
    assert np.shares_memory(back.values.numpy(), message)
    assert np.shares_memory(back.rows.numpy(), message)


@pytest.mark.parametrize("cut", [8, 16])
def test_a_message_of_another_length_is_refused(cut: int) -> None:
    grad = sparse_input(0)
    message = encode(grad)
    with pytest.raises(CommError, match="does not fit"):
        CODEC.decode(message[:-cut], grad.table_ptr.numel() - 1, grad.values.shape[1])


def test_a_message_shorter_than_its_counts_is_refused() -> None:
    with pytest.raises(CommError, match="too short for 3 tables"):
        CODEC.decode(np.zeros(16, np.uint8), 3, 4)


def test_negative_counts_are_refused() -> None:
    message = np.zeros(16, np.uint8)
    message.view(np.int64)[:] = (-1, 1)
    with pytest.raises(CommError, match="does not fit"):
        CODEC.decode(message, 2, 4)
