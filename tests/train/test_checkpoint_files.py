"""Rows of a checkpoint, wherever its shards cut the tensor."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.checkpoint_rows import RowReader

TABLE = torch.arange(50 * 3, dtype=torch.float32).view(50, 3)


@pytest.mark.parametrize(("first", "count"), [(0, 50), (0, 1), (7, 9), (49, 1), (10, 30)])
def test_rows_come_from_every_shard(tmp_path: Path, first: int, count: int) -> None:
    path = CheckpointStore(tmp_path, keep=1, shard_bytes=100).save(
        1, {"tables": TABLE, "step": torch.ones(4)}, {}, False
    )
    reader = RowReader(path)
    np.testing.assert_array_equal(reader.read("tables", first, count), TABLE[first : first + count].numpy())
    assert reader.read("step", 1, 2).tolist() == [1, 1]


def test_rows_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, keep=1).save(1, {"tables": TABLE}, {}, False)
    with pytest.raises(CheckpointError, match="holds 0 of the 5 rows"):
        RowReader(path).read("weights", 0, 5)
    with pytest.raises(CheckpointError, match="holds 2 of the 5 rows"):
        RowReader(path).read("tables", 48, 5)
