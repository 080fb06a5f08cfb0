"""What phases are held against: rows counted once, the tables left as they were, messages as large."""

import json
from pathlib import Path

import pytest
import torch

from dqrm_cpu.data.batch import Batch
from dqrm_cpu.lab.profiler.bandwidth import distinct_rows, reading_floor, row_bytes, row_floors
from dqrm_cpu.model.tables import allocate_groups
from launching import run_mpi
from report_runs import SMALL

LABEL = torch.zeros(3)
DENSE = torch.zeros(3, 2)


def one_hot(*tables: list[int]) -> Batch:
    return Batch(DENSE, torch.tensor(tables, dtype=torch.int32), None, LABEL)


def test_a_row_that_several_examples_change_counts_once() -> None:
    assert distinct_rows([one_hot([1, 1, 2], [1, 0, 1])]) == [2, 2]
    assert distinct_rows([one_hot([1, 1, 2], [1, 0, 1]), one_hot([2, 3, 3], [0, 0, 0])]) == [3, 2]


def test_rows_of_bags_are_counted_by_table() -> None:
    # Bags of table 1: {5, 5}, {}, {6}; of table 2: {5}, {7}, {}.
    ids, offsets = torch.tensor([5, 5, 6, 5, 7], dtype=torch.int32), torch.tensor([0, 2, 2, 3, 4, 5, 5])
    assert distinct_rows([Batch(DENSE, ids, offsets, LABEL)]) == [2, 2]


def test_an_empty_share_changes_nothing() -> None:
    empty = Batch(torch.zeros(0, 2), torch.zeros(2, 0, dtype=torch.int32), None, torch.zeros(0))
    assert distinct_rows([empty, one_hot([1, 1, 2], [1, 0, 1])]) == [2, 2]
    assert row_bytes(distinct_rows([empty]), (4, 8)) == 0


@pytest.mark.parametrize("dims", [(5, 5, 5), (5, 3, 5)])
def test_floors_leave_the_tables_as_they_were(dims: tuple[int, ...]) -> None:
    groups = allocate_groups((5, 4, 6), dims, torch.device("cpu"))
    before = [weight.normal_(generator=torch.Generator().manual_seed(1)).clone() for weight in groups.weights]
    found = row_floors(groups, [one_hot([1, 1, 4], [3, 0, 1], [5, 5, 5])] * 3)
    assert found is not None
    assert min(found) > 0
    assert all(map(torch.equal, groups.weights, before))
    assert reading_floor(64) > 0


@pytest.mark.slow
@pytest.mark.mpi
def test_the_wire_is_held_against_bare_messages(tmp_path: Path) -> None:
    command = ["-m", "dqrm_cpu", "profile", "--steps", "4", "--warmup", "1", "--out", tmp_path, *SMALL]
    run_mpi([*command, "--comm.wire", "int8"], 2, timeout_s=200).check()
    (found,) = json.loads((tmp_path / "profile.json").read_text())["variants"].values()
    bandwidth = {one["phase"]: one for one in found["bandwidth"]}
    assert set(bandwidth) == {"gather_quantize", "embedding_update", "wire"}
    sent = found["ranks"][0]["bytes_sent"]
    assert bandwidth["wire"]["bytes"] == pytest.approx(sent["indices"] + sent["values"] + sent["scales"])
    assert bandwidth["wire"]["floor_bytes_per_second"] > 0
