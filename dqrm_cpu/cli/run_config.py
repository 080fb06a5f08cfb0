"""The configuration of a command that uses a run: the run's own settings, and its data set wherever that lies now."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.cli.options import option_texts
from dqrm_cpu.config import Config
from dqrm_cpu.config.load import load_given_config
from dqrm_cpu.data.store.find import find_data
from dqrm_cpu.data.store.follow import SYNTHETIC, follow_data
from dqrm_cpu.data.store.manifest import PART_NAMES, holds_manifest, read_manifest
from dqrm_cpu.errors import DataError

CONFIG_FILE = "config.toml"
_ENVIRONMENT_FILE = "environment.json"
_SOURCE = "data.source"


class _Environment(msgspec.Struct):
    """What is needed of a run's environment.json."""

    data: str


def config_of_run(args: argparse.Namespace, run_dir: Path) -> Config:
    """Options over the config.toml of the run in `run_dir`, to go on with it."""
    loaded = load_given_config(args.preset, run_dir / CONFIG_FILE, option_texts(args))
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
        config, given = load_given_config(None, run_dir / CONFIG_FILE, texts)
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
