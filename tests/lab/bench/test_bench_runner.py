"""How turns are taken and how figures follow from them; never how long anything takes."""

from collections.abc import Iterator
from itertools import count

import pytest
import torch
from bench_cases import BATCH, tiny_case

from dqrm_cpu.lab.bench.harness import runner
from dqrm_cpu.lab.bench.harness.batch_pool import Pool, Work, make_pool, pool_size
from dqrm_cpu.lab.bench.harness.result import Ratio, Timing, compare
from dqrm_cpu.lab.bench.harness.runner import Amortized, TurnPlan, derive, time_interleaved


class Recorder:
    """Notes who stepped on which batch; takes a given time on a clock of the test."""

    about = ""

    def __init__(self, name: str, seconds: float, log: list[tuple[str, int]], clock: "Clock", pool: Pool) -> None:
        self.name, self._seconds, self._log, self._clock = name, seconds, log, clock
        self._works = pool._works

    def setup(self) -> None: ...

    def step(self, work: Work) -> torch.Tensor:
        self._clock.now += self._seconds
        self._log.append((self.name, next(i for i, known in enumerate(self._works) if known is work)))
        return torch.empty(0)

    def teardown(self) -> None: ...


class Clock:
    """Time that passes only in steps."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(runner, "time", clock)
    yield clock


def make_small_pool(size: int = 3) -> Pool:
    return make_pool(tiny_case().config.model, BATCH, size, seed=1)


def test_turns_have_as_many_steps_as_fit_and_rotate(clock: Clock) -> None:
    log: list[tuple[str, int]] = []
    pool = make_small_pool()
    contestants = [Recorder("fast", 0.1, log, clock, pool), Recorder("slow", 2.0, log, clock, pool)]
    timings = time_interleaved(contestants, pool, TurnPlan(rounds=2, turn_s=0.5, warmup_rounds=1), lambda done: None)
    assert timings["fast"].samples == pytest.approx((0.1, 0.1))
    assert timings["slow"].samples == pytest.approx((2.0, 2.0))
    # One step that is not timed before each turn: 1 + 1 in the warm-up, then 1 + 5 and 1 + 1.
    turns = [("fast", 2), ("slow", 2), ("slow", 2), ("fast", 6), ("fast", 6), ("slow", 2)]
    assert [name for name, _ in log] == [name for name, steps in turns for _ in range(steps)]


def test_no_two_steps_in_a_row_share_a_batch(clock: Clock) -> None:
    log: list[tuple[str, int]] = []
    pool = make_small_pool(5)
    contestants = [Recorder(name, 0.1, log, clock, pool) for name in ("a", "b")]
    time_interleaved(contestants, pool, TurnPlan(rounds=3, turn_s=0.3, warmup_rounds=1), lambda done: None)
    assert [batch for _, batch in log] == [i % 5 for _, i in zip(log, count(), strict=False)]


def test_median_and_quartiles() -> None:
    timing_ = Timing((5.0, 1.0, 4.0, 2.0, 3.0), 1)
    assert (timing_.median_s, timing_.quartiles_s) == (3.0, (2.0, 4.0))


def test_one_round_has_quartiles_too() -> None:
    assert Timing((7.0,), 1).quartiles_s == (7.0, 7.0)


def test_a_period_shares_the_cost_of_the_scan() -> None:
    (derived,) = derive([Amortized("period", "", "kept", "every", 200)], {"kept": 2.0, "every": 102.0})
    assert derived.median_s == pytest.approx(2.5)  # 2 + 100 / 200


def test_ratios_of_absent_contestants_are_left_out() -> None:
    ratios = [Ratio("here", "fp32", "a", "b"), Ratio("gone", "fp32", "a", "c"), Ratio("extra", "fp32", "b", "a", "a")]
    compared = compare(ratios, {"a": 2.0, "b": 8.0})
    assert {found.ratio.key: found.value for found in compared} == {"here": 0.25, "extra": 3.0}


def test_a_ratio_by_round_does_not_mind_slow_minutes() -> None:
    # The same 2 to 1 in every round; the medians meet in different ones.
    samples = {"a": (2.0, 2.0, 9.0, 18.0, 18.0), "b": (1.0, 1.0, 4.5, 9.0, 9.0)}
    ratios = [
        Ratio("plain", "fp32", "a", "b"),
        Ratio("cost", "fp32", "a", "b", "b"),
        Ratio("derived", "fp32", "d", "b"),
    ]
    compared = compare(ratios, {"a": 9.0, "b": 4.5, "d": 3.0}, samples)
    assert {found.ratio.key: found.by_round for found in compared} == {"plain": 2.0, "cost": 1.0, "derived": None}


def test_pool_covers_the_caches() -> None:
    model = tiny_case().config.model  # 3 tables, D 8: a batch of 32 looks up 3,072 bytes
    assert pool_size(model, BATCH, cache_bytes=76_800) == 100
    assert pool_size(model, BATCH, cache_bytes=1) == 16
    assert pool_size(model, BATCH, cache_bytes=2**40) == 1024


def test_pools_repeat_and_stay_in_range() -> None:
    model = tiny_case().config.model
    first, second = make_pool(model, BATCH, 4, seed=1), make_pool(model, BATCH, 4, seed=1)
    for _ in range(4):
        work, again = first.next(), second.next()
        assert torch.equal(work.batch.ids, again.batch.ids)
        assert torch.equal(work.batch.ids.long(), work.long_ids)
        assert (work.long_ids < torch.tensor(model.table_rows)[:, None]).all()
        assert set(work.batch.label.tolist()) == {0.0, 1.0}
