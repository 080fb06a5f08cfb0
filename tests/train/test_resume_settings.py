"""A run goes on with the settings that it was trained with, whatever became of its config.toml."""

import io
import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dqrm_cpu.api.settings import GivenSettings, config_of_run, config_to_score
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.config.load import load_run_config
from dqrm_cpu.config.recorded import MAY_CHANGE, config_to_record
from dqrm_cpu.config.schema import SETTINGS
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.train.checkpoint_folder import find_checkpoint, newest_config
from dqrm_cpu.train.checkpoint_manifest import read_manifest
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.state import Result
from tiny import tiny_config

CONFIG = tiny_config(train={"max_steps": 2, "learning_rate": 0.3}, quant={"scale_period": 3})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings") / "run"
    train(CONFIG, RunRequest(folder, False, {}, io.StringIO()), SingleTransport())
    return folder


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def resume(config: Config, folder: Path, *asked: str) -> str:
    """What was said."""
    stream = io.StringIO()
    request = RunRequest(folder, True, {}, stream, frozenset(asked))
    assert isinstance(train(config, request, SingleTransport()), Result)
    return stream.getvalue()


def with_train(**changes: Any) -> Config:
    return replace(CONFIG, train=replace(CONFIG.train, **changes))


def options(**texts: str) -> GivenSettings:
    return GivenSettings(texts)


def forget_settings(folder: Path) -> None:
    """Removes the settings, as earlier versions wrote checkpoints."""
    for path in checkpoints_folder(folder).glob("*/state.json"):
        body = json.loads(path.read_text())["body"]
        del body["config"]
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        path.write_text(json.dumps({"crc32": zlib.crc32(canonical), "body": body}))


def test_a_checkpoint_records_all_settings(trained: Path) -> None:
    path = find_checkpoint(checkpoints_folder(trained), "last")
    assert read_manifest(path).config == config_to_record(CONFIG)


def test_other_settings_that_nobody_asked_for_are_refused_and_named(run_dir: Path) -> None:
    before = (run_dir / "config.toml").read_bytes()
    changed = with_train(batch_size=64, learning_rate=0.1, max_steps=3)
    with pytest.raises(CheckpointError) as caught:
        resume(changed, run_dir)
    message = str(caught.value)
    assert "train.batch_size 32 there, 64 now; train.learning_rate 0.3 there, 0.1 now" in message
    assert "--train.batch-size 64" in message
    assert "max_steps" not in message
    assert (run_dir / "config.toml").read_bytes() == before


def test_what_decides_the_best_checkpoint_is_that_of_the_run_unless_asked_for(run_dir: Path) -> None:
    changed = with_train(best_by="log-loss", max_steps=3)
    with pytest.raises(CheckpointError, match=r"train\.best_by auc there, log-loss now; .*--train\.best-by log-loss"):
        resume(changed, run_dir)
    resume(changed, run_dir, "train.best_by")
    assert config_of_run(options(), run_dir, print).train.best_by == "log-loss"
    assert json.loads((run_dir / "result.json").read_text())["best_by"] == "log-loss"


def test_a_setting_that_was_asked_for_is_taken_and_told(run_dir: Path) -> None:
    output = resume(with_train(learning_rate=0.1, max_steps=3), run_dir, "train.learning_rate")
    assert "train.max_steps 2 there, 3 now; train.learning_rate 0.3 there, 0.1 now" in output
    assert "learning_rate = 0.1" in (run_dir / "config.toml").read_text()
    assert "learning_rate = 0.3" in (run_dir / "config-until-step-000000002.toml").read_text()


def test_the_same_settings_are_no_news(run_dir: Path) -> None:
    assert "settings are not" not in resume(CONFIG, run_dir)


def test_a_checkpoint_of_an_earlier_version_goes_on(run_dir: Path) -> None:
    forget_settings(run_dir)
    assert "settings are not" not in resume(with_train(max_steps=3, batch_size=64), run_dir)


def test_a_config_file_cut_at_any_line_gives_the_same_settings(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_dir / "config.toml"
    lines = path.read_text().splitlines(keepends=True)
    for count in range(len(lines)):
        path.write_text("".join(lines[:count]))
        assert config_of_run(options(), run_dir, print) == CONFIG
        if count == len(lines) - 1:
            assert "config.toml lacks comm.timeout; " in capsys.readouterr().out


def test_a_config_file_cut_at_any_byte_gives_the_same_settings(run_dir: Path) -> None:
    """A number that lost its last digits is one as well."""
    path = run_dir / "config.toml"
    content = path.read_bytes()
    recorded = newest_config(checkpoints_folder(run_dir))
    assert len(content) > 1000
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert load_run_config(path, {}, recorded)[0].config == CONFIG, content[:size][-40:]


@pytest.mark.parametrize("content", [None, b"", b"[train\nbatch", b"\xff\xfe", b"a" * (2 << 20)], ids=range(5))
def test_a_config_file_that_is_gone_or_no_toml_is_restored(
    run_dir: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_dir / "config.toml"
    before = path.read_text()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    config = config_of_run(options(**{"train.max_steps": "3"}), run_dir, print)
    assert config == with_train(max_steps=3)
    assert "state.json" not in capsys.readouterr().out
    resume(config, run_dir)
    assert path.read_text() == before.replace("max_steps = 2", "max_steps = 3")
    if content is not None:
        assert (run_dir / "config-until-step-000000002.toml").read_bytes() == content


def test_without_a_record_a_broken_file_is_an_error(run_dir: Path) -> None:
    forget_settings(run_dir)
    (run_dir / "config.toml").write_text("[train\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        config_of_run(options(), run_dir, print)


def test_a_folder_without_a_run_is_not_taken_for_a_lost_settings_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere holds no run, it is not there; give a folder that"):
        config_to_score(options(), tmp_path / "nowhere", ("test",), print)


def test_a_model_is_not_scored_with_other_bits_than_it_was_trained_with(run_dir: Path) -> None:
    path = run_dir / "config.toml"
    path.write_text(path.read_text().replace("embedding_bits = 4", "embedding_bits = 5"))
    with pytest.raises(CheckpointError, match=r"quant\.embedding_bits 4 there, 5 now"):
        config_to_score(options(), run_dir, ("test",), print)
    asked = options(**{"quant.embedding_bits": "8"})
    assert config_to_score(asked, run_dir, ("test",), print).quant.embedding_bits == 8


def test_a_model_is_not_scored_on_another_number_of_rows_than_it_was_trained_to_be(run_dir: Path) -> None:
    path = run_dir / "config.toml"
    text = path.read_text()
    path.write_text(text.replace(f"test_rows = {CONFIG.data.test_rows}", "test_rows = 5"))
    assert path.read_text() != text
    with pytest.raises(CheckpointError, match=rf"data\.test_rows {CONFIG.data.test_rows} there, 5 now"):
        config_to_score(options(), run_dir, ("test",), print)
    asked = options(**{"data.test_rows": "5"})
    assert config_to_score(asked, run_dir, ("test",), print).data.test_rows == 5


def test_a_recorded_value_that_cannot_be_is_an_error(run_dir: Path) -> None:
    path = find_checkpoint(checkpoints_folder(run_dir), "last") / "state.json"
    body = json.loads(path.read_text())["body"]
    body["config"]["train.batch_size"] = "many"
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps({"crc32": zlib.crc32(canonical), "body": body}))
    with pytest.raises(CheckpointError, match=r"train\.batch_size that cannot be"):
        config_of_run(options(), run_dir, print)


def test_what_may_change_are_settings() -> None:
    assert SETTINGS.keys() >= MAY_CHANGE
