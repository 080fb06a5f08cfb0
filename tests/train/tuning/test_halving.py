"""Successive halving against a plain search, for any scores and any trials that diverge."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.train.tuning.halving import Round, Trial, best_trial, next_trial, plan_rounds, scored, steps_done

Score = float | None


def metrics_of(auc: float, log_loss: float = 0.5) -> ClickMetrics:
    return ClickMetrics(auc, 0.5, log_loss, 1.0, 1.0, 100)


def searched(rounds: tuple[Round, ...], table: list[list[Score]]) -> tuple[list[tuple[int, int]], tuple[Trial, ...]]:
    """Runs a search whose trial t scores table[t][r] after round r; what ran, as (round, trial), and the trials."""
    trials = tuple(Trial({"train.learning_rate": 0.1 + number}) for number in range(len(table)))
    ran = []
    while (task := next_trial(rounds, trials)) is not None:
        number, trial = task
        ran.append(task)
        auc = table[trial][number]
        trials = scored(trials, trial, None if auc is None else metrics_of(auc))
    return ran, trials


def plain(rounds: tuple[Round, ...], table: list[list[Score]]) -> tuple[list[tuple[int, int]], int | None]:
    """The same, as one would write it down: sort, cut, go on."""
    ran, field = [], list(range(len(table)))
    best: int | None = None
    for number, part in enumerate(rounds):
        field = sorted(field[: part.trials])
        ran += [(number, trial) for trial in field]
        field = [trial for trial in field if table[trial][number] is not None]
        field.sort(key=lambda trial: (-(table[trial][number] or 0.0), trial))
        # Whoever got furthest without diverging; a former best that diverged later does not count.
        best = field[0] if field else _best_left(table, ran)
        if not field:
            break
    return ran, best


def _best_left(table: list[list[Score]], ran: list[tuple[int, int]]) -> int | None:
    """The best of the trials that never diverged, by the last round that they took part in."""
    last: dict[int, int] = {}
    for number, trial in ran:
        last[trial] = number
    sound = [t for t, upto in last.items() if all(table[t][number] is not None for number in range(upto + 1))]
    return min(sound, key=lambda t: (-last[t], -(table[t][last[t]] or 0.0), t), default=None)


@st.composite
def tables(draw: st.DrawFn) -> list[list[Score]]:
    scores = st.one_of(st.none(), st.sampled_from([0.5, 0.6, 0.7]), st.floats(0.4, 0.9))
    return draw(st.lists(st.lists(scores, min_size=3, max_size=3), min_size=2, max_size=17))


@given(tables())
def test_what_runs_and_what_is_chosen(table: list[list[Score]]) -> None:
    rounds = plan_rounds(len(table), 600)
    ran, trials = searched(rounds, table)
    expected, best = plain(rounds, table)
    assert ran == expected
    assert best_trial(trials) == best
    assert steps_done(rounds, trials) == sum(rounds[number].steps for number, _ in ran)


@given(tables(), st.integers(0, 30))
def test_a_search_goes_on_from_any_trial(table: list[list[Score]], after: int) -> None:
    """The next trial depends on the scores alone: nothing else needs to be kept."""
    rounds = plan_rounds(len(table), 600)
    ran, _ = searched(rounds, table)
    trials = tuple(Trial({"train.learning_rate": 0.1}) for _ in table)
    for number, trial in ran[:after]:
        auc = table[trial][number]
        trials = scored(trials, trial, None if auc is None else metrics_of(auc))
    assert next_trial(rounds, trials) == (ran[after] if after < len(ran) else None)


@pytest.mark.parametrize(
    ("trials", "longest", "expected"),
    [
        (2, 600, ((600, 2),)),
        (3, 600, ((600, 3),)),
        (4, 600, ((300, 4), (600, 2))),
        (8, 600, ((150, 8), (300, 4), (600, 2))),
        (9, 600, ((150, 9), (300, 5), (600, 3))),
        (32, 600, ((150, 32), (300, 16), (600, 8))),
        (8, 3, ((1, 8), (1, 4), (3, 2))),
    ],
)
def test_rounds(trials: int, longest: int, expected: tuple[tuple[int, int], ...]) -> None:
    assert plan_rounds(trials, longest) == expected


def test_without_an_auc_log_loss_decides() -> None:
    trials = (Trial({}, (metrics_of(math.nan, 0.7),)), Trial({}, (metrics_of(math.nan, 0.6),)))
    assert best_trial(trials) == 1


def test_another_figure_may_decide() -> None:
    trials = (Trial({}, (metrics_of(0.8, 0.7),)), Trial({}, (metrics_of(0.7, 0.6),)))
    assert (best_trial(trials), best_trial(trials, "log-loss")) == (0, 1)
    rounds = (Round(1, 2), Round(2, 1))
    assert (next_trial(rounds, trials), next_trial(rounds, trials, "log-loss")) == ((1, 0), (1, 1))
