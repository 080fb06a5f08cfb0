"""Generated rows whose tables hold the ids that occur: the same rows, numbered as `prepare` would."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dqrm_cpu.config import Config, preset_config
from dqrm_cpu.config.schema import KAGGLE_TABLE_ROWS
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.source import open_data
from dqrm_cpu.data.store.run_data import follow_data
from dqrm_cpu.data.synthetic.known_ids import KnownClicks, count_ids, known_ids
from dqrm_cpu.data.synthetic.stream import SyntheticClicks
from dqrm_cpu.errors import DataError

ROWS = 3000


def demo(**data: int) -> Config:
    config = preset_config("demo")
    given: dict[str, Any] = {"train_rows": ROWS, "validation_rows": 200, "test_rows": 200, **data}
    return follow_data(replace(config, data=replace(config.data, **given)), frozenset())


@pytest.mark.parametrize("min_count", [1, 2, 7])
@pytest.mark.parametrize("max_bag_size", [1, 3])
def test_ids_are_places_among_those_that_are_common_enough(min_count: int, max_bag_size: int) -> None:
    source = SyntheticClicks((1460, 50_000, 3), 2, seed=3, max_bag_size=max_bag_size)
    known = KnownClicks(source, known_ids(count_ids(source, ROWS), min_count))
    raw, rows = source.rows(0, ROWS + 500), known.rows(0, ROWS + 500)
    plain, numbered, bounds = raw.ids.flatten().tolist(), rows.ids.flatten().tolist(), bounds_of(raw)
    of_training = source.rows(0, ROWS)
    training, training_bounds = of_training.ids.flatten().tolist(), bounds_of(of_training)
    for t in range(3):
        cells = training[training_bounds[t] : training_bounds[t + 1]]
        common = sorted(i for i, count in Counter(cells).items() if count >= min_count and i > 0)
        assert known.table_rows[t] == len(common) + 1
        place = {i: number for number, i in enumerate(common, 1)}
        want = [place.get(i, 0) for i in plain[bounds[t] : bounds[t + 1]]]
        assert numbered[bounds[t] : bounds[t + 1]] == want
    assert torch.equal(raw.dense, rows.dense)
    assert torch.equal(raw.label, rows.label)


def bounds_of(batch: Batch) -> list[int]:
    """Where each of the three tables begins in the ids, and where the last one ends."""
    if batch.offsets is None:
        return [t * batch.size for t in range(4)]
    return [int(batch.offsets[t * batch.size]) for t in range(4)]


def test_counts_do_not_depend_on_how_many_rows_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SyntheticClicks((1460, 50_000), 2, seed=3)
    at_once = count_ids(source, ROWS)
    monkeypatch.setattr("dqrm_cpu.data.synthetic.known_ids._ROWS_AT_ONCE", 700)
    for one, other in zip(at_once, count_ids(source, ROWS), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.counts, other.counts)


def test_the_demo_has_a_row_for_each_id_of_its_training_rows_and_one_for_the_others() -> None:
    config = demo()
    ids = open_data(config).train.rows(0, ROWS).ids.numpy()
    raw = SyntheticClicks(KAGGLE_TABLE_ROWS, 13, config.seed).rows(0, ROWS).ids.numpy()
    for t, rows in enumerate(config.model.table_rows):
        assert ids[t].max() == rows - 1
        assert np.unique(np.append(raw[t], 0)).size == rows


def test_a_higher_count_makes_smaller_tables() -> None:
    sizes = [sum(demo(min_count=count).model.table_rows) for count in (1, 2, 5)]
    assert sizes[0] > 2 * sizes[1] > 2 * sizes[2]


def test_another_count_is_another_vocabulary() -> None:
    one, two = open_data(demo(min_count=1)), open_data(demo(min_count=2))
    assert one.identity is not None and two.identity is not None
    assert one.identity.vocabulary != two.identity.vocabulary
    assert one.fingerprint != two.fingerprint


def test_rows_with_other_clicks_are_other_rows_of_the_same_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    now = open_data(demo())
    monkeypatch.setattr("dqrm_cpu.data.source.VERSION_OF_KNOWN_IDS", 1)
    before = open_data(demo())
    assert before.fingerprint != now.fingerprint
    assert before.identity == now.identity


def test_tables_that_are_too_small_are_refused() -> None:
    config = demo()
    small = replace(config, model=replace(config.model, table_rows=(5,) * 26))
    with pytest.raises(DataError, match=r"leave the setting out to follow them, or give --data\.min-count 0"):
        open_data(small)


def test_a_run_is_opened_again_with_the_sizes_that_it_recorded() -> None:
    config = demo()
    given = frozenset({"model.table_rows", "data.min_count"})
    assert follow_data(config, given) == config
    assert torch.equal(open_data(config).test.rows(0, 50).ids, open_data(demo()).test.rows(0, 50).ids)
