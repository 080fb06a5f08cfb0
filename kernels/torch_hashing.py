"""The hashes of the other implementations in torch, on any device: numbers that depend on what they are for alone.

torch keeps 64-bit words in a signed type: products and sums wrap as they must, constants and shifts need care.
"""

import torch
from torch import Tensor

_LOW_HALF = (1 << 32) - 1


def mixed(word: Tensor, counter: Tensor) -> Tensor:
    """splitmix64: number `counter` of the sequence that starts at `word`; int64, broadcast against each other."""
    return _splitmix(word + counter.long() * signed(0x9E3779B97F4A7C15))


def uniform_odd(seed: int, rows: Tensor, dim: int) -> Tensor:
    """Odd integers in (-2^23, 2^23) as f32[rows, dim]: the hash that `reference.uniform_value` spells out."""
    z = _splitmix(rows * signed(0x9E3779B97F4A7C15) + signed(seed * 0xD1342543DE82EF95 + 1))[:, None]
    x = (z & _LOW_HALF) ^ (torch.arange(dim, device=rows.device) * 0x9E3779B9 & _LOW_HALF)
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _LOW_HALF
    x = x ^ shift_right(z, 32)
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _LOW_HALF
    x = x ^ (x >> 15)
    return (2 * (x >> 9) + 1 - 2**23).float()


def shift_right(x: Tensor, by: int) -> Tensor:
    """Logical shift."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def signed(word: int) -> int:
    """The int64 with the bits of a word of 64."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >= 1 << 63 else word


def _splitmix(z: Tensor) -> Tensor:
    z = (z ^ shift_right(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shift_right(z, 27)) * signed(0x94D049BB133111EB)
    return z ^ shift_right(z, 31)
