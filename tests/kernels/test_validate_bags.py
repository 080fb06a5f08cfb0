"""No id or offset that a kernel cannot take gets through, and the message says where it is."""

import pytest
import torch
from hypothesis import given
from kernel_cases import CASES, Case, make_case

from dqrm_cpu.kernels.types import Bags
from dqrm_cpu.kernels.validate import BagError, validate_bags

ONE_HOT = make_case([5, 300], 4, 3, False, False, 0)
MULTI_HOT = make_case([5, 300], 4, 30, True, False, 1)


@given(case=CASES)
def test_good_bags_pass(case: Case) -> None:
    validate_bags(case.tables, case.bags)


@pytest.mark.parametrize("value", [-1, 300, -(2**31), 2**31 - 1])
def test_one_hot_id_outside_of_its_table(value: int) -> None:
    ids = ONE_HOT.bags.ids.clone()
    ids[1, 2] = value
    with pytest.raises(BagError, match=rf"C2, sample 2: id {value} is outside of 0 to 299"):
        validate_bags(ONE_HOT.tables, Bags(ids, None), ["C1", "C2"])


@pytest.mark.parametrize("value", [-1, 5])
def test_multi_hot_id_outside_of_its_table(value: int) -> None:
    ids, offsets = MULTI_HOT.bags.ids.clone(), MULTI_HOT.bags.offsets
    assert offsets is not None
    position = int(offsets[30]) - 1  # the last id of table 0
    sample = int((offsets[:31] <= position).sum()) - 1
    ids[position] = value
    with pytest.raises(BagError, match=rf"C1, sample {sample}, position {position} of the ids: id {value} "):
        validate_bags(MULTI_HOT.tables, Bags(ids, offsets), ["C1", "C2"])


def test_falling_offset() -> None:
    assert MULTI_HOT.bags.offsets is not None
    offsets = MULTI_HOT.bags.offsets.clone()
    offsets[34] = offsets[35] + 1
    with pytest.raises(BagError, match=r"C2, sample 4: offset \d+ at position 35 comes after \d+"):
        validate_bags(MULTI_HOT.tables, Bags(MULTI_HOT.bags.ids, offsets))


@pytest.mark.parametrize("change", ["first", "last", "length", "dtype"])
def test_offsets_of_wrong_shape(change: str) -> None:
    assert MULTI_HOT.bags.offsets is not None
    offsets = MULTI_HOT.bags.offsets.clone()
    if change == "first":
        offsets[0] = 1
    elif change == "last":
        offsets[-1] += 1
    elif change == "length":
        offsets = torch.cat((offsets, offsets[-1:]))
    else:
        offsets = offsets.int()
    with pytest.raises(BagError, match="offsets"):
        validate_bags(MULTI_HOT.tables, Bags(MULTI_HOT.bags.ids, offsets))


def test_ids_of_wrong_type_or_shape() -> None:
    with pytest.raises(BagError, match="int32"):
        validate_bags(ONE_HOT.tables, Bags(ONE_HOT.bags.ids.long(), None))
    with pytest.raises(BagError, match="one-hot"):
        validate_bags(ONE_HOT.tables, Bags(ONE_HOT.bags.ids.T.contiguous(), None))
    with pytest.raises(BagError, match="multi-hot"):
        validate_bags(MULTI_HOT.tables, Bags(ONE_HOT.bags.ids, MULTI_HOT.bags.offsets))


def test_no_samples() -> None:
    validate_bags(ONE_HOT.tables, Bags(torch.empty(2, 0, dtype=torch.int32), None))
    validate_bags(ONE_HOT.tables, Bags(torch.empty(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)))


@pytest.mark.parametrize("case", [ONE_HOT, MULTI_HOT], ids=["one-hot", "multi-hot"])
def test_another_number_of_samples(case: Case) -> None:
    validate_bags(case.tables, case.bags, batch=case.batch)
    with pytest.raises(BagError, match=f"{case.batch} samples; the batch has 99"):
        validate_bags(case.tables, case.bags, batch=99)
