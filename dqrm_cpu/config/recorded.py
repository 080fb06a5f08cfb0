"""The settings that a checkpoint recorded of its run: what they fill in, and how others differ from them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dqrm_cpu.config.schema import ENTRIES, Config, flatten
from dqrm_cpu.config.setting import BadValueError, Value, value_text
from dqrm_cpu.errors import CheckpointError

MAY_CHANGE = frozenset(
    {
        *("train.epochs", "train.max_steps", "train.early_stop_auc", "train.early_stop_patience"),
        *("train.evaluate_every", "train.test_batch_size", "train.log_every", "train.tensorboard"),
        *("train.checkpoint_every", "train.keep_checkpoints", "train.on_disk_full", "train.threads"),
        *("comm.transport", "comm.timeout", "comm.overlap"),
    }
)
"""Settings of how long, how fast and what is kept, not of what is trained: a file may change them for a resumed run."""

_COMPARED_OTHERWISE = frozenset({"preset", "data.source"})  # by the settings it stands for; by the rows themselves


@dataclass(frozen=True)
class RecordedConfig:
    """Dotted keys to values, as the checkpoint at `path` says."""

    path: Path
    values: Mapping[str, Value]


class Difference(NamedTuple):
    """A setting that is another now than a checkpoint recorded."""

    key: str
    recorded: Value
    now: Value

    def __str__(self) -> str:
        return f"{self.key} {value_text(self.recorded)} there, {value_text(self.now)} now"


def config_to_record(config: Config) -> dict[str, Any]:
    """The settings as a checkpoint records them, in JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in flatten(config).items()}


def recorded_config(path: Path, document: Mapping[str, Any]) -> RecordedConfig:
    """What `config_to_record` gave; settings that only another version has are passed over."""
    values: dict[str, Value] = {}
    for key, entry in ENTRIES.items():
        if key not in document:
            continue
        try:
            values[key] = entry.from_value(document[key])
        except BadValueError as error:
            raise CheckpointError(
                f"{path} recorded a value of {key} that cannot be ({error}, allowed: {entry.describe()}); use another "
                "checkpoint"
            ) from error
    return RecordedConfig(path, values)


def differences(recorded: RecordedConfig, config: Config) -> Iterator[Difference]:
    """Every setting that is not as it was recorded; where rows come from is compared by whoever reads them."""
    for key, now in flatten(config).items():
        if key not in _COMPARED_OTHERWISE and recorded.values.get(key, now) != now:
            yield Difference(key, recorded.values[key], now)


def require_recorded(recorded: RecordedConfig, found: list[Difference]) -> None:
    """CheckpointError that names every difference, if there is one."""
    if not found:
        return
    option = f"{ENTRIES[found[0].key].option} {value_text(found[0].now)}"
    raise CheckpointError(
        f"{recorded.path} was trained with other settings: {'; '.join(map(str, found))}; correct config.toml or "
        f"--config, or give on the command line what you want to change, such as {option}"
    )
