"""Begins a run with the weights of another one: rows of tables follow their categories, all else is taken as it is.

Rows of categories that the parent did not know stay as they were drawn, but within the largest weight that the table
inherits: they must not widen the scale of the rows that are trained already.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.data.source import DataSet
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.kernels.master_rows import nearest_rows, row_values
from dqrm_cpu.kernels.table_groups import TableGroup, TableGroups
from dqrm_cpu.model.correction import keep_rate_correction
from dqrm_cpu.quant.width import row_absmax
from dqrm_cpu.train.checkpoint_files import to_tensor
from dqrm_cpu.train.checkpoint_manifest import TensorInfo, table_info
from dqrm_cpu.train.checkpoint_rows import read_pieces
from dqrm_cpu.train.optimizers import LAST_UPDATES
from dqrm_cpu.train.parent import ParentCheckpoint, require_same_architecture, same_scales
from dqrm_cpu.train.row_map import GONE, RowMap, map_rows
from dqrm_cpu.train.session import Session

_BY_ROW = ("tables", "optimizer.rows")  # of each group of tables
_LEARNED_SCALES = ("scales", "optimizer.scales")


class Inherited(NamedTuple):
    """How many table rows a run took over from its parent, and how many are new."""

    rows: int  # of the tables, that the parent had
    fresh: int  # new ones
    gone: int  # of the parent, that no category of this data set has
    lacking: tuple[str, ...]  # state of the optimizer and the like that the parent does not have
    narrowed: int  # tables whose largest weight was left behind, so that a finer scale is found
    largest_left: Tensor  # f32[T]: the largest weight of each table that was left behind
    moved_by: float  # the bias of the last layer, where training rows now keep another share of those without a click
    is_fresh: NDArray[np.bool_]  # of each row of the arena

    def __str__(self) -> str:
        text = f"{self.rows:,} rows of tables as they were, {self.fresh:,} fresh ones, {self.gone:,} left behind"
        if self.narrowed:
            tables = "a table" if self.narrowed == 1 else f"{self.narrowed:,} tables"
            text += f", the largest weight of {tables} among them, so that a finer scale is found"
        if self.moved_by:
            text += f"; logits moved by {self.moved_by:+.3f}, because training rows keep another share of non-clicks"
        return text + (f"; it has no {', '.join(self.lacking)}, which begin anew" if self.lacking else "")


def initialize_from(session: Session, parent: ParentCheckpoint, config: Config, data: DataSet) -> Inherited:
    """Fills a new session, whose weights are drawn, from the checkpoint of another run; every rank calls it."""
    require_same_architecture(parent, config)
    row_map = map_rows(parent, config, data)
    into = _taken(session, parent, config)
    groups = session.model.groups
    fresh = np.ones(int(groups.row_offset[-1]), dtype=bool)
    fresh[row_map[row_map != GONE]] = False
    narrowed = 0
    with torch.no_grad():
        left_behind = _copy(parent, _maps_by_tensor(parent, row_map, groups), into).to(session.model.device)
        moved_by = _follow_keep_rate(session, parent, config)
        if session.model.table_formula is not None:
            inherited = _bound_fresh_rows(groups, fresh)
            finds_scales = "scales.absmax" in session.scales.tensors()
            narrowed = int((left_behind > inherited).sum()) if finds_scales else 0
    session.scales.restore(session.tensors(), -1)
    lacking = tuple(sorted(session.tensors().keys() - _of_this_run(session) - into.keys()))
    num_fresh = int(np.count_nonzero(fresh))
    num_gone = int(np.count_nonzero(row_map == GONE))
    return Inherited(fresh.size - num_fresh, num_fresh, num_gone, lacking, narrowed, left_behind, moved_by, fresh)


def _taken(session: Session, parent: ParentCheckpoint, config: Config) -> dict[str, Tensor]:
    """Returns the tensors that are filled from the parent; CheckpointError where they are not those of its settings.

    What rounding took from gradients, which an exchange remembers, belongs to batches that are over; so do iterations.
    """
    stored, own = parent.manifest.tensors, session.tensors()
    left_out = {*_of_this_run(session), *(() if same_scales(parent, config) else _LEARNED_SCALES)}
    into = {name: tensor for name, tensor in own.items() if name in stored and name not in left_out}
    expected = {name: TensorInfo("float32", tuple(tensor.shape)) for name, tensor in into.items()}
    groups, form = session.model.groups, str(parent.settings.values.get("train.master_rows", "fp32"))
    for base in _BY_ROW:
        for name, group in zip(groups.names(base), groups, strict=True):
            num_rows = sum(parent.table_rows[number] for number in group.numbers)
            if name in into and base == "tables":
                expected[name] = table_info(form, num_rows, group.tables.dim)
            elif name in into:
                expected[name] = TensorInfo("float32", (num_rows,))
    wrong = [
        f"{name} is {stored[name].dtype}{list(stored[name].shape)}, not {info.dtype}{list(info.shape)}"
        for name, info in expected.items()
        if stored[name] != info
    ]
    wrong += [f"{name} is missing" for name in (*groups.names("tables"), "mlps") if name not in into]
    if wrong:
        raise CheckpointError(f"{parent.path} is not what its settings say: {'; '.join(wrong)}; use another checkpoint")
    return into


def _of_this_run(session: Session) -> set[str]:
    """Returns the names of tensors that no run takes from another one."""
    return {*session.step.state(), *session.model.groups.names(LAST_UPDATES)}


class _TableRows(NamedTuple):
    """A tensor of the parent that has one entry for each row of some tables."""

    row_map: RowMap  # where its rows go
    numbers: tuple[int, ...]  # of the tables
    is_weight: bool


def _maps_by_tensor(parent: ParentCheckpoint, row_map: RowMap, groups: TableGroups) -> dict[str, _TableRows]:
    """Returns the parent's tensors that have an entry for each row of some tables, by name."""
    maps = {}
    for at, group in enumerate(groups):
        of_group = row_map if len(groups) == 1 else _within(row_map, parent.table_rows, groups.row_offset, group)
        for base in _BY_ROW:
            maps[groups.names(base)[at]] = _TableRows(of_group, group.numbers, base == "tables")
    return maps


