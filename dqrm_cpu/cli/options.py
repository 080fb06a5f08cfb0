"""The options of every command that takes a configuration, built from the settings themselves."""

import argparse
import sys
from pathlib import Path

from dqrm_cpu.api.settings import GivenSettings
from dqrm_cpu.cli.parser import Parser
from dqrm_cpu.config.presets import PRESETS, preset_config
from dqrm_cpu.config.schema import SECTIONS, SETTINGS, Config, flatten
from dqrm_cpu.config.setting import Setting, Value, value_text

_LONGEST_DEFAULT = 40


def add_config_options(parser: Parser) -> None:
    """Adds --preset, --config, the common settings, and a page of help per section."""
    presets = {name: flatten(preset_config(name)) for name in PRESETS}
    parser.add_argument("--preset", metavar="NAME", help=f"start from {' | '.join(PRESETS)} (default: demo)")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="TOML file; it overrules the preset, options overrule it"
    )
    for option, setting in _common_settings().items():
        _add_option(parser, option, setting, presets)
    for name, kind in SECTIONS.items():
        # Behind the colon of the docstring stands what the section decides.
        page = parser.add_page(name, str(kind.__doc__).rpartition(": ")[2])
        for setting in SETTINGS.values():
            if setting.section == name:
                _add_option(page, setting.option, setting, presets)


def config_from_args(args: argparse.Namespace) -> Config:
    """Loads the configuration that options of `add_config_options` name; a prepared data set fills in its sizes."""
    return given_settings(args).load().config


def given_settings(args: argparse.Namespace) -> GivenSettings:
    """Returns the settings that options of `add_config_options` name."""
    return GivenSettings(option_texts(args), args.preset, args.config)


def option_texts(args: argparse.Namespace) -> dict[str, str]:
    """Returns the settings that were given as options: dotted keys and texts."""
    given = vars(args)
    return {key: given[key] for key in SETTINGS if key != "preset" and given.get(key) is not None}


def tell(text: str) -> None:
    """Writes a line beside the output."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Writes a warning beside the output."""
    tell(f"warning: {text}")


def _common_settings() -> dict[str, Setting]:
    """Returns the options of the first page: those of no section, and --data, short for --data.source."""
    top_level = {
        setting.option: setting for setting in SETTINGS.values() if not setting.section and setting.key != "preset"
    }
    return {"--data": SETTINGS["data.source"], **top_level}


def _add_option(
    group: argparse._ActionsContainer, option: str, setting: Setting, presets: dict[str, dict[str, Value]]
) -> None:
    defaults = {name: values[setting.key] for name, values in presets.items()}
    help_text = f"{setting.help}\n{_range_text(setting)}default: {_default_text(defaults) or 'empty'}"
    # Every value stays the text that was typed: the configuration parses it, and quotes it in its errors.
    group.add_argument(option, dest=setting.key, metavar=_metavar(setting), help=help_text.replace("%", "%%"))


def _range_text(setting: Setting) -> str:
    return "" if setting.item is str and not setting.choices else f"{setting.describe()}; "


def _default_text(defaults: dict[str, Value]) -> str:
    """Writes the default, which is the demo's, and the presets that have another one."""
    presets_of: dict[str, list[str]] = {}
    for preset, value in defaults.items():
        presets_of.setdefault(value_text(value), []).append(preset)
    if len(presets_of) == 1:
        return next(iter(presets_of))
    if max(map(len, presets_of)) > _LONGEST_DEFAULT:
        return "the preset's"
    usual, *others = presets_of.items()
    return "; ".join([usual[0], *(f"{', '.join(presets)} {text}" for text, presets in others)])


def _metavar(setting: Setting) -> str:
    name = {bool: "BOOL", int: "N", float: "X", str: "NAME"}[setting.item]
    return f"{name},{name},..." if setting.is_list else name
