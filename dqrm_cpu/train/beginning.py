"""The beginning of a run with the weights of another one: taken over, scored on rows new to them, written down.

All of it happens before the first checkpoint. A run that is killed on the way begins again, and writes the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.comm.coordination import on_first_rank
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.data.source import DataSet
from dqrm_cpu.data.store.manifest import PART_NAMES
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.kernels.table_groups import TableGroups
from dqrm_cpu.metrics.click import ClickMetrics, defined
from dqrm_cpu.train.init_from import Inherited, initialize_from
from dqrm_cpu.train.metrics_row import decoded_metrics
from dqrm_cpu.train.parent import read_parent
from dqrm_cpu.train.run_folder import write_document
from dqrm_cpu.train.session import Session, loaders_to_score
from dqrm_cpu.train.state import RunState

_FILE = "beginning.json"
_BAR_AFTER_S = 2.0


@dataclass(frozen=True)
class Beginning:
    """What a run began with: rows of tables by what became of them, and the first test of the model it began with."""

    parent: str  # its checkpoint
    inherited_rows: int
    fresh_rows: int  # of categories that are new
    rows_left_behind: int  # of categories that the data set does not have any more
    tested: ClickMetrics | None  # on all rows of the data, before the first step; None where that was not asked for


def begin_with_parent(
    session: Session, config: Config, data: DataSet, transport: Transport, run_dir: Path, stream: TextIO
) -> tuple[RunState, list[str]]:
    """Gives a new run the weights of its parent; every rank calls it.

    Returns its state, and lines for people: what was taken over, and what the first test came to.
    """

    def initialize() -> tuple[str, Inherited]:
        parent = read_parent(Path(config.init_from))  # on rank 0 first, which says what is wrong with it
        return str(parent.path), initialize_from(session, parent, config, data)

    done = on_first_rank(transport, initialize)
    path = str(transport.broadcast_json(None if done is None else done[0]))
    inherited = done[1] if done is not None else initialize_from(session, read_parent(Path(path)), config, data)
    lines = [f"beginning with {path}: {inherited}"]
    tested = None
    if config.train.test_first and session.model.inputs.begun:
        tested = _tested(session, config, transport, inherited, stream)
        lines.append(f"before training, it has on {tested.examples:,} rows of this data {_figures(tested)}")
    found = Beginning(path, inherited.rows, inherited.fresh, inherited.gone, tested)
    on_first_rank(transport, lambda: write_document(run_dir / _FILE, asdict(found)))
    return RunState(begun_from=path), lines


def read_beginning(run_dir: Path) -> Beginning | None:
    """Reads what the run in a folder began with; None where it was fresh weights, or an earlier version began it."""
    path = run_dir / _FILE
    try:
        document = decoded(read_json(path), dict[str, Any])
        tested = document.pop("tested", None)
        found = decoded({**document, "tested": None}, Beginning)
        return found if tested is None else replace(found, tested=decoded_metrics(decoded(tested, dict[str, Any])))
    except FileNotFoundError:
        return None
    except (UnreadableError, OSError) as error:
        raise CheckpointError(f"{path} {error}; remove it: only reports read it") from None


def _tested(
    session: Session, config: Config, transport: Transport, inherited: Inherited, stream: TextIO
) -> ClickMetrics:
    """Scores all rows as the parent would: a new category is unknown and has the reserved row, scales are as wide."""
    loaders = loaders_to_score(config, PART_NAMES, transport, session.model.device)
    rows = config.data.train_rows + config.data.validation_rows + config.data.test_rows
    hidden = transport.rank > 0 or not stream.isatty()
    bar = tqdm(total=rows, desc="testing", unit="row", unit_scale=True, file=stream, disable=hidden, delay=_BAR_AFTER_S)
    with bar, _as_reserved(session.model.groups, inherited.is_fresh), session.model.spans.evaluation:
        return session.evaluate(
            *loaders, advance=lambda count: bar.update(count * transport.size), at_least=inherited.largest_left
        )


@contextmanager
def _as_reserved(tables: TableGroups, is_fresh: NDArray[np.bool_]) -> Iterator[None]:
    """Lends fresh rows the weights of the first row of their table."""
    by_table = np.split(is_fresh, tables.row_offset[1:-1].tolist())
    fresh = [torch.from_numpy(np.flatnonzero(flags)).to(tables.device) for flags in by_table]
    drawn = [weight[rows] for weight, rows in zip(tables.weights, fresh, strict=True)]
    with torch.no_grad():
        for weight, rows in zip(tables.weights, fresh, strict=True):
            weight[rows] = weight[0].clone()
        try:
            yield
        finally:
            for weight, rows, before in zip(tables.weights, fresh, drawn, strict=True):
                weight[rows] = before


def _figures(metrics: ClickMetrics) -> str:
    return (
        f"AUC {defined(metrics.auc, '.4f')}, log loss {metrics.log_loss:.4f}, normalized entropy "
        f"{defined(metrics.normalized_entropy, '.4f')}, calibration {defined(metrics.calibration, '.3f')}"
    )
