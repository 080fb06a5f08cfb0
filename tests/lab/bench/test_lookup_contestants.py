"""Whoever takes part in `bench lookup` pools the same rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dqrm_cpu.lab.bench.harness.contestant import set_up
from dqrm_cpu.lab.bench.lookup.lookup_benchmark import CASES, lookup_contestants, make_lookups
from dqrm_cpu.lab.bench.lookup.packed_table import SCALE, PackedTable
from dqrm_cpu.lab.bench.step.fbgemm import PACKAGE

NUM_ROWS = 50


@pytest.mark.parametrize("name", ["d16_bag1", "d64_bag20_cached"])
def test_all_pool_the_rows_of_the_table(name: str) -> None:
    case = replace(CASES[name], num_bags=70)
    table = PackedTable(NUM_ROWS, case.dim, seed=3)
    codes = np.stack([table.codes.numpy() & 15, table.codes.numpy() >> 4], axis=2).reshape(NUM_ROWS, case.dim)
    values = np.where(codes > 7, codes - 16.0, codes) * SCALE
    work = make_lookups(case, NUM_ROWS, 1).next()
    expected = values[work.long_ids.numpy().reshape(case.num_bags, case.bag)].sum(axis=1)
    assert np.ptp(expected) > 0
    contestants, absent = set_up(list(lookup_contestants(case, table)))
    for one in contestants:
        found = one.step(work)
        assert found.shape == (case.num_bags, case.dim)
        if one.name != "row_floor":
            torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=0, atol=0, msg=one.name)
    assert all(PACKAGE in reason for reason in absent.values()), absent


@pytest.mark.parametrize("name", CASES)
def test_tables_are_larger_than_the_last_cache_or_fit(name: str) -> None:
    case, cache_bytes = CASES[name], 300 << 20
    code_bytes = case.rows(cache_bytes) * case.dim // 2
    assert code_bytes == (1 << 20 if case.is_cached else 2 * cache_bytes)
