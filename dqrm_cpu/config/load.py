"""A configuration out of preset, TOML file and options, in that order; all mistakes reported together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tomli_w

from dqrm_cpu.config.names import key_mistake, nearest, option_mistake
from dqrm_cpu.config.presets import preset_config
from dqrm_cpu.config.recorded import RecordedConfig
from dqrm_cpu.config.rules import conflicts
from dqrm_cpu.config.schema import ENTRIES, Config, flatten, unflatten
from dqrm_cpu.config.setting import BadValueError, Entry, Kind, Value
from dqrm_cpu.config.toml_source import BrokenFileError, MissingFileError, TomlSource, read_toml
from dqrm_cpu.errors import ConfigError

_DEFAULT_PRESET = "demo"
_SHOWN = 200  # characters of a key or value in an error
_MOST_MISTAKES = 20


class LoadedConfig(NamedTuple):
    """A configuration, and the dotted keys that file or options set: the others are the preset's."""

    config: Config
    given: frozenset[str]


def load_config(preset: str | None, config_file: Path | None, overrides: Mapping[str, str]) -> Config:
    """The resolved configuration; overrides map dotted keys to option texts. ConfigError names every mistake."""
    return load_given_config(preset, config_file, overrides).config


def load_given_config(preset: str | None, config_file: Path | None, overrides: Mapping[str, str]) -> LoadedConfig:
    """The same, and what was set by file or options."""
    loading = _Loading()
    source = read_toml(config_file) if config_file is not None else None
    values = flatten(_chosen_preset(overrides.get("preset", preset), source, loading))
    loading.take_all(source, overrides, values)
    return loading.finished(values)


def load_run_config(
    config_file: Path, overrides: Mapping[str, str], recorded: RecordedConfig | None
) -> tuple[LoadedConfig, list[str]]:
    """The configuration of a run from its own file, and a warning for what a checkpoint had to say instead of it.

    A file that was cut short lacks settings, and their defaults are not those that the run was trained with.
    """
    if recorded is None:
        return load_given_config(None, config_file, overrides), []
    loading, warnings = _Loading(), []
    source: TomlSource | None = None
    try:
        source = read_toml(config_file)
    except (MissingFileError, BrokenFileError) as error:
        warnings.append(f"{error}; the settings that {recorded.path} recorded are used")
    known = source is not None and "preset" in source.leaves
    preset = None if known else str(recorded.values.get("preset", _DEFAULT_PRESET))
    values = flatten(_chosen_preset(preset, source, loading))
    lacking = [key for key in recorded.values if source is not None and key not in source.leaves]
    if lacking:
        shown = ", ".join(lacking[:_MOST_MISTAKES]) + (" and more" if len(lacking) > _MOST_MISTAKES else "")
        warnings.append(f"{config_file} lacks {shown}; what {recorded.path} recorded of them is used")
    for key, value in recorded.values.items():
        values[key] = value
        loading.origins[key] = partial(str, recorded.path)
    loading.take_all(source, overrides, values)
    return loading.finished(values), warnings


def check_config(config: Config) -> None:
    """Ranges and rules for a configuration built in Python; ConfigError names every mistake."""
    loading = _Loading()
    for key, value in flatten(config).items():
        try:
            ENTRIES[key].from_value(value)
        except BadValueError as error:
            loading.mistakes.append(f"{key} = {value!r}: {_refusal(ENTRIES[key], value, error)}")
    loading.raise_mistakes()
    loading.take_conflicts(config)
    loading.raise_mistakes()


@dataclass
class _Loading:
    """What went wrong so far, and where each key was set."""

    mistakes: list[str] = field(default_factory=list)
    origins: dict[str, Callable[[], str]] = field(default_factory=dict)

    def take_all(self, source: TomlSource | None, overrides: Mapping[str, str], values: dict[str, Value]) -> None:
        """Takes the settings of a file, and over them those of options."""
        if source is not None:
            for key, found in source.leaves.items():
                if len(self.mistakes) == _MOST_MISTAKES:
                    self.mistakes.append(f"{source.path}: and maybe more")
                    break
                self.take_toml(source, key, found, values)
        for key, text in overrides.items():
            if key != "preset":
                self.take_option(key, text, values)

    def finished(self, values: dict[str, Value]) -> LoadedConfig:
        """The checked configuration; ConfigError with all mistakes instead."""
        self.raise_mistakes()
        config = unflatten(values)
        self.take_conflicts(config)
        self.raise_mistakes()
        return LoadedConfig(config, frozenset(self.origins))

    def take_toml(self, source: TomlSource, key: str, found: object, values: dict[str, Value]) -> None:
        entry = ENTRIES.get(key)
        if entry is None:
            shown = _short(key)
            self.mistakes.append(f"{source.locate(key)}: {shown}: {key_mistake(shown)}")
            return
        if key == "preset":
            return
        try:
            values[key] = entry.from_value(found)
        except BadValueError as error:
            self.mistakes.append(f"{source.locate(key)}: {_as_toml(key, found)}: {_refusal(entry, found, error)}")
            return
        self.origins[key] = partial(source.locate, key)

    def take_option(self, key: str, text: str, values: dict[str, Value]) -> None:
        entry = ENTRIES.get(key)
        if entry is None:
            option = "--" + key.replace("_", "-")
            self.mistakes.append(f"{option} {text}: {option_mistake(option)}")
            return
        try:
            values[key] = entry.from_text(text)
        except BadValueError as error:
            self.mistakes.append(f"{entry.option} {text}: {_refusal(entry, text, error)}")
            return
        self.origins[key] = partial(str, f"{entry.option} {text}")

    def take_conflicts(self, config: Config) -> None:
        for conflict in conflicts(config):
            set_at = " and ".join(self.origins[key]() for key in conflict.keys if key in self.origins)
            self.mistakes.append(f"{set_at}: {conflict.message}" if set_at else conflict.message)

    def raise_mistakes(self) -> None:
        if len(self.mistakes) == 1:
            raise ConfigError(self.mistakes[0])
        if self.mistakes:
            raise ConfigError(f"{len(self.mistakes)} mistakes:\n  " + "\n  ".join(self.mistakes))


def _chosen_preset(preset: str | None, source: TomlSource | None, loading: _Loading) -> Config:
    name: object = preset
    where = f"--preset {preset}"
    if preset is None:
        name = source.leaves.get("preset", _DEFAULT_PRESET) if source is not None else _DEFAULT_PRESET
        where = f"{source.locate('preset')}: {_as_toml('preset', name)}" if source is not None else where
    try:
        return preset_config(str(ENTRIES["preset"].from_value(name)))
    except BadValueError as error:
        loading.mistakes.append(f"{where}: {_refusal(ENTRIES['preset'], name, error)}")
        return preset_config(_DEFAULT_PRESET)


def _refusal(entry: Entry, found: object, error: BadValueError) -> str:
    near = nearest(str(found), map(str, entry.setting.choices)) if entry.kind is Kind.STR else None
    hint = f"; nearest is {near}" if near else ""
    return f"{error}{hint}; allowed: {entry.describe()}"


def _as_toml(key: str, found: object) -> str:
    try:
        text = tomli_w.dumps({"x": found}).removeprefix("x = ")
    except (ValueError, RecursionError):  # an integer with thousands of digits, a value nested too deeply
        text = "..."
    return f"{_short(key)} = {_short(' '.join(text.split()))}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
