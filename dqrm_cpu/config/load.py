"""A configuration out of preset, TOML file and options, in that order; all mistakes reported together."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tomli_w

from dqrm_cpu.config.presets import preset_config
from dqrm_cpu.config.recorded import RecordedConfig
from dqrm_cpu.config.rules import conflicts
from dqrm_cpu.config.schema import OPTIMIZER_RATES, SECTIONS, SETTINGS, Config, flatten, unflatten
from dqrm_cpu.config.setting import BadValueError, Setting, Value
from dqrm_cpu.config.toml_source import BrokenFileError, MissingFileError, TomlSource, read_toml
from dqrm_cpu.errors import ConfigError

_DEFAULT_PRESET = "demo"
_SHOWN = 200  # characters of a key or value in an error
_MOST_MISTAKES = 20
_ELSEWHERE = {"lr": "train.learning_rate", "wd": "train.weight_decay", "bs": "train.batch_size", "gpu": "device"}
"""What other programs call an option that nothing here is spelled like: by that name, the setting."""


class LoadedConfig(NamedTuple):
    """A configuration, and the dotted keys that file or options set: the others are the preset's."""

    config: Config
    given: frozenset[str]


def load_config(preset: str | None, config_file: Path | None, overrides: Mapping[str, str]) -> Config:
    """Resolves a configuration; overrides map dotted keys to option texts. ConfigError names every mistake."""
    return load_given_config(preset, config_file, overrides).config


def load_given_config(preset: str | None, config_file: Path | None, overrides: Mapping[str, str]) -> LoadedConfig:
    """Does `load_config`, and returns the keys that file or options set."""
    loading = _Loading()
    source = read_toml(config_file) if config_file is not None else None
    values = flatten(_chosen_preset(overrides.get("preset", preset), source, loading))
    loading.take_all(source, overrides, values)
    return loading.finished(values)


def load_run_config(
    config_file: Path, overrides: Mapping[str, str], recorded: RecordedConfig | None
) -> tuple[LoadedConfig, list[str]]:
    """Loads the configuration of a run from its own file, and a warning for what a checkpoint had to say instead of it.

    A file that was cut short lacks settings, whose defaults are not those that the run was trained with, and the number
    that it ends in may have lost digits.
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
    source, lacking = (source, []) if source is None else _as_far_as_whole(source, recorded)
    if lacking:
        shown = ", ".join(lacking[:_MOST_MISTAKES]) + (" and more" if len(lacking) > _MOST_MISTAKES else "")
        warnings.append(f"{config_file} lacks {shown}; what {recorded.path} recorded of them is used")
    for key, value in recorded.values.items():
        values[key] = value
        loading.origins[key] = partial(str, recorded.path)
    loading.take_all(source, overrides, values)
    return loading.finished(values), warnings


def _as_far_as_whole(source: TomlSource, recorded: RecordedConfig) -> tuple[TomlSource, list[str]]:
    """Returns a run's file without its last setting if it was cut there or later, and the settings that it lacks."""
    lacking = [key for key in recorded.values if key not in source.leaves]
    if source.leaves and (lacking or not source.text.endswith("\n")):
        *whole, (last, value) = source.leaves.items()
        source = replace(source, leaves=dict(whole))
        known = recorded.values.get(last)
        if known is not None and value != (list(known) if isinstance(known, tuple) else known):
            lacking.insert(0, last)
    return source, lacking


def check_config(config: Config) -> None:
    """Checks ranges and rules of a configuration built in Python; ConfigError names every mistake."""
    loading = _Loading()
    for key, value in flatten(config).items():
        try:
            SETTINGS[key].from_value(value)
        except BadValueError as error:
            loading.mistakes.append(f"{key} = {value!r}: {_refusal(SETTINGS[key], value, error)}")
    loading.raise_mistakes()
    loading.take_conflicts(config)
    loading.raise_mistakes()


