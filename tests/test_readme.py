"""The README's commands are understood, and run as written, in their order, in a copy of the checkout."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import dqrm_cpu
from dqrm_cpu.cli.main import COMMANDS
from dqrm_cpu.cli.options import option_texts
from dqrm_cpu.cli.parser import Parser
from dqrm_cpu.config.load import load_given_config
from served_command import answers_rows

ROOT = Path(__file__).parent.parent
NOT_FROM_A_TEST = {"make test"}
"""`make test` is what runs this test: continuous integration runs it as written."""


def readme_commands() -> list[str]:
    """Every line of the shell blocks, with continuation lines joined."""
    blocks = (ROOT / "README.md").read_text().split("```")[1::2]
    text = "\n".join(block.removeprefix("sh\n") for block in blocks if block.startswith("sh\n"))
    lines = text.replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tracked files and the same virtual environment, into which `make` must not install the copy.

    What it is made from is given a time before any installation: `make` finds nothing to do.
    """
    copy = tmp_path_factory.mktemp("readme") / "dqrm-cpu"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
        os.utime(target, (0, 0), follow_symlinks=False)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    yield copy
    shutil.rmtree(copy)  # gigabytes of checkpoints


def test_ci_runs_the_commands_that_this_test_cannot() -> None:
    assert set(readme_commands()) >= NOT_FROM_A_TEST
    for command in NOT_FROM_A_TEST:
        assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("command", readme_commands())
def test_every_command_is_understood(command: str) -> None:
    """Its target or sub-command exists, which takes these options, whose values make a configuration."""
    program, *words = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if program.endswith("mpirun"):
        assert words[0] == "-n"
        _, _, program, *words = words
    if program.endswith("dqrm-cpu"):
        assert words[0] in COMMANDS
        parser = Parser(prog="dqrm-cpu")
        importlib.import_module(f"dqrm_cpu.cli.{words[0]}").add_parser(parser.add_subparsers())
        args = parser.parse_args(words)
        if words[0] == "train":
            load_given_config(args.preset, args.config, option_texts(args))
    assert program in ("make", "mkdir", ".venv/bin/dqrm-cpu")


def test_a_server_of_a_command_answers_rows(tmp_path: Path) -> None:
    """What the README's last of three commands does, in little."""
    done = dqrm_cpu("data", "generate", tmp_path / "train.txt", "--rows", "800")
    assert done.returncode == 0, done.stderr
    for command in (
        ("prepare", tmp_path / "train.txt", "--format", "kaggle", "--out", tmp_path / "data"),
        ("train", "--data", tmp_path / "data", "--run-dir", tmp_path / "run", "--train.epochs", "1"),
        ("predict", tmp_path / "run", tmp_path / "train.txt", "--out", tmp_path / "scores.csv"),
    ):
        done = dqrm_cpu(*command)
        assert done.returncode == 0, done.stderr
    answers_rows(f"{shlex.quote(sys.executable)} -m dqrm_cpu serve run", tmp_path, dict(os.environ))
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.long
@pytest.mark.mpi
@pytest.mark.timeout(900)
def test_commands_run_as_written(checkout: Path) -> None:
    """One test, since later commands use the run folders of earlier ones."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    for command in readme_commands():
        if command in NOT_FROM_A_TEST:
            continue
        if " serve " in command:
            answers_rows(command, checkout, environment)
            continue
        done = subprocess.run(
            ["bash", "-c", command], cwd=checkout, env=environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, f"{shlex.quote(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
