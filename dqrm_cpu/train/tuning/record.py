"""The record of a search in its run folder: what is tried, how far it came, and what it chose."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from dqrm_cpu.base.decode import Json, UnreadableError, decoded, read_json
from dqrm_cpu.base.memory import format_size
from dqrm_cpu.config import Config
from dqrm_cpu.config.recorded import MAY_CHANGE, config_to_record, differences, recorded_config
from dqrm_cpu.config.schema import SETTINGS
from dqrm_cpu.config.setting import BadValueError
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.metrics.click import FIGURE_NAMES, ClickMetrics, defined
from dqrm_cpu.train.metrics_row import strict_json
from dqrm_cpu.train.run_folder import result_checksum, write_document
from dqrm_cpu.train.tuning.candidates import SEARCHED, Values, column_name, shown
from dqrm_cpu.train.tuning.halving import Round, Trial, best_trial, last_within, next_trial, scored

SETTINGS_FILE = "tuning.json"
"""Records the search for settings before training."""

COUNT_FILE = "min-count.json"
"""Records the search for data.min_count."""

MIN_COUNT = "data.min_count"

_FORMAT = 1


@dataclass(frozen=True)
class _Score:
    """A score as the file has it: null for a figure that is not defined, and for all where training diverged."""

    metrics: dict[str, float | None] | None


@dataclass(frozen=True)
class _TrialDocument:
    settings: dict[str, Any]
    scores: list[_Score]


class Kept(NamedTuple):
    """What a count leaves: rows of all tables, bytes of the packed model, and the share of cells without a row."""

    rows: int
    model_bytes: int
    rare_share: float


@dataclass(frozen=True)
class _Document:
    format: int
    asked: int
    settings: dict[str, Any]
    data: str
    rounds: list[Round]
    trials: list[_TrialDocument]
    crc32: int
    within: float = 0.0
    kept: list[Kept] = field(default_factory=list)


@dataclass(frozen=True)
class SearchRecord:
    """A search for settings: `asked` trials, from `settings` on rows with the fingerprint `data`.

    Of a search for data.min_count, whose trials have rising counts, the last one is chosen whose AUC is `within` so
    much of the best, and `kept` says what each of them leaves.
    """

    asked: int
    settings: Mapping[str, Json]
    data: str
    rounds: tuple[Round, ...]
    trials: tuple[Trial, ...]
    within: float = 0.0
    kept: tuple[Kept, ...] = ()

    @property
    def searched(self) -> tuple[str, ...]:
        """The dotted keys that are searched."""
        return tuple(self.trials[0].values)

    @property
    def best_by(self) -> str:
        """The setting train.best_by: the figure that decides."""
        return str(self.settings["train.best_by"])

    @property
    def next_trial(self) -> tuple[int, int] | None:
        """What is to be tried next: the numbers of a round and of a trial, from 0; None at the end."""
        return next_trial(self.rounds, self.trials, self.best_by)

    @property
    def is_complete(self) -> bool:
        return self.next_trial is None

    @property
    def chosen(self) -> int | None:
        """The number of the trial that is chosen, from 0; None before the end, and where all trials diverged."""
        if not self.is_complete:
            return None
        return last_within(self.trials, self.within) if self.kept else best_trial(self.trials, self.best_by)

    def with_score(self, number: int, metrics: ClickMetrics | None) -> Self:
        """Returns the record with another score of trial `number`."""
        return replace(self, trials=scored(self.trials, number, metrics))

    def to_json(self) -> dict[str, Json]:
        """Returns the content of the file."""
        trials: list[Json] = [
            {"settings": dict(trial.values), "scores": [{"metrics": _figures(score)} for score in trial.scores]}
            for trial in self.trials
        ]
        content: dict[str, Any] = {
            "format": _FORMAT,
            "asked": self.asked,
            "settings": self.settings,
            "data": self.data,
            "rounds": self.rounds,
            "trials": trials,
            "chosen": self.chosen,
        }
        if self.kept:
            reason = reason_of(self) if self.chosen is not None else None
            content |= {"within": self.within, "kept": self.kept, "reason": reason}
        document: Any = strict_json(content)
        return {**document, "crc32": result_checksum(document)}

    @classmethod
    def from_json(cls, path: Path, value: Any) -> Self:
        """Reads what `to_json` gave, from the file at `path`; ConfigError where it is anything else."""
        try:
            document = decoded(value, _Document)
            if document.format != _FORMAT:
                raise UnreadableError(f"has format {document.format}, this version reads {_FORMAT}")
            if document.crc32 != result_checksum(value):
                raise UnreadableError("does not match its own checksum")
            trials = tuple(_trial(trial) for trial in document.trials)
            scores = max((len(trial.scores) for trial in trials), default=-1)
            if document.settings.get("train.best_by") not in SETTINGS["train.best_by"].choices:
                raise UnreadableError("does not say what decides")
            if not 0 <= scores <= len(document.rounds) or min(map(min, document.rounds), default=0) < 1:
                raise UnreadableError("has trials that do not fit its rounds")
            if document.kept and len(document.kept) != len(trials):
                raise UnreadableError("does not say of each trial what it leaves")
        except UnreadableError as error:
            raise ConfigError(f"{path} {error}; remove it to search anew, or give another --run-dir") from error
        rounds, kept = tuple(document.rounds), tuple(document.kept)
        return cls(document.asked, document.settings, document.data, rounds, trials, document.within, kept)

    def require_same(self, path: Path, config: Config, asked: int, data: str, options: Set[str]) -> None:
        """Raises ConfigError unless this is the search that another call asks for, settings that it chooses aside.

        Once it has ended, `options`, the keys that were given as options of that call, may be anything.
        """
        if asked != self.asked and not self.kept:
            raise ConfigError(f"the search in {path} has --tune {self.asked}; give that, or another --run-dir")
        if data != self.data:
            raise ConfigError(f"the search in {path} read {self.data}, and now there is {data}; give another --run-dir")
        late = sorted(options & set(self.searched))
        if late and not self.is_complete:
            raise ConfigError(f"the search in {path} tries values of {', '.join(late)}; give none until it has ended")
        recorded = recorded_config(path, self.settings)
        ignored = MAY_CHANGE | set(self.searched) | (options if self.is_complete else set())
        changed = [str(one) for one in differences(recorded, config) if one.key not in ignored]
        if changed:
            raise ConfigError(
                f"the search in {path} began with other settings: {'; '.join(changed)}; give those, or "
                "another --run-dir"
            )


def new_record(
    config: Config, asked: int, data: str, rounds: tuple[Round, ...], values: Sequence[Values]
) -> SearchRecord:
    """Makes the record of a search that begins."""
    return SearchRecord(asked, config_to_record(config), data, rounds, tuple(map(Trial, values)))


def record_path(run_dir: Path, name: str = SETTINGS_FILE) -> Path:
    """Returns the file in a run folder that records a search before training, one of SETTINGS_FILE and COUNT_FILE."""
    return run_dir / name


def read_record(run_dir: Path, name: str = SETTINGS_FILE) -> SearchRecord | None:
    """Reads a record in a run folder; None where there is none."""
    path = record_path(run_dir, name)
    try:
        return SearchRecord.from_json(path, read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, UnreadableError) as error:
        raise ConfigError(f"{path} cannot be read (it {error}); restore it, or give another --run-dir") from error


def write_record(run_dir: Path, record: SearchRecord, name: str = SETTINGS_FILE) -> None:
    """Writes the record, whole or not at all."""
    write_document(record_path(run_dir, name), record.to_json())


def trial_rows(record: SearchRecord) -> list[list[str]]:
    """Returns the trials as rows of text below a head: what each tried, and what decides, after each round."""
    by = "auc" if record.kept else record.best_by
    after = [f"{FIGURE_NAMES[by]}, {part.steps:,} steps" for part in record.rounds]
    of_kept = ["rows kept", "cells without a row", "model"] if record.kept else []
    rows = [["trial", *map(column_name, record.searched), *of_kept, *after, ""]]
    for number, trial in enumerate(record.trials):
        scores = ["diverged" if score is None else defined(score.figure(by), ".4f") for score in trial.scores]
        scores += ["-"] * (len(record.rounds) - len(scores))
        chosen = "chosen" if number == record.chosen else ""
        left = _kept_cells(record.kept[number]) if record.kept else []
        rows.append([str(number + 1), *map(shown, trial.values.values()), *left, *scores, chosen])
    return rows


def reason_of(record: SearchRecord) -> str:
    """Says in a sentence why a count was chosen, with the figures that decided."""
    assert record.chosen is not None
    chosen = record.trials[record.chosen]
    aucs = [trial.scores[-1].auc for trial in record.trials if trial.scores and trial.scores[-1] is not None]
    own = chosen.scores[-1]
    assert own is not None
    lost = max(aucs) - own.auc
    return (
        f"min count {chosen.values[MIN_COUNT]} keeps {record.kept[record.chosen].rows:,} of {record.kept[0].rows:,} "
        f"rows, {lost:.4f} of validation AUC below the best of {len(record.trials)} counts: the largest within "
        f"{record.within:g}"
    )


def _kept_cells(kept: Kept) -> list[str]:
    return [f"{kept.rows:,}", f"{kept.rare_share:.1%}", format_size(kept.model_bytes)]


def _figures(metrics: ClickMetrics | None) -> dict[str, Json] | None:
    return None if metrics is None else replace(metrics, reliability=None).as_dict()


def _trial(document: _TrialDocument) -> Trial:
    if not document.settings or not set(document.settings) <= {*SEARCHED, MIN_COUNT}:
        raise UnreadableError("has a trial of settings that are not searched")
    try:
        values = {key: SETTINGS[key].from_value(value) for key, value in document.settings.items()}
    except BadValueError as error:
        raise UnreadableError(f"has a trial with a value that cannot be ({error})") from error
    return Trial(values, tuple(_metrics(score) for score in document.scores))


def _metrics(score: _Score) -> ClickMetrics | None:
    if score.metrics is None:
        return None
    figures = {name: math.nan if value is None else value for name, value in score.metrics.items()}
    counts = {name: int(figures[name]) for name in ("examples", "skipped_rows") if name in figures}
    return decoded({**figures, **counts}, ClickMetrics)
