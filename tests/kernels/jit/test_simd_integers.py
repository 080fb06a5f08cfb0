"""Choosing words of a vector, against NumPy; both ways to pack them where the machine has both."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dqrm_cpu.kernels.jit.compile import njit
from dqrm_cpu.kernels.jit.simd import LANES
from dqrm_cpu.kernels.jit.simd_integers import (
    hashed_equal,
    how_many,
    load_words,
    numbers_from,
    pack,
    pack_at_once,
    pack_one_by_one,
)

_DROP, _FACTOR, _KEEP_FROM = 4, 0x85EBCA6B, 30
_PACKERS = [pack_one_by_one] + ([pack_at_once] if pack is pack_at_once else [])


def _kernel(pack_lanes: Callable[..., Any]) -> Callable[..., Any]:
    @njit
    def chosen_of(source, count, wanted, target):  # type: ignore[no-untyped-def]
        words = load_words(source, 0, count)
        chosen = hashed_equal(words, _DROP, _FACTOR, _KEEP_FROM, wanted, count)
        pack_lanes(target, 1, words, chosen)
        pack_lanes(target, 3 * LANES, numbers_from(100), chosen)
        return how_many(chosen)

    return chosen_of


@pytest.mark.parametrize("packer", _PACKERS)
def test_packs_the_lanes_whose_hash_is_wanted(packer: Callable[..., Any]) -> None:
    kernel = _kernel(packer)
    for count in (0, 1, LANES - 1, LANES):
        for wanted in range(4):
            words = np.random.default_rng(count).integers(0, 1 << 31, LANES).astype(np.int32)
            target = np.full(5 * LANES, -1, dtype=np.int32)
            hashed = ((words.astype(np.uint64) >> _DROP) * _FACTOR & 0xFFFFFFFF) >> _KEEP_FROM
            expected = np.flatnonzero((hashed == wanted) & (np.arange(LANES) < count))
            size = kernel(words.ctypes.data, count, wanted, target.ctypes.data)
            assert size == expected.size
            assert target[0] == -1
            np.testing.assert_array_equal(target[1 : 1 + size], words[expected])
            np.testing.assert_array_equal(target[3 * LANES : 3 * LANES + size], expected + 100)
