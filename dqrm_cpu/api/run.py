"""`dqrm_cpu.Run`: a training run in its folder, finished or not."""

import logging
import math
import os
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.api import scoring
from dqrm_cpu.api.arguments import PathLike, path_of, require_choice
from dqrm_cpu.api.evaluation import Evaluation
from dqrm_cpu.api.scoring import Columns
from dqrm_cpu.api.settings import recorded_config
from dqrm_cpu.base.decode import UnreadableError
from dqrm_cpu.config import Config
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.metrics.calibration import FITS
from dqrm_cpu.predict.exporting import SUFFIXES, ExportedFile, ExportRequest, export
from dqrm_cpu.predict.prediction import PredictionSummary
from dqrm_cpu.train.run_folder import read_result, read_rows
from dqrm_cpu.train.run_place import holds_run, members_of
from dqrm_cpu.train.state import Result

_LOGGER = logging.getLogger(__name__)


class Run(os.PathLike[str]):
    """A training run: what it was asked for, what it measured, and the model that it left.

    It reads the folder whenever it is asked, also of a run that still goes on, and is a path: of that folder.
    """

    def __init__(self, path: PathLike) -> None:
        """Opens the run in a folder; ConfigError where there is none.

        :param path: the folder that `train` wrote
        """
        self.path = path_of(path, "path")
        if not holds_run(self.path):
            raise ConfigError(f"{self.path} holds no run; give a folder that dqrm-cpu train wrote")

    @classmethod
    def open(cls, path: PathLike) -> Self:
        """Does what Run(path) does.

        :param path: the folder that `train` wrote
        """
        return cls(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def settings(self) -> Config:
        """All settings that it was trained with."""
        return recorded_config(self.path)

    @property
    def result(self) -> Result | None:
        """What it ended with: metrics of validation and test, steps, sizes; None before it has finished."""
        document = read_result(self.path)
        try:
            return None if document is None else Result.from_dict(document, self.path)
        except UnreadableError as error:
            raise CheckpointError(f"result.json of {self.path} {error}; restore it") from error

    @property
    def members(self) -> tuple[Self, ...]:
        """Of an ensemble the runs of its members, as far as they have begun; of a single run none."""
        return tuple(type(self)(folder) for folder in members_of(self.path))

    @property
    def metrics(self) -> Columns:
        """The rows of metrics.jsonl as columns: a training row per train.log_every steps, a row per evaluation.

        NaN stands where a row has no such figure. What there is for each table is in `table_metrics`; bins of
        predictions are left out.
        """
        rows = [row.to_json() for row in read_rows(self.path)]
        lists = {name for row in rows for name, value in row.items() if isinstance(value, list | tuple | dict)}
        names = dict.fromkeys(name for row in rows for name in row if name not in lists)
        return {name: _column(row.get(name) for row in rows) for name in names}

    @property
    def table_metrics(self) -> Columns:
        """What metrics.jsonl says of each embedding table as columns: a row per table and row of the log."""
        found: list[dict[str, Any]] = []
        for row in (row.to_json() for row in read_rows(self.path)):
            lists = {name: value for name, value in row.items() if isinstance(value, list | tuple) and value}
            for table in range(max(map(len, lists.values()), default=0)):
                values = {name: value[table] for name, value in lists.items()}
                found.append({"step": row["step"], "phase": row["phase"], "table": table, **values})
        names = dict.fromkeys(name for row in found for name in row)
        return {name: _column(row.get(name) for row in found) for name in names}

    def evaluate(self, data: PathLike | None = None, **options: Any) -> Evaluation:
        """Computes metrics of its model.

        :param data: the folder of a prepared data set; None: its own
        :param options: those of `dqrm_cpu.evaluate`
        """
        return scoring.evaluate(self, data, **options)

    def predict(
        self, inputs: Any, out: PathLike | None = None, **options: Any
    ) -> NDArray[np.float32] | Columns | PredictionSummary:
        """Scores rows with its model.

        :param inputs: rows, or where they are, as `dqrm_cpu.predict` takes them
        :param out: a file for the predictions; None: they are returned
        :param options: those of `dqrm_cpu.predict`
        """
        return scoring.predict(self, inputs, out, **options)

    def export(
        self,
        out: PathLike | None = None,
        *,
        format: str = "packed",  # noqa: A002  # as the option is called
        layout: str = "dense",
        checkpoint: PathLike = "best",
        data: PathLike | None = None,
        calibrate: str | None = None,
        overwrite: bool = False,
    ) -> ExportedFile:
        """Writes its model as one file that scores raw rows by itself.

        :param out: the file; None: model with the ending of the format, in its folder
        :param format: packed, for dqrm_cpu.serving, onnx, openvino, or pte
        :param layout: dense: the codes of all rows; sparse: of rows that are not zero
        :param checkpoint: best, last, or the folder of one
        :param data: a data set with its vocabulary; None: its own
        :param calibrate: platt or isotonic: corrects the probabilities by its validation rows
        :param overwrite: replace `out` where it exists
        """
        require_choice(format, "format", tuple(SUFFIXES))
        require_choice(layout, "layout", ("dense", "sparse"))
        if calibrate is not None:
            require_choice(calibrate, "calibrate", tuple(FITS))
        return export(
            ExportRequest(
                run_dir=self.path,
                out=self.path / f"model{SUFFIXES[format]}" if out is None else path_of(out, "out"),
                format=format,
                layout=layout,
                checkpoint=str(checkpoint),
                data=None if data is None else path_of(data, "data"),
                calibrate=calibrate,
                overwrite=overwrite,
                note=_LOGGER.info,
            )
        )


def _column(values: Iterable[Any]) -> NDArray[Any]:
    """Returns int64, float64 or text; NaN for what is missing."""
    cells = list(values)
    if all(isinstance(cell, str) for cell in cells):
        return np.array(cells, dtype=np.str_)
    if all(isinstance(cell, int) for cell in cells):
        return np.array(cells, dtype=np.int64)
    return np.array([math.nan if cell is None else cell for cell in cells], dtype=np.float64)
