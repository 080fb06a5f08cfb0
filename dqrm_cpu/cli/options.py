"""The options of every command that takes a configuration, built from the settings themselves."""

import argparse
from pathlib import Path

from dqrm_cpu.cli.parser import Parser
from dqrm_cpu.config.load import load_given_config
from dqrm_cpu.config.presets import PRESETS, preset_config
from dqrm_cpu.config.schema import ENTRIES, SECTIONS, Config, flatten
from dqrm_cpu.config.setting import Entry, Kind, Value, value_text
from dqrm_cpu.data.store.follow import follow_data

_LONGEST_DEFAULT = 40


def add_config_options(parser: Parser) -> None:
    """--preset, --config, the common settings, and a page of help per section."""
    presets = {name: flatten(preset_config(name)) for name in PRESETS}
    parser.add_argument("--preset", metavar="NAME", help=f"start from {' | '.join(PRESETS)} (default: demo)")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="TOML file; it overrules the preset, options overrule it"
    )
    for option, entry in _common_entries().items():
        _add_option(parser, option, entry, presets)
    for name, kind in SECTIONS.items():
        page = parser.add_page(name, str(kind.__doc__))
        for entry in ENTRIES.values():
            if entry.section == name:
                _add_option(page, entry.option, entry, presets)


def config_from_args(args: argparse.Namespace) -> Config:
    """The configuration that the options of `add_config_options` name; a prepared data set fills in its sizes."""
    return follow_data(*load_given_config(args.preset, args.config, option_texts(args)))


def option_texts(args: argparse.Namespace) -> dict[str, str]:
    """The settings that were given as options: dotted keys and texts."""
    given = vars(args)
    return {key: given[key] for key in ENTRIES if key != "preset" and given.get(key) is not None}


def _common_entries() -> dict[str, Entry]:
    """Options of the first page: those of no section, and --data, short for --data.source."""
    top_level = {entry.option: entry for entry in ENTRIES.values() if not entry.section and entry.key != "preset"}
    return {"--data": ENTRIES["data.source"], **top_level}


def _add_option(
    group: argparse._ActionsContainer, option: str, entry: Entry, presets: dict[str, dict[str, Value]]
) -> None:
    defaults = {name: values[entry.key] for name, values in presets.items()}
    help_text = f"{entry.setting.help}\n{_range_text(entry)}default: {_default_text(defaults)}"
    # Every value stays the text that was typed: the configuration parses it, and quotes it in its errors.
    group.add_argument(option, dest=entry.key, metavar=_metavar(entry), help=help_text.replace("%", "%%"))


def _range_text(entry: Entry) -> str:
    return "" if entry.kind is Kind.STR and not entry.setting.choices else f"{entry.describe()}; "


def _default_text(defaults: dict[str, Value]) -> str:
    presets_of: dict[str, list[str]] = {}
    for preset, value in defaults.items():
        presets_of.setdefault(value_text(value), []).append(preset)
    if len(presets_of) == 1:
        return next(iter(presets_of))
    if max(map(len, presets_of)) > _LONGEST_DEFAULT:
        return "the preset's"
    return ", ".join(f"{text} ({', '.join(presets)})" for text, presets in presets_of.items())


def _metavar(entry: Entry) -> str:
    names = {Kind.BOOL: "BOOL", Kind.INT: "N", Kind.FLOAT: "X", Kind.STR: "NAME"}
    return {**names, Kind.INTS: "N,N,...", Kind.FLOATS: "X,X,..."}[entry.kind]
