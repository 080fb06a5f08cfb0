"""A value that is not finite, or a label that is none, does not get through, wherever it stands."""

import math

import pytest
import torch
from kernel_cases import make_case

from dqrm_cpu.kernels.types import Bags
from dqrm_cpu.kernels.validate import BagError, RowError, runs_are_finite, sound_samples, validate_rows

MULTI_HOT = make_case([5, 300], 4, 30, True, False, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 13), (33, 17)])
def test_every_place_of_a_dense_value(rows: int, columns: int, value: float) -> None:
    label = torch.zeros(rows)
    for place in {0, rows * columns // 2, rows * columns - 1}:
        dense = torch.full((rows, columns), torch.finfo(torch.float32).max)
        validate_rows(dense, label)
        dense.view(-1)[place] = value
        with pytest.raises(RowError) as refused:
            validate_rows(dense, label)
        assert (refused.value.sample, refused.value.column) == divmod(place, columns)


@pytest.mark.parametrize("value", [7.0, -1.0, 0.5, 1e-45, math.nan, math.inf])
def test_a_label_that_is_none(value: float) -> None:
    label = torch.tensor([0.0, 1.0, 1.0, value, 0.0])
    with pytest.raises(RowError, match="sample 3: the label") as refused:
        validate_rows(torch.zeros(5, 2), label)
    assert refused.value.column is None


def test_views_that_are_not_contiguous_are_checked_as_well() -> None:
    dense = torch.zeros(4, 6)
    dense[2, 3] = math.nan
    validate_rows(dense[:, :3], torch.zeros(4))
    with pytest.raises(RowError):
        validate_rows(dense[:, 1:4], torch.zeros(4))


def test_samples_that_can_be_taken_are_told_from_those_that_cannot() -> None:
    assert MULTI_HOT.bags.offsets is not None
    ids, offsets = MULTI_HOT.bags.ids.clone(), MULTI_HOT.bags.offsets
    dense, label = torch.zeros(30, 3), torch.zeros(30)
    position = int(offsets[30]) - 1
    ids[position], dense[3, 1], label[5] = 5, math.nan, 2
    with_bad_id = int((offsets[:31] <= position).sum()) - 1
    sound = sound_samples(MULTI_HOT.tables, Bags(ids, offsets), dense, label)
    assert set((~sound).nonzero().view(-1).tolist()) == {3, 5, with_bad_id}
    with pytest.raises(BagError):
        sound_samples(MULTI_HOT.tables, Bags(ids, offsets.flip(0)), dense, label)


def test_only_the_runs_that_are_named_are_looked_at() -> None:
    values = torch.zeros(20)
    values[7] = math.nan
    first, after = torch.tensor([0, 8, 5]), torch.tensor([7, 20, 5])
    assert runs_are_finite(values, first, after)
    values[19] = -math.inf
    assert not runs_are_finite(values, first, after)
