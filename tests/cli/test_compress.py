"""compress: every example of its help runs, what it scores is what the file holds, and what it verifies is whole."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest

from dqrm_cpu.cli import compress
from dqrm_cpu.cli.main import main
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.export.packed_model import read_packed
from dqrm_cpu.train.checkpoint_folder import find_checkpoint, read_state
from dqrm_cpu.train.run import RunRequest, train
from tiny import tiny_config

EXAMPLES = [
    re.split(r"\s{2,}", line.strip())[0].split()[1:]
    for line in compress._EXAMPLES.splitlines()
    if line.strip().startswith("dqrm-cpu ")
]


def config_of(method: str) -> Config:
    return tiny_config(quant={"method": method}, model={"embedding_dim": 8, "bottom_mlp": (9, 8)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples' runs are: runs/fp32 and runs/int4."""
    made = tmp_path_factory.mktemp("compress")
    for name, method in (("fp32", "none"), ("int4", "dqrm")):
        train(config_of(method), RunRequest(made / "runs" / name, False, {}, io.StringIO()), SingleTransport())
    return made


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("example", EXAMPLES, ids=" ".join)
def test_the_examples_of_the_help_run(example: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(example) == 0
    assert ".safetensors" in capsys.readouterr().out


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 6


def test_it_scores_what_the_file_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for layout in ("dense", "sparse", "rowwise"):
        assert main(["compress", "runs/fp32", "--layout", layout, "--json"]) == 0
        found[layout] = json.loads(capsys.readouterr().out)
        assert Path(found[layout]["file"]).stat().st_size == found[layout]["bytes"]
    assert main(["evaluate", "--run-dir", "runs/fp32", "--quant.method", "ptq", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    for layout in ("dense", "sparse"):
        assert found[layout]["log_loss"] == pytest.approx(evaluated["log_loss"], rel=1e-6)
    assert found["rowwise"]["log_loss"] != found["dense"]["log_loss"]


def test_a_file_names_the_data_whose_ids_it_scores(capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that a run left: the identity is that of the rows that the weights were trained on."""
    assert main(["compress", "runs/int4", "--out", "packed.safetensors"]) == 0
    identity = read_state(find_checkpoint(Path("runs/int4/checkpoints"), "best"))["identity"]
    assert str(identity).startswith("schema ")
    for path in ("packed.safetensors", "runs/int4/packed/dense.safetensors", "runs/int4/packed/sparse.safetensors"):
        assert read_packed(Path(path)).identity == identity


def test_verify_says_what_a_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "--verify", "runs/int4/packed/sparse.safetensors", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == "sparse"
    assert found["checksums"] == 1
    assert found["rows"] == 543
    assert 0 < found["stored_rows"] <= 543
    assert main(["compress", "--verify", "runs/int4/packed/dense.safetensors"]) == 0
    output = capsys.readouterr()
    assert "1 checksum checked" in output.out
    assert output.err == ""


def test_verify_fails_where_a_byte_is_not_as_it_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(Path("runs/int4/packed/dense.safetensors").read_bytes())
    content[-100] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    assert main(["compress", "--verify", str(tmp_path / "damaged")]) != 0
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert "is damaged" in output.err


def test_without_a_run_it_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress"]) == 2
    assert "which run?" in capsys.readouterr().err


def test_a_folder_without_a_run_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "runs/nowhere"]) == 2
    assert (
        "runs/nowhere holds no run, it is not there; give a folder that dqrm-cpu train wrote" in capsys.readouterr().err
    )


def test_a_run_whose_settings_file_is_lost_is_compressed_by_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = shutil.copytree("runs/fp32", tmp_path / "lost")
    (lost / "config.toml").unlink()
    assert main(["compress", str(lost)]) == 0
    said = capsys.readouterr()
    assert "ptq-4-dense.safetensors" in said.out
    assert "the settings that" in said.err