@dataclass
class _Loading:
    """The state of loading: what went wrong so far, and where each key was set."""

    mistakes: list[str] = field(default_factory=list)
    origins: dict[str, Callable[[], str]] = field(default_factory=dict)

    def take_all(self, source: TomlSource | None, overrides: Mapping[str, str], values: dict[str, Value]) -> None:
        """Takes the settings of a file, and over them those of options."""
        if source is not None:
            for key, value in source.leaves.items():
                if len(self.mistakes) == _MOST_MISTAKES:
                    self.mistakes.append(f"{source.path}: and maybe more")
                    break
                self.take_toml(source, key, value, values)
        for key, text in overrides.items():
            if key != "preset":
                self.take_option(key, text, values)

    def finished(self, values: dict[str, Value]) -> LoadedConfig:
        """Returns the checked configuration; ConfigError with all mistakes instead."""
        self.raise_mistakes()
        preset = preset_config(str(values["preset"]))
        if values["train.optimizer"] != preset.train.optimizer and "train.learning_rate" not in self.origins:
            values["train.learning_rate"] = OPTIMIZER_RATES[str(values["train.optimizer"])]
        if "model.table_rows" in self.origins and "data.min_count" not in self.origins:
            values["data.min_count"] = 0  # sizes that somebody gives are not found from the rows
        config = unflatten(values)
        self.take_conflicts(config)
        self.raise_mistakes()
        return LoadedConfig(config, frozenset(self.origins))

    def take_toml(self, source: TomlSource, key: str, value: object, values: dict[str, Value]) -> None:
        setting = SETTINGS.get(key)
        if setting is None:
            shown = _short(key)
            self.mistakes.append(f"{source.locate(key)}: {shown}: {key_mistake(shown)}")
            return
        if key == "preset":
            return
        try:
            values[key] = setting.from_value(value)
        except BadValueError as error:
            self.mistakes.append(f"{source.locate(key)}: {_as_toml(key, value)}: {_refusal(setting, value, error)}")
            return
        self.origins[key] = partial(source.locate, key)

    def take_option(self, key: str, text: str, values: dict[str, Value]) -> None:
        setting = SETTINGS.get(key)
        if setting is None:
            option = "--" + key.replace("_", "-")
            self.mistakes.append(f"{option} {text}: {option_mistake(option)}")
            return
        try:
            values[key] = setting.from_text(text)
        except BadValueError as error:
            self.mistakes.append(f"{setting.option} {text}: {_refusal(setting, text, error)}")
            return
        self.origins[key] = partial(str, f"{setting.option} {text}")

    def take_conflicts(self, config: Config) -> None:
        for conflict in conflicts(config):
            set_at = " and ".join(self.origins[key]() for key in conflict.keys if key in self.origins)
            self.mistakes.append(f"{set_at}: {conflict.message}" if set_at else conflict.message)

    def raise_mistakes(self) -> None:
        if len(self.mistakes) == 1:
            raise ConfigError(self.mistakes[0])
        if self.mistakes:
            raise ConfigError(f"{len(self.mistakes)} mistakes:\n  " + "\n  ".join(self.mistakes))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Finds the most similar known word; None when nothing is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def key_mistake(key: str) -> str:
    """Says what is wrong with a TOML key that is no setting, and what to write."""
    if key in SECTIONS:
        return f"is a section, not a key; write [{key}] above its keys"
    section = key.rpartition(".")[0]
    meant = _misplaced(key)
    if meant is not None:
        place = f"in [{meant.section}]" if meant.section else "at top level, above the first [section]"
        return f"misplaced key; {meant.name} belongs {place}"
    if section in SECTIONS:
        near = nearest(key, (known for known in SETTINGS if known.startswith(f"{section}.")))
        if near is None:
            names = ", ".join(e.name for e in SETTINGS.values() if e.section == section)
            return f"unknown key; [{section}] has {names}"
    else:
        near = nearest(key, (*SETTINGS, *SECTIONS))
    if near is None:
        return f"unknown key; sections are {', '.join(SECTIONS)}"
    if near in SECTIONS:
        return f"unknown section; nearest is [{near}]"
    return f"unknown key; nearest is {near} ({SETTINGS[near].describe()})"


def option_mistake(option: str, others: Iterable[str] = ()) -> str:
    """Says what is wrong with an option that does not exist; `others` are options that are no settings."""
    key = option.removeprefix("--").replace("-", "_")
    meant = SETTINGS.get(_ELSEWHERE.get(key, ""), _misplaced(key))
    if meant is None:
        by_option = {setting.option: setting for setting in SETTINGS.values()}
        near = nearest(option, (*by_option, *others))
        if near is None:
            return "unknown option; --help lists what there is"
        if near not in by_option:
            return f"unknown option; nearest is {near}"
        meant = by_option[near]
    return f"unknown option; nearest is {meant.option} ({meant.describe()})"


def _misplaced(key: str) -> Setting | None:
    """Finds the setting of exactly this name in another section."""
    name = key.rpartition(".")[2]
    return next((setting for setting in SETTINGS.values() if setting.name == name and setting.key != key), None)


def _chosen_preset(preset: str | None, source: TomlSource | None, loading: _Loading) -> Config:
    name: object = preset
    where = f"--preset {preset}"
    if preset is None:
        name = source.leaves.get("preset", _DEFAULT_PRESET) if source is not None else _DEFAULT_PRESET
        where = f"{source.locate('preset')}: {_as_toml('preset', name)}" if source is not None else where
    try:
        return preset_config(str(SETTINGS["preset"].from_value(name)))
    except BadValueError as error:
        loading.mistakes.append(f"{where}: {_refusal(SETTINGS['preset'], name, error)}")
        return preset_config(_DEFAULT_PRESET)


def _refusal(setting: Setting, value: object, error: BadValueError) -> str:
    near = nearest(str(value), map(str, setting.choices)) if setting.item is str else None
    hint = f"; nearest is {near}" if near else ""
    return f"{error}{hint}; allowed: {setting.describe()}"


def _as_toml(key: str, value: object) -> str:
    try:
        text = tomli_w.dumps({"x": value}).removeprefix("x = ")
    except (ValueError, RecursionError):  # an integer with thousands of digits, a value nested too deeply
        text = "..."
    return f"{_short(key)} = {_short(' '.join(text.split()))}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
