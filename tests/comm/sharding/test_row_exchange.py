"""Rows fetched from other ranks: those that were asked for, at the size that is promised."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dqrm_cpu.kernels.types import UNQUANTIZED
from launching import run_world
from rows_worker import BITS, DIM, ids_of, scales, whole_tables

pytestmark = pytest.mark.mpi

WORKER = Path(__file__).parents[1] / "rows_worker.py"
RANKS = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], dict[str, np.ndarray]]:
    """The arrays that each rank fetched and sent, by bits and rank."""
    folder = tmp_path_factory.mktemp("rows")
    run_world("gloo", [WORKER, "gloo", folder], RANKS, timeout_s=90).check()
    return {(bits, rank): dict(np.load(folder / f"{bits}.{rank}.npz")) for bits in BITS for rank in range(RANKS)}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rank", range(RANKS))
def test_every_lookup_finds_its_row(world: dict[tuple[int, int], dict[str, np.ndarray]], bits: int, rank: int) -> None:
    found, whole = world[bits, rank], whole_tables()
    for table, ids in enumerate(ids_of(rank)):
        rows = whole.weight[whole.row_offset[table] + ids.long()]
        if bits != UNQUANTIZED:
            scale = scales()[table]
            half = 1 << (bits - 1)
            rows = torch.round(rows * torch.reciprocal(scale)).clamp(-half, half - 1) * scale
        fetched = found["values"][found["pointer"][table] + found["ids"][table]]
        assert np.array_equal(fetched, rows.numpy())


def test_codes_of_four_bits_take_less_than_a_seventh_of_fp32(
    world: dict[tuple[int, int], dict[str, np.ndarray]],
) -> None:
    for rank in range(RANKS):
        sent = {bits: int(world[bits, rank]["sent"][-1]) for bits in BITS}
        of_kinds = {bits: int(world[bits, rank]["sent"][:-1].sum()) for bits in BITS}
        assert sent == of_kinds  # every byte is counted as something
        asked = int(world[4, rank]["asked"][1 - rank])
        answered = int(world[4, 1 - rank]["asked"][rank])
        header = 4 * 3  # a count for each table
        assert sent[4] == header + 4 * asked + DIM // 2 * answered
        assert sent[UNQUANTIZED] == header + 4 * asked + 4 * DIM * answered
    totals = [sum(int(world[bits, rank]["sent"][-1]) for rank in range(RANKS)) for bits in BITS]
    assert totals[0] * 7 < totals[1]
