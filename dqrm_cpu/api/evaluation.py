"""Metrics of a trained model on parts of its data set or of another: the work of `dqrm-cpu evaluate`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dqrm_cpu.api.settings import GivenSettings, Warn, config_to_score
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.data.store.manifest import PART_NAMES, read_manifest
from dqrm_cpu.data.store.run_data import SYNTHETIC
from dqrm_cpu.errors import ConfigError, TrainingError, unanimous
from dqrm_cpu.metrics.calibration import FITS, Calibration
from dqrm_cpu.metrics.click import ClickAccumulator, ClickMetrics
from dqrm_cpu.metrics.groups import GroupedAuc, Slice, grouped_auc, slices
from dqrm_cpu.model.shapes import table_names
from dqrm_cpu.train.checkpoint_folder import checkpoints_to_score
from dqrm_cpu.train.ensemble import Wanted, mean_predictions
from dqrm_cpu.train.evaluation_notes import calibration_warning

ALL_PARTS = "all"


@dataclass(frozen=True)
class EvaluationOrder:
    """The arguments of an evaluation, from the command line or from Python."""

    run_dir: Path
    given: GivenSettings
    part: str = "test"  # or train, validation, all
    checkpoint: str = "best"  # or last, or the folder of one
    group_by: str | None = None  # a category: the AUC within its values
    slice_by: str | None = None  # a category: all metrics for each of its most frequent values
    slices: int = 10  # how many of them
    calibrate: str | None = None  # platt or isotonic

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the data set that are scored."""
        return PART_NAMES if self.part == ALL_PARTS else (self.part,)

    def load(self, warn: Warn) -> Config:
        """Loads the settings to score with; ConfigError where the order is not one."""
        require_part_and_slices(self.part, self.slices)
        if self.calibrate is not None and self.calibrate not in FITS:
            raise ConfigError(f"--calibrate {self.calibrate}: no such way; there are {', '.join(FITS)}")
        config = config_to_score(self.given, self.run_dir, self.parts, warn)
        # Before the ranks meet: a mistake that all of them make would end each as if it were its own.
        self.tables(config)
        return config

    def tables(self, config: Config) -> list[int]:
        """Finds the tables of the columns to group and to slice by, in this order."""
        return [_table_of(config, name) for name in (self.group_by, self.slice_by) if name is not None]


@dataclass(frozen=True)
class Evaluation:
    """The metrics that were asked for, and where wanted those of groups and slices."""

    checkpoint: Path  # of an ensemble: its folder
    metrics: ClickMetrics
    grouped: GroupedAuc | None
    slices: tuple[Sequence[Slice], ClickMetrics | None] | None
    calibration: Calibration | None


def require_part_and_slices(part: str, count: int) -> None:
    """Raises ConfigError for a part of a data set that there is not, and for no slices."""
    if part not in (*PART_NAMES, ALL_PARTS):
        raise ConfigError(f"there is no part {part!r}; there are {', '.join(PART_NAMES)} and {ALL_PARTS}")
    if count < 1:
        raise ConfigError(f"--slices is {count}, and at least one value is to be shown")


def evaluate(
    order: EvaluationOrder,
    config: Config,
    transport: Transport,
    warn: Warn,
    advance: Callable[[int], object] | None = None,
) -> Evaluation:
    """Scores this rank's share of the rows; every rank calls it, and rank 0 warns.

    `advance` is called with the rows that this rank has scored.
    """
    paths = checkpoints_to_score(order.run_dir, order.checkpoint, config.ensemble)
    tables = order.tables(config)
    wanted = [Wanted(config, order.parts, tables)]
    if order.calibrate:
        wanted.append(_rows_to_fit(config, order, warn))
    scored, *to_fit = mean_predictions(config, paths, wanted, transport, warn, advance).predictions
    calibration = None
    for validation in to_fit:
        calibration = _fitted(str(order.calibrate), validation)
        scored.logits[:] = calibration.logits(scored.logits)
    by_group = by_slice = None
    if order.group_by is not None:
        by_group = grouped_auc(scored.logits, scored.clicks, scored.keys(0), scored.weights)
    if order.slice_by is not None:
        values = scored.keys(len(tables) - 1)
        by_slice = slices(scored.logits, scored.clicks, values, order.slices, scored.weights)
    metrics = scored.compute()
    warning = calibration_warning(metrics, order.part, config.data)
    if warning and not order.calibrate and transport.rank == 0:
        warn(warning)
    path = order.run_dir if len(paths) > 1 else paths[0]
    return Evaluation(path, metrics, by_group, by_slice, calibration)


def _rows_to_fit(config: Config, order: EvaluationOrder, warn: Warn) -> Wanted:
    """Returns the validation rows of the run, which a calibration is fitted to, whatever rows are scored."""
    own = config_to_score(GivenSettings(), order.run_dir, ("validation",), warn)
    _require_alike(own, config, order.parts)
    return Wanted(own, ("validation",))


def _fitted(how: str, scored: ClickAccumulator) -> Calibration:
    try:
        return FITS[how](scored.logits, scored.clicks, scored.weights)
    except TrainingError as error:
        error.unanimous = True  # every rank has the rows of all
        raise


def _require_alike(own: Config, config: Config, parts: Sequence[str]) -> None:
    """Refuses to correct the probabilities of some rows by those of rows that kept another share of non-clicks."""
    fitted = own.data.evaluation_keep_rate
    for part in parts:
        kept = config.data.negative_keep_rate if part == "train" else config.data.evaluation_keep_rate
        if kept != fitted:
            raise unanimous(
                ConfigError(
                    f"--calibrate fits probabilities to the run's validation rows, which kept {fitted:g} of those "
                    f"without a click (data.evaluation_keep_rate), and the {part} rows kept {kept:g}: leave "
                    "--calibrate out, or score rows that kept the same share"
                )
            )


def _table_of(config: Config, column: str) -> int:
    """Finds the table of a category by the name that its column has in the data set."""
    if config.data.source == SYNTHETIC:
        names = table_names(len(config.model.table_rows))
    else:
        names = read_manifest(Path(config.data.source)).schema.categorical
    if column not in names:
        raise ConfigError(f"there is no category {column!r}; there are {', '.join(names)}")
    return names.index(column)
