"""The configuration of a command that uses a run: the run's own settings, and its data set wherever that lies now."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.cli.options import option_texts
from dqrm_cpu.comm.transports.launch import detect_launch
from dqrm_cpu.config import Config
from dqrm_cpu.config.load import LoadedConfig, load_given_config, load_run_config
from dqrm_cpu.config.recorded import RecordedConfig, differences, require_recorded
from dqrm_cpu.data.store.find import find_data
from dqrm_cpu.data.store.follow import SYNTHETIC, follow_data
from dqrm_cpu.data.store.manifest import PART_NAMES, holds_manifest, read_manifest
from dqrm_cpu.errors import DataError

CONFIG_FILE = "config.toml"
_ENVIRONMENT_FILE = "environment.json"
_SOURCE = "data.source"
_OF_MODEL = ("model.", "quant.")


class _Environment(msgspec.Struct):
    """Holds the fields that are read of a run's environment.json."""

    data: str


def config_of_run(args: argparse.Namespace, run_dir: Path) -> Config:
    """Options over the config.toml of the run in `run_dir`, to go on with it."""
    loaded, _ = _settings(run_dir, option_texts(args))
    config = loaded.config if _SOURCE in option_texts(args) else _with_found_data(loaded.config, run_dir)
    return follow_data(config, loaded.given)


def config_to_score(args: argparse.Namespace, run_dir: Path, parts: Sequence[str]) -> Config:
    """Options over the run's config.toml, or over --config or --preset, to score its model on `parts` of the data.

    Data that --data gives are taken whole: the numbers of rows that the run was trained on say nothing about them.
    """
    texts = option_texts(args)
    if args.config or args.preset:
        config, given = load_given_config(args.preset, args.config, texts)
    else:
        (config, given), recorded = _settings(run_dir, texts)
        if recorded is not None:
            scored = (change for change in differences(recorded, config) if change.key.startswith(_OF_MODEL))
            require_recorded(recorded, [change for change in scored if change.key not in texts])
        if _SOURCE not in texts:
            config = _with_found_data(config, run_dir)
        else:
            given -= {f"data.{part}_rows" for part in PART_NAMES} - texts.keys()
    _require_rows(config.data.source, parts)
    return follow_data(config, given, needed=())


def with_absolute_source(config: Config) -> Config:
    """The configuration as a run records it: its data are found from any working directory."""
    if config.data.source == SYNTHETIC:
        return config
    return replace(config, data=replace(config.data, source=str(Path(config.data.source).absolute())))


def parts_cut(config: Config, parts: Sequence[str]) -> list[str]:
    """A line for each of `parts` of prepared data of which the settings take only some rows."""
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


def _settings(run_dir: Path, texts: Mapping[str, str]) -> tuple[LoadedConfig, RecordedConfig | None]:
    """Options over the run's config.toml, and over what a checkpoint recorded of settings that the file lacks."""
    recorded = _recorded(run_dir)
    loaded, warnings = load_run_config(run_dir / CONFIG_FILE, texts, recorded)
    if detect_launch(os.environ).rank == 0:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    return loaded, recorded


def _recorded(run_dir: Path) -> RecordedConfig | None:
    from dqrm_cpu.train.checkpoint import newest_config
    from dqrm_cpu.train.run_folder import checkpoints_folder

    return newest_config(checkpoints_folder(run_dir))


def _require_rows(source: str, parts: Sequence[str]) -> None:
    """At least one of the parts must have some."""
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
    source = find_data(config.data.source, run_dir, _fingerprint(run_dir))
    return replace(config, data=replace(config.data, source=str(source)))


def _fingerprint(run_dir: Path) -> str:
    """Of the rows that the run was trained on; empty where its environment.json does not say."""
    try:
        return decoded(read_json(run_dir / _ENVIRONMENT_FILE), _Environment).data
    except (OSError, UnreadableError):
        return ""
