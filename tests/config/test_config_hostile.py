"""Settings files that nobody wrote by hand: an error of one kind, soon, whatever they hold."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dqrm_cpu.config import Config, load_config
from dqrm_cpu.config.schema import SETTINGS
from dqrm_cpu.errors import ConfigError

DEEP = 50_000
HOSTILE = {
    "dots": "a" + ".a" * 100_000 + " = 1",
    "quoted dots": '"a"' + " . 'a'" * 100_000 + " = 1",
    "dots in a header": "[a" + ".a" * 100_000 + "]",
    "dots within": "a = {" + "a." * 100_000 + "a = 1}",
    "arrays": "seed = " + "[" * DEEP + "]" * DEEP,
    "open arrays": "seed = " + "[" * DEEP,
    "inline tables": "seed = " + "{a = " * DEEP + "1" + "}" * DEEP,
    "digits": "seed = " + "9" * 6_000,
    "digits that fit into a text": "seed = " + "9" * 4_000,
    "hexadecimal digits": "seed = 0x" + "f" * 6_000,
    "digits of a number": "train.learning_rate = " + "9" * 4_000,
    "digits in a list": "model.top_mlp = [" + "9" * 4_000 + ", 1]",
    "an exponent": "train.learning_rate = 1e999999",
    "an unknown key without end": "x" * 500_000 + " = 1",
    "a text without end": "kernels = '" + "x" * 500_000 + "'",
    "unknown keys": "\n".join(f"key{number} = 1" for number in range(20_000)),
    "many wrong values": "\n".join(f"[s{number}]\nseed = [\n1,\n]" for number in range(5_000)),
    "lines in a list": "seed = [\n" + "1,\n" * 100_000 + "]",
    "2 MB": "# " + "x" * (2 << 20),
    "zeros": "\0" * 1_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_a_short_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.toml") as caught:
        load_config(None, path, {})
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.toml"
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path = Path("/dev/zero")
    with pytest.raises(ConfigError, match="is no regular file"):
        load_config(None, path, {})


@pytest.mark.parametrize(
    ("key", "text"), [("train.epochs", "9" * 6_000), ("train.epochs", "9" * 400), ("train.learning_rate", "1e400")]
)
def test_an_option_of_too_many_digits_is_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=r"wrong type|out of range"):
        load_config(None, None, {key: text})


TOML_TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="[]{}=.,#\"'\n 1ae-_\\", max_size=60),
    st.builds(
        "{} = {}".format, st.sampled_from([*SETTINGS, "a.b", "quant"]), st.text("0123456789e.-[], ", max_size=12)
    ),
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TOML_TEXTS, max_size=4))
def test_any_text_gives_settings_or_an_error(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text("\n".join(texts), encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(ConfigError):
        assert isinstance(load_config(None, path, {}), Config)
