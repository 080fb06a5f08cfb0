"""What a search tries: only what was not given, always the settings as they are, the same for a seed."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.config import check_config
from dqrm_cpu.config.schema import flatten
from dqrm_cpu.train.tuning.candidates import (
    SEARCHED,
    describe,
    draw_candidates,
    most_demanding,
    searched_settings,
    with_values,
)
from tiny import tiny_config

CONFIG = tiny_config()


@given(
    given_keys=st.sets(st.sampled_from(SEARCHED), max_size=3), seed=st.integers(0, 2**32 - 1), count=st.integers(2, 40)
)
def test_candidates_differ_in_what_is_searched_and_are_valid(given_keys: set[str], seed: int, count: int) -> None:
    config = replace(CONFIG, seed=seed)
    searched = searched_settings(config, given_keys)
    drawn = draw_candidates(config, searched, count)
    assert set(searched) == set(SEARCHED) - given_keys
    assert drawn == draw_candidates(config, searched, count)
    assert drawn[0] == {key: flatten(config)[key] for key in searched}
    assert len(drawn) <= count
    for number, values in enumerate(drawn):
        assert tuple(values) == searched
        assert values not in drawn[:number]
        check_config(with_values(config, values))


def test_each_optimizer_is_tried_with_its_own_rate_first() -> None:
    drawn = draw_candidates(CONFIG, searched_settings(CONFIG, set()), 8)
    assert describe(drawn[0]) == "optimizer sgd, learning rate 0.1, weight decay 0, step width 1"
    assert describe(drawn[1]) == "optimizer rowwise-adagrad, learning rate 0.02, weight decay 0, step width 1"
    assert {values["train.optimizer"] for values in drawn[2:]} == {"sgd", "rowwise-adagrad"}


@given(st.integers(0, 2**32 - 1))
def test_eight_trials_try_four_rates_of_each_optimizer(seed: int) -> None:
    config = replace(CONFIG, seed=seed)
    drawn = draw_candidates(config, searched_settings(config, set()), 8)
    pairs = {(values["train.optimizer"], values["train.learning_rate"]) for values in drawn}
    assert Counter(name for name, _ in pairs) == {"sgd": 4, "rowwise-adagrad": 4}


def test_a_small_space_is_tried_once() -> None:
    searched = searched_settings(CONFIG, {*SEARCHED} - {"train.optimizer"})
    assert draw_candidates(CONFIG, searched, 10) == [
        {"train.optimizer": "sgd"},
        {"train.optimizer": "rowwise-adagrad"},
    ]


@pytest.mark.parametrize("quant", [{"method": "none"}, {"method": "lsq"}, {"target_alive": 0.5}])
def test_a_width_is_searched_where_it_means_something(quant: dict[str, object]) -> None:
    assert "quant.step_width" not in searched_settings(tiny_config(quant=quant), set())


def test_memory_must_be_there_for_the_largest_candidate() -> None:
    assert most_demanding(CONFIG, ["train.optimizer"]).train.optimizer == "rowwise-adagrad"
    assert most_demanding(CONFIG, ["train.learning_rate"]) == CONFIG
