"""The configuration of whatever uses a run: the run's own settings, and its data set wherever that lies now."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dqrm_cpu.base.files import require_name_in_utf8
from dqrm_cpu.comm.transports.launch import detect_launch
from dqrm_cpu.config import Config
from dqrm_cpu.config.load import LoadedConfig, load_given_config, load_run_config
from dqrm_cpu.config.recorded import RecordedConfig, differences, require_recorded
from dqrm_cpu.config.recorded import recorded_config as settings_in
from dqrm_cpu.config.schema import SETTINGS
from dqrm_cpu.config.table_dims import AUTO_DIMS
from dqrm_cpu.data.store.manifest import PART_NAMES, holds_manifest, read_manifest
from dqrm_cpu.data.store.run_data import SYNTHETIC, follow_data
from dqrm_cpu.errors import ConfigError, DataError
from dqrm_cpu.train.run_place import CONFIG_FILE, data_of_run, no_run, other_version

_SOURCE, _DIMS = "data.source", "model.table_dims"
_OF_MODEL = ("model.", "quant.")
_OF_DATA = "data."
_SIZES = {"model.table_rows", "model.num_dense", *(f"data.{part}_rows" for part in PART_NAMES)}


Warn = Callable[[str], object]
"""Takes a warning, which does not end the work; called on the first rank only."""


@dataclass(frozen=True)
class GivenSettings:
    """The settings that somebody gives: texts by their dotted keys, over a preset or a TOML file."""

    texts: Mapping[str, str] = field(default_factory=dict)
    preset: str | None = None
    file: Path | None = None

    @property
    def names_others(self) -> bool:
        """Says whether a preset or a file is named, which stand for all settings."""
        return bool(self.preset or self.file)

    def load(self) -> LoadedConfig:
        """Resolves the settings of something new; a prepared data set fills in its sizes."""
        loaded = load_given_config(self.preset, self.file, self.texts)
        return loaded._replace(config=follow_data(*loaded))


def config_to_train(given: GivenSettings, run_dir: Path | None, resume: bool, warn: Warn) -> LoadedConfig:
    """Loads the settings of the run to resume or to begin with, unless others are named to start from."""
    if resume and run_dir is not None and not given.names_others and has_settings(run_dir):
        # All that a run trains with is given: a search has ended before it began.
        loaded = LoadedConfig(config_of_run(given, run_dir, warn), frozenset(SETTINGS))
    elif given.texts.get("init_from") and not given.names_others:
        loaded = LoadedConfig(config_to_continue(given, Path(given.texts["init_from"]), warn), frozenset(given.texts))
    else:
        loaded = given.load()
    return loaded._replace(config=_with_absolute_paths(loaded.config))


def config_of_run(given: GivenSettings, run_dir: Path, warn: Warn) -> Config:
    """Loads settings over the config.toml of the run in `run_dir`, to go on with it."""
    loaded, _ = _settings(run_dir, given.texts, warn)
    config = loaded.config if _SOURCE in given.texts else _with_found_data(loaded.config, run_dir)
    return follow_data(config, loaded.given)


def config_to_continue(given: GivenSettings, parent: Path, warn: Warn) -> Config:
    """Loads settings over those of the run, or of the checkpoint, that a new run begins with.

    Its data set decides the sizes of tables and parts anew. Without another one it is that of the parent.
    """
    from dqrm_cpu.train.parent import find_parent, run_of_checkpoint

    texts, path = given.texts, find_parent(parent)
    run_dir = run_of_checkpoint(path)
    (config, known), _ = _settings(run_dir, texts, warn, _recorded_at(path))
    if _SOURCE not in texts:
        return follow_data(_with_found_data(config, run_dir), known)
    return follow_data(config, known - (_SIZES - texts.keys()))


def recorded_config(run_dir: Path) -> Config:
    """Loads what the run in `run_dir` was trained with; `config_to_score` tells what is wrong with its files."""
    return _loaded(run_dir, {}, _recorded(run_dir))[0].config


def config_to_score(given: GivenSettings, run_dir: Path, parts: Sequence[str], warn: Warn) -> Config:
    """Puts settings over the run's config.toml, or over another file or a preset, to score its model on `parts`.

    Data that are given are taken whole: the numbers of rows that the run was trained on say nothing about them.
    """
    texts = given.texts
    if given.names_others:
        config, known = load_given_config(given.preset, given.file, texts)
    else:
        (config, known), recorded = _settings(run_dir, texts, warn)
        if recorded is not None:
            decides = _OF_MODEL if _SOURCE in texts else (*_OF_MODEL, _OF_DATA)
            scored = (change for change in differences(recorded, config) if change.key.startswith(decides))
            require_recorded(recorded, [change for change in scored if change.key not in texts])
        if _SOURCE not in texts:
            config = _with_found_data(config, run_dir)
        else:
            known -= {f"data.{part}_rows" for part in PART_NAMES} - texts.keys()
    _require_rows(config.data.source, parts)
    return follow_data(config, known, needed=())


def _with_absolute_paths(config: Config) -> Config:
    """Returns the configuration as a run records it: data and parent are found from any working directory."""
    if config.init_from:
        config = replace(config, init_from=_absolute_path(config.init_from))
    if config.data.source == SYNTHETIC:
        return config
    return replace(config, data=replace(config.data, source=_absolute_path(config.data.source)))


def _absolute_path(path: str) -> str:
    absolute = Path(path).absolute()
    require_name_in_utf8(absolute, ConfigError)
    return str(absolute)


def parts_cut(config: Config, parts: Sequence[str]) -> list[str]:
    """Writes a line for each of `parts` of prepared data of which the settings take only some rows."""
    if config.data.source == SYNTHETIC:
        return []
    manifest, lines = read_manifest(Path(config.data.source)), []
    for part in parts:
        taken, there = getattr(config.data, f"{part}_rows"), manifest.num_rows(part)
        if taken < there:
            lines.append(f"{taken:,} of the {there:,} {part} rows of {config.data.source}, by data.{part}_rows")
    return lines


def has_settings(run_dir: Path) -> bool:
    """Says whether the run in `run_dir` records the settings that it is trained with."""
    return (run_dir / CONFIG_FILE).exists() or _recorded(run_dir) is not None


def _settings(
    run_dir: Path, texts: Mapping[str, str], warn: Warn, recorded: RecordedConfig | None = None
) -> tuple[LoadedConfig, RecordedConfig | None]:
    """Loads texts over the run's config.toml, and over what a checkpoint recorded of settings that the file lacks.

    `recorded`: by the checkpoint that counts; None: by the newest one that recorded any. A run that has dimensions
    keeps them where they were to be chosen by its tables' rows: those may have become more since.
    """
    texts = {key: text for key, text in texts.items() if key != _DIMS or text.strip() != AUTO_DIMS}
    recorded = recorded or _recorded(run_dir)
    loaded, warnings = _loaded(run_dir, texts, recorded)
    if detect_launch(os.environ).rank == 0:
        for warning in warnings:
            warn(warning)
    return loaded, recorded


def _loaded(run_dir: Path, texts: Mapping[str, str], recorded: RecordedConfig | None) -> tuple[LoadedConfig, list[str]]:
    if recorded is None and not (run_dir / CONFIG_FILE).exists():
        raise ConfigError(no_run(run_dir))
    try:
        return load_run_config(run_dir / CONFIG_FILE, texts, recorded)
    except ConfigError as error:
        raise ConfigError(f"{error}{other_version(run_dir)}") from error


def _recorded(run_dir: Path) -> RecordedConfig | None:
    from dqrm_cpu.train.checkpoint_folder import newest_config
    from dqrm_cpu.train.run_place import checkpoints_folder

    return newest_config(checkpoints_folder(run_dir))


def _recorded_at(checkpoint: Path) -> RecordedConfig | None:
    from dqrm_cpu.train.checkpoint_manifest import read_manifest as read_checkpoint

    config = read_checkpoint(checkpoint).config
    return None if config is None else settings_in(checkpoint, config)


def _require_rows(source: str, parts: Sequence[str]) -> None:
    """Raises unless one of the parts has rows."""
    if source == SYNTHETIC or not holds_manifest(Path(source)):
        return
    manifest = read_manifest(Path(source))
    if not any(manifest.num_rows(part) for part in parts):
        there = [part for part in PART_NAMES if manifest.num_rows(part)]
        hint = f"; those that it has are scored with --part {' or --part '.join(there)}" if there else ""
        raise DataError(f"{source} has no {' or '.join(parts)} rows{hint}")


def _with_found_data(config: Config, run_dir: Path) -> Config:
    if config.data.source == SYNTHETIC:
        return config
    source = data_of_run(config.data.source, run_dir)
    return replace(config, data=replace(config.data, source=str(source)))
