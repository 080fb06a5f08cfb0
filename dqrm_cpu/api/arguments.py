"""Arguments of calls from Python, checked and made what the command line makes of its options."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from dqrm_cpu.api.settings import GivenSettings
from dqrm_cpu.config import Config, check_config, preset_config
from dqrm_cpu.config.load import key_mistake
from dqrm_cpu.config.schema import SECTIONS, SETTINGS, flatten
from dqrm_cpu.config.setting import Value, value_text
from dqrm_cpu.errors import ConfigError

PathLike: TypeAlias = str | os.PathLike[str]
"""The name of a file or folder; runs and data sets are such names too."""

_OPTIMIZER, _RATE = "train.optimizer", "train.learning_rate"
_TABLE_ROWS, _MIN_COUNT = "model.table_rows", "data.min_count"


def path_of(value: object, name: str) -> Path:
    """Returns a path; ConfigError where the argument called `name` is none."""
    try:
        return Path(os.fspath(value))  # type: ignore[call-overload]  # which is what is tried out
    except TypeError:
        raise ConfigError(f"{name} is {value!r}, which names no file or folder; give a text or a Path") from None


def require_choice(value: object, name: str, choices: Sequence[object]) -> None:
    """Raises ConfigError unless the argument called `name` is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; there are {', '.join(map(str, choices))}")


def whole_number(value: object, name: str, least: int) -> int:
    """Returns an int; ConfigError unless the argument called `name` is one, from `least` on."""
    try:
        number = value.__index__() if not isinstance(value, bool) else None  # type: ignore[attr-defined]
    except AttributeError:
        number = None
    if number is None or number < least:
        raise ConfigError(f"{name} is {value!r}, which is no whole number from {least} on")
    return int(number)


def warn(text: str) -> None:
    """Warns as Python does; `warnings.filterwarnings` says what becomes of it."""
    warnings.warn(text, UserWarning, stacklevel=2)


def given_settings(data: object, preset: str | None, config: object, settings: Mapping[str, Any]) -> GivenSettings:
    """Returns the settings that a call gives: by dotted keys, sections, a typed Config or the path of a TOML file."""
    texts: dict[str, str] = {}
    file = None
    if isinstance(config, Config):
        if preset is not None:
            raise ConfigError(f"the config says which preset it is, {config.preset}; leave out preset={preset!r}")
        preset = config.preset
        texts = texts_of_config(config)
    elif config is not None:
        file = path_of(config, "config")
    if isinstance(data, Mapping | SECTIONS["data"]):
        settings = {**settings, "data": data}
    elif data is not None:
        texts["data.source"] = str(path_of(data, "data"))
    for key, value in settings.items():
        texts |= _texts(key, value)
    return GivenSettings(texts, preset, file)


def texts_of_config(config: Config) -> dict[str, str]:
    """Returns the settings in which a configuration differs from its preset; ConfigError where it is none."""
    check_config(config)
    usual, values = flatten(preset_config(config.preset)), flatten(config)
    texts = {key: value_text(value) for key, value in values.items() if value != usual[key]}
    if _OPTIMIZER in texts:  # a rate that nobody gives would follow the optimizer
        texts[_RATE] = value_text(values[_RATE])
    if _TABLE_ROWS in texts:  # a count that nobody gives would be none, with sizes that are given
        texts[_MIN_COUNT] = value_text(values[_MIN_COUNT])
    return texts


def _texts(key: str, value: object) -> dict[str, str]:
    """Returns texts by dotted keys for one argument: a setting, or a section as a mapping or typed object."""
    if key in SECTIONS:
        if isinstance(value, SECTIONS[key]):
            value = vars(value)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} is a section; give a dict of its settings, or {SECTIONS[key].__name__}(...)")
        return {k: t for name, one in value.items() for k, t in _texts(f"{key}.{name}", one).items()}
    if key not in SETTINGS:
        raise ConfigError(f"{key}: {key_mistake(key)}")
    return {} if value is None else {key: value_text(_plain(key, value))}


def _plain(key: str, value: Any) -> Value:
    """Returns a value whose text the command line would take; numbers and arrays of NumPy become Python's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        return str(value.__fspath__())
    if isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"{key} = {value!r}: wrong type; allowed: {SETTINGS[key].describe()}")
