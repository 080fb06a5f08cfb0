"""The width of the scale, the share of rows that it keeps alive, and what is told about it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.kernels.table_groups import one_group
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.quant.liveness import RowCounts, count_rows, liveness
from dqrm_cpu.quant.methods import Uniform, uniform_scale
from dqrm_cpu.quant.width import Ramp, TargetAlive, row_absmax, scale_for_alive_rows, select_width
from dqrm_cpu.train.metrics_row import MetricsRow


def tables_of(rows: list[int], dim: int, seed: int = 1) -> Tables:
    generator = torch.Generator().manual_seed(seed)
    offset = torch.zeros(len(rows) + 1, dtype=torch.int64)
    offset[1:] = torch.tensor(rows).cumsum(0)
    return Tables(torch.randn(int(offset[-1]), dim, generator=generator), offset)


def absmax_of(tables: Tables) -> torch.Tensor:
    bounds = tables.row_offset.tolist()
    return torch.stack([tables.weight[a:b].abs().max() for a, b in pairwise(bounds)])


@given(rows=st.integers(1, 400), dim=st.integers(1, 8), share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_exactly_the_wanted_share_of_the_rows_stays(rows: int, dim: int, share: float, seed: int) -> None:
    weight = tables_of([rows], dim, seed).weight
    scale = scale_for_alive_rows(row_absmax(weight), share)
    codes = np.rint(weight.numpy() / np.float32(scale))
    assert np.any(codes != 0, axis=1).sum() == min(max(round(share * rows), 1), rows)


def test_tables_reach_their_share_unless_small_or_quieter_already() -> None:
    tables = tables_of([2000, 500, 3000], 4)
    tables.weight[2500:] *= 1e-3
    tables.weight[2500] = 1.0  # one loud row: the others are below half of the scale at width 1
    quant = QuantConfig(target_alive=0.1, target_alive_min_rows=1000)
    unit = uniform_scale(absmax_of(tables), 4)
    widths = TargetAlive(quant, one_group(tables)).at(0, unit)
    assert widths[1] == 1
    assert widths[2] == 1
    alive = liveness(Uniform(4), one_group(tables), unit * widths)
    assert alive.table_live_rows[0] == 0.1
    assert alive.table_live_rows[2] == pytest.approx(1 / 3000)


def test_the_width_goes_from_one_to_its_end() -> None:
    ramp = Ramp(torch.tensor([3.0, 1.0]), iterations=10)
    unit = torch.ones(2)
    assert ramp.at(0, unit).tolist() == pytest.approx([1.2, 1.0])
    assert ramp.at(4, unit).tolist() == [2.0, 1.0]
    assert ramp.at(9, unit).tolist() == [3.0, 1.0]
    assert ramp.at(500, unit).tolist() == [3.0, 1.0]
    assert ramp.at(-1, unit).tolist() == [3.0, 1.0]  # a model that was never trained so


def test_one_width_serves_all_tables_and_width_one_is_none() -> None:
    tables = tables_of([3, 4], 2)
    assert select_width(QuantConfig(), one_group(tables)) is None
    width = select_width(QuantConfig(step_width=(2.5,)), one_group(tables))
    assert width is not None
    assert width.at(0, torch.ones(2)).tolist() == [2.5, 2.5]


@given(bits=st.sampled_from([2, 4, 8]), width=st.sampled_from([0.25, 1.0, 4.0]), seed=st.integers(0, 2**31))
def test_liveness_counts_codes(bits: int, width: float, seed: int) -> None:
    tables = tables_of([5, 300], 3, seed)
    scale = uniform_scale(absmax_of(tables), bits) * width
    found = liveness(Uniform(bits), one_group(tables), scale)
    limit = 2 ** (bits - 1)
    rows, values, clipped = 0, 0, 0
    for row, s in zip(tables.weight.numpy(), np.repeat(scale.numpy(), [5, 300]), strict=True):
        codes = np.rint(row * (np.float32(1) / s))
        saturated = np.clip(codes, -limit, limit - 1)
        rows += bool(np.any(saturated))
        values += int(np.count_nonzero(saturated))
        clipped += int(np.count_nonzero(codes != saturated))
    assert found.live_rows == rows / 305
    assert found.live_values == values / 915
    assert found.clip_rate == clipped / 915


def test_rows_that_were_never_updated_are_told_apart() -> None:
    """Also where they are alive, and where an updated row is zero."""
    weight = torch.full((8, 3), 0.5)
    tables = Tables(weight, torch.tensor([0, 5, 8]))
    first = {(0, 1), (0, 2), (1, 2)}  # table, row: as they were drawn
    weight[0] = 0.0  # updated and zero
    weight[7] = 0.0  # zero, never updated

    def first_rows(table: int, row: int, out: torch.Tensor) -> None:
        start = int(tables.row_offset[table]) + row
        for at in range(out.shape[0]):
            drawn = (table, row + at) in first
            out[at] = weight[start + at] if drawn else 9.0

    found = liveness(Uniform(4), one_group(tables), torch.full((2,), 0.1), first_rows)
    assert found.live_rows == 6 / 8
    assert found.updated_rows == 5 / 8
    assert found.live_updated_rows == 4 / 5
    assert found.table_updated_rows == (3 / 5, 2 / 3)
    assert found.table_live_updated_rows == (2 / 3, 1.0)
    first_table, second = count_rows(Uniform(4), one_group(tables), torch.full((2,), 0.1), first_rows)
    assert first_table + second == RowCounts(8, 6, 5, 4)


def test_a_row_of_metrics_written_before_is_read() -> None:
    """It says nothing of which rows were updated."""
    alive = liveness(Uniform(4), one_group(Tables(torch.ones(4, 2), torch.tensor([0, 4]))), torch.ones(1))
    row = MetricsRow(1, 1, "validation", 0.1, 1.0, 0.1, liveness=alive).to_json()
    old = {key: value for key, value in row.items() if "updated" not in key}
    found = MetricsRow.from_json(old).liveness
    assert found is not None
    assert (found.live_rows, found.table_updated_rows) == (1.0, ())
    assert math.isnan(found.updated_rows)
