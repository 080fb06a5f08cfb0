"""The stream: the same rows however they are asked for, ids in range, calibrated clicks."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.synthetic import stream
from dqrm_cpu.data.synthetic.click_model import BASE_CLICK_RATE
from dqrm_cpu.data.synthetic.kernel import MISSING
from dqrm_cpu.data.synthetic.stream import SyntheticClicks
from dqrm_cpu.errors import DataError

SMALL = (1460, 583, 5000, 3, 1, 24)


@cache  # and not as the file is collected, which every process of the tests does
def mixed() -> SyntheticClicks:
    return SyntheticClicks(SMALL, 13, seed=3)


@cache
def bags() -> SyntheticClicks:
    return SyntheticClicks(SMALL, 5, seed=3, max_bag_size=4)


def assert_same(one: Batch, other: Batch) -> None:
    assert torch.equal(one.dense, other.dense)
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.label, other.label)
    assert (one.offsets is None) == (other.offsets is None)
    if one.offsets is not None and other.offsets is not None:
        assert torch.equal(one.offsets, other.offsets)


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 10**12), first=st.integers(0, 300), second=st.integers(0, 300))
def test_chunks_are_parts_of_the_whole(start: int, first: int, second: int) -> None:
    whole = mixed().rows(start, start + first + second)
    left = mixed().rows(start, start + first)
    right = mixed().rows(start + first, start + first + second)
    joined = Batch(
        torch.cat([left.dense, right.dense]),
        torch.cat([left.ids, right.ids], 1),
        None,
        torch.cat([left.label, right.label]),
    )
    assert_same(whole, joined)


def test_bags_of_a_row_do_not_depend_on_the_batch() -> None:
    whole, alone = bags().rows(0, 50), bags().rows(20, 21)
    assert whole.offsets is not None and alone.offsets is not None
    for table in range(len(SMALL)):
        bag = table * 50 + 20
        want = whole.ids[whole.offsets[bag] : whole.offsets[bag + 1]]
        assert torch.equal(alone.ids[alone.offsets[table] : alone.offsets[table + 1]], want)


def test_threads_do_not_change_rows() -> None:
    many = mixed().rows(0, 3000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_same(mixed().rows(0, 3000), many)
    finally:
        torch.set_num_threads(threads)


def test_two_objects_of_a_seed_agree() -> None:
    assert_same(SyntheticClicks(SMALL, 13, seed=3).rows(7, 1000), mixed().rows(7, 1000))


def test_seeds_differ() -> None:
    other = SyntheticClicks(SMALL, 13, seed=4).rows(0, 1000)
    assert not torch.equal(other.ids, mixed().rows(0, 1000).ids)
    assert not torch.equal(other.label, mixed().rows(0, 1000).label)


def test_a_negative_seed_is_a_seed() -> None:
    assert SyntheticClicks((10,), 1, seed=-1).rows(0, 10).size == 10


def test_fill_writes_what_rows_returns() -> None:
    want = mixed().rows(100, 228)
    room = torch.full((len(SMALL), 300), -7, dtype=torch.int32)
    dense, label = torch.full((128, 13), -7.0), torch.full((128,), -7.0)
    mixed().fill(100, dense, room[:, 50:178], label)
    assert_same(Batch(dense, room[:, 50:178], None, label), want)
    assert (room[:, :50] == -7).all() and (room[:, 178:] == -7).all()


@pytest.mark.parametrize(
    ("dense", "ids", "label"),
    [
        (torch.empty(4, 12), torch.empty(6, 4, dtype=torch.int32), torch.empty(4)),
        (torch.empty(4, 13), torch.empty(6, 4, dtype=torch.int64), torch.empty(4)),
        (torch.empty(4, 13), torch.empty(6, 5, dtype=torch.int32), torch.empty(4)),
        (torch.empty(4, 13).double(), torch.empty(6, 4, dtype=torch.int32), torch.empty(4)),
    ],
)
def test_fill_refuses_other_shapes(dense: torch.Tensor, ids: torch.Tensor, label: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"fill\(\) wants"):
        mixed().fill(0, dense, ids, label)


def test_fill_refuses_bags() -> None:
    with pytest.raises(DataError, match="max_bag_size"):
        bags().fill(0, torch.empty(1, 5), torch.empty(6, 1, dtype=torch.int32), torch.empty(1))


@settings(max_examples=15, deadline=None)
@given(
    table_rows=st.lists(st.integers(1, 20_000_000), min_size=1, max_size=60),
    num_dense=st.integers(0, 30),
    max_bag_size=st.integers(1, 3),
)
def test_ids_stay_within_their_tables(table_rows: list[int], num_dense: int, max_bag_size: int) -> None:
    batch = SyntheticClicks(tuple(table_rows), num_dense, 1, max_bag_size).rows(0, 64)
    assert batch.dense.shape == (64, num_dense) and torch.isfinite(batch.dense).all()
    assert ((batch.label == 0) | (batch.label == 1)).all()
    if batch.offsets is None:
        tables = list(batch.ids)
    else:
        edges = batch.offsets[::64]
        tables = [batch.ids[edges[t] : edges[t + 1]] for t in range(len(table_rows))]
    for rows, ids in zip(table_rows, tables, strict=True):
        assert ((ids >= 0) & (ids < rows)).all()


def test_large_tables_are_used_over_their_length() -> None:
    ids = SyntheticClicks((10_000_000, 10_000_000), 1, 1).rows(0, 200_000).ids
    for table in ids:
        quarters = np.bincount((table // 2_500_000).numpy(), minlength=4)
        assert (quarters > 0).all()
        assert (table < 1000).float().mean() > 0.2


def test_bags_hold_none_to_all_alike() -> None:
    batch = bags().rows(0, 20_000)
    assert batch.offsets is not None
    sizes = batch.offsets.diff()
    assert batch.offsets[0] == 0 and batch.offsets[-1] == batch.ids.numel()
    shares = torch.bincount(sizes, minlength=5) / sizes.numel()
    # 120,000 bags: five standard deviations of a share of 1/5 are 0.006.
    assert shares.numel() == 5 and torch.allclose(shares, torch.full((5,), 0.2), atol=0.006)


def test_a_bag_starts_with_the_value_of_the_row() -> None:
    one_hot = SyntheticClicks(SMALL, 5, seed=3).rows(0, 200).ids
    batch = bags().rows(0, 200)
    assert batch.offsets is not None
    starts, sizes = batch.offsets[:-1], batch.offsets.diff()
    filled = sizes > 0
    assert torch.equal(batch.ids[starts[filled]], one_hot.flatten()[filled])


def test_dense_is_the_logarithm_of_the_raw_integers() -> None:
    raw, dense = mixed().raw_rows(0, 2000), mixed().rows(0, 2000).dense
    want = np.log1p(np.maximum(raw.integers.astype(np.float64), 0))
    assert (raw.integers == MISSING).any() and (raw.integers == -1).any()
    np.testing.assert_allclose(dense.numpy(), want, rtol=1e-6)


def test_ids_are_folded_ranks_and_zero_is_missing() -> None:
    source = SyntheticClicks((1460, 583, 100), 0, seed=1)
    raw, ids = source.raw_rows(0, 5000), source.rows(0, 5000).ids.numpy()
    assert [role.field.name for role in source.roles] == ["C1", "C2", "C3"]
    assert (raw.ranks[2] == -1).any() and (ids[2][raw.ranks[2] == -1] == 0).all()
    np.testing.assert_array_equal(ids[2], (raw.ranks[2] + 1) % 100)
    np.testing.assert_array_equal(ids[0], raw.ranks[0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_clicks_come_at_the_base_rate_early_and_late(seed: int) -> None:
    source = SyntheticClicks(SMALL, 13, seed)
    for start in (0, 10**9):
        # 100,000 rows: five standard deviations of the mean of clicks at .2245 are 0.0066.
        assert abs(float(source.rows(start, start + 100_000).label.mean()) - BASE_CLICK_RATE) < 0.0066


@settings(max_examples=40)
@given(mean=st.floats(-15, 15), spread=st.sampled_from([0.0, 0.1, 1.0, 4.0, 9.0]), seed=st.integers(0, 9))
def test_the_bias_is_that_of_a_bisection(mean: float, spread: float, seed: int) -> None:
    log_odds = np.random.default_rng(seed).normal(mean, spread, 2000)
    low, high = -20.0, 20.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        rate = (1.0 / (1.0 + np.exp(-(log_odds + middle)))).mean()
        low, high = (middle, high) if rate < BASE_CLICK_RATE else (low, middle)
    assert stream._bias(log_odds) == round(low, 4)


def test_labels_follow_the_planted_rates() -> None:
    rates, label = mixed().click_rates(0, 50_000), mixed().rows(0, 50_000).label.numpy()
    high = rates > np.median(rates)
    for part in (high, ~high):
        # 25,000 rows each: five standard deviations are at most 5 * 0.5 / 158 = 0.016.
        assert abs(label[part].mean() - rates[part].mean()) < 0.016


def test_an_empty_range_has_shapes() -> None:
    batch = mixed().rows(5, 5)
    assert batch.size == 0 and batch.dense.shape == (0, 13) and batch.ids.shape == (6, 0)


@pytest.mark.parametrize(
    ("table_rows", "num_dense", "max_bag_size", "message"),
    [
        ((), 1, 1, "without a table"),
        ((5, 0), 1, 1, "table 1"),
        ((5, 2**31), 1, 1, "table 1"),
        ((5,), -1, 1, "dense"),
        ((5,), 1, 0, "max_bag_size"),
    ],
)
def test_impossible_shapes_are_refused(
    table_rows: tuple[int, ...], num_dense: int, max_bag_size: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        SyntheticClicks(table_rows, num_dense, 1, max_bag_size)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (6, 5), (2**63, 2**63 + 1)])
def test_impossible_ranges_are_refused(start: int, stop: int) -> None:
    with pytest.raises(DataError, match="0 <= start <= stop"):
        mixed().rows(start, stop)
