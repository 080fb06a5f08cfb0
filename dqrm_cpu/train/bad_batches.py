"""What becomes of a batch that is not sound: it is described, kept in the run folder for inspection, and counted."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.files import replacing
from dqrm_cpu.data.batch import BadBatchError, Batch
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.errors import DataError
from dqrm_cpu.train.step import StepOutcome

FOLDER = "bad-batches"
"""Of a run folder: an .npz file of plain arrays of each bad share, at most MOST_KEPT of each rank."""

MOST_KEPT = 10
_MOST_WARNINGS = 5


class BadBatches:
    """The bad batches of one rank of a run. `first_share` is the first rank, real or simulated, of this process."""

    def __init__(self, run_dir: Path, loader: Loader, first_share: int, num_shares: int) -> None:
        self._folder = run_dir / FOLDER
        self._loader = loader
        self._first_share, self._num_shares = first_share, num_shares

    def refused(self, number: int, shares: list[Batch], error: BadBatchError) -> DataError:
        """Returns the error that ends a run at global batch `number`, and keeps the batch."""
        kept = self._keep(number, shares, error)
        return DataError(
            f"{self._place(number)}: {described(error, self._loader, number)}; nothing was trained on this batch, "
            f"{kept}; correct the data set, or leave such batches out with --train.on-bad-batch skip"
        )

    def skipped(self, number: int, shares: list[Batch], outcome: StepOutcome, count: int) -> str:
        """Keeps what this process has of a batch that was skipped, the run's `count`-th; warns of the first few."""
        kept = [self._keep(number, shares, error) for error in outcome.faults]
        if count > _MOST_WARNINGS:
            return ""
        if outcome.faults:
            why = f"{described(outcome.faults[0], self._loader, number)}; {kept[0]}"
        else:
            why = f"it has a bad row on rank {outcome.bad_ranks[0]}; see {self._folder} there"
        last = "; further ones are counted and not told" if count == _MOST_WARNINGS else ""
        return f"{self._place(number)} is skipped on all ranks: {why}{last}"

    def _place(self, number: int) -> str:
        return f"step {number + 1:,} (epoch {number // self._loader.num_batches + 1})"

    def _keep(self, number: int, shares: list[Batch], error: BadBatchError) -> str:
        """Writes the share that `error` is about; in words, where it is. A full disk must not hide the bad row."""
        tag = f"-rank-{self._first_share + error.share}" if self._num_shares > 1 else ""
        path = self._folder / f"step-{number + 1:09d}{tag}.npz"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not path.exists() and len(list(self._folder.glob(f"step-*{tag}.npz"))) >= MOST_KEPT:
                return f"{self._folder} holds {MOST_KEPT} batches already, this one is not kept"
            arrays = _arrays(shares[error.share], self._loader.row_numbers(number, error.share), error)
            with replacing(path, DataError) as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        except (OSError, DataError) as problem:
            return f"it could not be kept for inspection: {problem}"
        return f"it is kept as {path} (numpy.load)"


def described(error: BadBatchError, loader: Loader, number: int) -> str:
    """Names the bad row by its place in the batch and in the part, and the column by the data set's own name."""
    if error.row is None or error.column is None:
        return str(error)
    row = int(loader.row_numbers(number, error.share)[error.row])
    column = loader.column_names.get(error.column, error.column)
    return f"row {error.row:,} of the batch, row {row:,} of the {loader.part_name} rows: {column} {error.fault}"


def _arrays(batch: Batch, rows: NDArray[np.int64], error: BadBatchError) -> Mapping[str, NDArray[np.generic]]:
    """Returns arrays by name, with the rows' numbers in their part, and -1 as the bad row where no single one is."""
    tensors = {"dense": batch.dense, "ids": batch.ids, "label": batch.label}
    if batch.offsets is not None:
        tensors["offsets"] = batch.offsets
    if batch.weight is not None:
        tensors["weight"] = batch.weight
    named = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    return {**named, "rows": rows, "bad_row": np.asarray(-1 if error.row is None else error.row)}
