"""Options built from the settings: every setting has one, its value reaches the configuration, help shows it."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from dqrm_cpu.cli.options import add_config_options, config_from_args
from dqrm_cpu.cli.parser import Parser, UsageError
from dqrm_cpu.config import Config, preset_config
from dqrm_cpu.config.schema import SECTIONS, SETTINGS, flatten
from dqrm_cpu.config.setting import Setting, Value, value_text
from dqrm_cpu.errors import ConfigError

SCREEN_LINES = 66  # two lines for each of a section, as a tall terminal shows them
SCREEN_COLUMNS = 100

# Values that differ from the demo's and hold the rules together with it.
OTHER_VALUES: dict[str, Value] = {
    "model.table_dims": "C1=4",
    "preset": "kaggle",
    "data.source": "elsewhere",
    "init_from": "runs/a",
    "model.bottom_mlp": (7, 16),
    "model.top_mlp": (7, 1),
    "quant.step_width": (0.5,),
    "train.decay_start_step": 3,
    "data.negative_keep_rate": 0.5,
    "data.evaluation_keep_rate": 0.5,
    "train.early_stop_auc": 0.8,
    "train.average_from": 0.8,
    "quant.start_at": 0.9,
}
COMPANIONS = {
    "model.embedding_dim": ["--model.bottom-mlp", "17"],
    "model.cross_layers": ["--model.interaction", "cross"],
    "model.cross_rank": ["--model.interaction", "cross"],
    "quant.step_width_ramp_steps": ["--quant.step-width", "3"],
    "train.decay_start_step": ["--train.decay-steps", "1"],
    "comm.scale_reduce": ["--comm.wire", "int8"],
    "comm.rounding": ["--comm.wire", "int8"],
    "comm.error_feedback": ["--comm.mlp-gradients", "int8"],
    "comm.simulated_scale": ["--comm.wire", "int8", "--comm.simulated-ranks", "2"],
}


def parser() -> Parser:
    made = Parser(prog="command")
    add_config_options(made)
    return made


def config(*argv: str) -> Config:
    return config_from_args(parser().parse_args(argv))


def other_value(entry: Setting) -> Value:
    """A value that is not the demo's."""
    default = flatten(Config())[entry.key]
    if entry.key in OTHER_VALUES:
        return OTHER_VALUES[entry.key]
    if entry.choices:
        return next((choice for choice in entry.choices if choice != default), default)
    match default:
        case bool():
            return not default
        case int() | float():
            return default + 1
        case tuple():
            return (*default, 1)
    raise AssertionError(entry.key)


def test_without_options_it_is_the_demo() -> None:
    found, demo = config(), preset_config("demo")
    assert replace(found, model=replace(found.model, table_rows=demo.model.table_rows)) == demo
    of_ids_that_occur = zip(found.model.table_rows, demo.model.table_rows, strict=True)
    assert all(rows <= whole for rows, whole in of_ids_that_occur)


@pytest.mark.parametrize("entry", SETTINGS.values(), ids=lambda entry: entry.key)
def test_every_setting_has_an_option_that_reaches_it(entry: Setting) -> None:
    value = other_value(entry)
    made = config(entry.option, value_text(value), *COMPANIONS.get(entry.key, []))
    assert flatten(made)[entry.key] == value


def test_preset_and_file_and_option(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 5\n[quant]\nscale_period = 7\n")
    made = config("--preset", "kaggle", "--config", str(path), "--quant.scale-period", "9")
    assert (made.model, made.seed, made.quant.scale_period) == (preset_config("kaggle").model, 5, 9)


def test_data_is_short_for_its_source() -> None:
    assert config("--data", "somewhere").data.source == "somewhere"


def test_equals_sign_may_join_option_and_value() -> None:
    assert config("--model.top-mlp=512,256,1").model.top_mlp == (512, 256, 1)


def test_last_of_an_option_given_twice_counts() -> None:
    assert config("--seed", "3", "--seed", "4").seed == 4


def test_bad_value_is_quoted_as_typed() -> None:
    with pytest.raises(ConfigError, match=r"^--quant\.scale-period 0: out of range; allowed: integer, 1 or more$"):
        config("--quant.scale-period", "0")


def test_options_cannot_be_abbreviated() -> None:
    args, unknown = parser().parse_known_args(["--pre", "kaggle"])
    assert (args.preset, unknown) == (None, ["--pre", "kaggle"])


def test_option_without_value() -> None:
    with pytest.raises(UsageError, match=r"^argument --seed: expected one argument; command --help lists the options$"):
        parser().parse_args(["--seed"])


def help_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(SCREEN_COLUMNS))
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--help", *argv])
    assert not stop.value.code
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("page", ["", *SECTIONS])
def test_a_page_of_help_fits_a_screen(
    page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = help_lines(capsys, monkeypatch, *([page] if page else []))
    assert len(lines) <= SCREEN_LINES
    assert max(map(len, lines)) <= SCREEN_COLUMNS


def test_first_page_names_the_sections(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(help_lines(capsys, monkeypatch))
    assert all(f"  [{section}]" in text for section in SECTIONS)
    assert "  [comm]   how processes meet, and what gradients look like between them" in text
    assert "--quant.scale-period" not in text


def test_all_of_the_help_holds_every_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = " ".join(help_lines(capsys, monkeypatch, "all")).split()
    assert {entry.option for entry in SETTINGS.values()} <= set(words)


def test_help_shows_range_and_defaults(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(" ".join(help_lines(capsys, monkeypatch, "quant")).split())
    assert "integer, 1 or more; default: 1; kaggle 200; terabyte, mlperf-dcnv2 1000" in text
    assert "4 | 8 | 32; default: 4 " in text


def test_help_on_an_unknown_section() -> None:
    with pytest.raises(UsageError, match="there is help on data, model, quant, train, comm, all"):
        parser().parse_args(["--help", "nothing"])


def test_the_usage_line_names_what_has_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    named = Parser(prog="named")
    named.add_argument("run", metavar="RUN")
    named.add_argument("names", metavar="NAME", nargs="*")
    with pytest.raises(SystemExit):
        named.parse_args(["-h"])
    assert capsys.readouterr().out.startswith("usage: named RUN [NAME ...] [options]\n")


def test_help_of_a_parser_without_sections_takes_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    plain = Parser(prog="plain", description="Says little.")
    with pytest.raises(SystemExit):
        plain.parse_args(["-h"])
    assert capsys.readouterr().out == "usage: plain [options]\n\nSays little.\n\noptions:\n  -h, --help  " + (
        "show this help and exit\n"
    )


def test_kinds_of_settings_are_shown_by_their_placeholder() -> None:
    shown = {action.dest: action.metavar for action in parser()._actions if isinstance(action, argparse._StoreAction)}
    assert {key: shown[key] for key in ("seed", "device", "model.top_mlp", "quant.step_width", "comm.timeout")} == {
        "seed": "N",
        "device": "NAME",
        "model.top_mlp": "N,N,...",
        "quant.step_width": "X,X,...",
        "comm.timeout": "X",
    }
