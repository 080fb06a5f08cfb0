"""Choosing words of a vector, against NumPy; both ways to pack them where the machine has both."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dqrm_cpu.kernels.numba_impl import lanes
from dqrm_cpu.kernels.numba_impl.compiled import njit
from dqrm_cpu.kernels.numba_impl.vector import LANES

_DROP, _FACTOR, _KEEP_FROM = 4, 0x85EBCA6B, 30
_PACKERS = [lanes.pack_one_by_one] + ([lanes.pack_at_once] if lanes.pack is lanes.pack_at_once else [])


def _kernel(pack: Callable[..., Any]) -> Callable[..., Any]:
    @njit
    def chosen_of(source, count, wanted, target):  # type: ignore[no-untyped-def]
        words = lanes.load_words(source, 0, count)
        chosen = lanes.hashed_equal(words, _DROP, _FACTOR, _KEEP_FROM, wanted, count)
        pack(target, 1, words, chosen)
        pack(target, 3 * LANES, lanes.numbers_from(100), chosen)
        return lanes.how_many(chosen)

    return chosen_of


@pytest.mark.parametrize("pack", _PACKERS)
def test_packs_the_lanes_whose_hash_is_wanted(pack: Callable[..., Any]) -> None:
    kernel = _kernel(pack)
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
