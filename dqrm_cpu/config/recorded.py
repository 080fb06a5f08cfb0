"""The settings that a checkpoint recorded of its run: what they fill in, and how others differ from them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dqrm_cpu.config.schema import SETTINGS, Config, flatten
from dqrm_cpu.config.setting import BadValueError, Value, plain_value, value_text
from dqrm_cpu.errors import CheckpointError

MAY_CHANGE = frozenset(
    {
        *("train.epochs", "train.max_steps", "train.early_stop_auc", "train.early_stop_patience"),
        *("train.evaluate_every", "train.test_batch_size", "train.log_every", "train.tensorboard", "train.mlflow"),
        *("train.checkpoint_every", "train.keep_checkpoints", "train.on_disk_full", "train.threads"),
        "train.test_first",
        *("comm.transport", "comm.timeout", "comm.overlap", "comm.tables"),
    }
)
"""Settings of how long, how fast and what is kept, not of what is trained: a file may change them for a resumed run."""

# By the settings it stands for; by the rows themselves; a run that has begun has its weights.
_COMPARED_OTHERWISE = frozenset({"preset", "data.source", "init_from"})


@dataclass(frozen=True)
class RecordedConfig:
    """The settings that the checkpoint at `path` recorded: dotted keys to values."""

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
    """Returns the settings as a checkpoint records them, in JSON."""
    return {key: plain_value(SETTINGS[key], value) for key, value in flatten(config).items()}


def recorded_config(path: Path, document: Mapping[str, Any]) -> RecordedConfig:
    """Reads what `config_to_record` gave; settings that only another version has are passed over."""
    values: dict[str, Value] = {}
    for key, setting in SETTINGS.items():
        if key not in document:
            continue
        try:
            values[key] = setting.from_value(document[key])
        except BadValueError as error:
            raise CheckpointError(
                f"{path} recorded a value of {key} that cannot be ({error}, allowed: {setting.describe()}); use "
                "another checkpoint"
            ) from error
    return RecordedConfig(path, values)


def differences(recorded: RecordedConfig, config: Config) -> Iterator[Difference]:
    """Yields every setting that is not as it was recorded; where rows come from is compared by whoever reads them."""
    for key, now in flatten(config).items():
        if key not in _COMPARED_OTHERWISE and recorded.values.get(key, now) != now:
            yield Difference(key, recorded.values[key], now)


def require_recorded(recorded: RecordedConfig, changed: list[Difference], advice: str = "") -> None:
    """Raises a CheckpointError that names every difference, if there is one; `advice` of commands without settings."""
    if not changed:
        return
    option = f"{SETTINGS[changed[0].key].option} {value_text(changed[0].now)}"
    advice = advice or (
        f"correct config.toml or --config, or give on the command line what you want to change, such as {option}"
    )
    raise CheckpointError(f"{recorded.path} was trained with other settings: {'; '.join(map(str, changed))}; {advice}")