def _within(row_map: RowMap, parent_rows: Sequence[int], row_offset: Tensor, group: TableGroup) -> RowMap:
    """Returns the part of a map of all tables that is about a group's, counted within its arenas."""
    starts = [0, *accumulate(parent_rows)]
    parts = []
    for number, first in zip(group.numbers, group.tables.row_offset.tolist(), strict=False):
        of_table = row_map[starts[number] : starts[number + 1]]
        parts.append(np.where(of_table == GONE, GONE, of_table - int(row_offset[number]) + first))
    return np.concatenate(parts)


def _copy(parent: ParentCheckpoint, maps: Mapping[str, _TableRows], into: dict[str, Tensor]) -> Tensor:
    """Copies what the parent has; returns f32[T]: the largest weight of each table that was left behind."""
    largest = np.zeros(len(parent.table_rows), np.float32)
    for piece, stored in read_pieces(parent.path, parent.manifest, into.keys()):
        values = to_tensor(stored, parent.manifest.tensors[piece.tensor].dtype)
        target, after = into[piece.tensor], piece.first_row + piece.num_rows
        rows = maps.get(piece.tensor)
        if rows is None:
            target[piece.first_row : after] = values.to(target.device)
            continue
        places = torch.from_numpy(rows.row_map[piece.first_row : after])
        known = places != GONE
        if values.dtype != target.dtype:
            values = nearest_rows(row_values(values), target.dtype)
        target.index_copy_(0, places[known].to(target.device), values[known].to(target.device))
        if rows.is_weight:
            gone = torch.nonzero(~known).view(-1)
            ends = np.cumsum([parent.table_rows[number] for number in rows.numbers])
            table = np.searchsorted(ends, gone.numpy() + piece.first_row, side="right")
            np.maximum.at(largest, np.array(rows.numbers)[table], row_absmax(values[gone]).numpy())
    return torch.from_numpy(largest)


def _follow_keep_rate(session: Session, parent: ParentCheckpoint, config: Config) -> float:
    """Moves the last bias so that probabilities, corrected for what training did not see, stay; returns how far."""
    recorded = parent.settings.values
    kept, thinned = (recorded.get(f"data.{name}") for name in ("negative_keep_rate", "sub_sample_rate"))
    then = float(kept if isinstance(kept, float) else 1.0) * (1 - (thinned if isinstance(thinned, float) else 0.0))
    now = config.data.trained_keep_rate
    moved_by = keep_rate_correction(then, now) if now > 0 else 0.0
    if moved_by:
        *_, (_, last, _) = session.model.mlp_layers()
        last.bias.add_(moved_by)
    return moved_by


def _bound_fresh_rows(tables: TableGroups, fresh: NDArray[np.bool_]) -> Tensor:
    """Clamps fresh rows to the largest weight that their table inherited, so that its scale is the parent's.

    Returns f32[T]: the largest weight that each table inherited.
    """
    by_table = torch.split(torch.from_numpy(fresh), tables.row_offset.diff().tolist())
    bounds = torch.zeros(tables.num_tables, device=tables.device)
    for t, (weight, flags) in enumerate(zip(tables.weights, by_table, strict=True)):
        new = flags.to(weight.device)
        maxima = row_absmax(weight)
        bounds[t] = maxima.masked_fill(new, 0.0).amax()
        bound = float(bounds[t])
        beyond = torch.nonzero(new & (maxima > bound)).view(-1)
        if bound > 0 and beyond.numel():
            weight[beyond] = nearest_rows(row_values(weight[beyond]).clamp(-bound, bound), weight.dtype)
    return bounds
