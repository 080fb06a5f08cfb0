"""The frame around the commands: exit statuses, one line per error, quiet endings."""

import argparse
import os
import subprocess
import sys
import types
from collections.abc import Callable

import pytest

from dqrm_cpu import __version__
from dqrm_cpu.cli import doctor
from dqrm_cpu.cli.main import COMMANDS, main
from dqrm_cpu.errors import DataError

Run = Callable[[argparse.Namespace], int]


@pytest.fixture
def doctor_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Puts another body under the doctor's options."""
    return lambda run: monkeypatch.setattr(doctor, "run", run)


def raising(error: BaseException) -> Run:
    def run(_: argparse.Namespace) -> int:
        raise error

    return run


def test_status_is_that_of_the_command(doctor_runs: Callable[[Run], None]) -> None:
    doctor_runs(lambda _: 7)
    assert main(["doctor"]) == 7


def test_error_of_the_toolkit_is_one_line(
    doctor_runs: Callable[[Run], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DQRM_TRACEBACK", raising=False)
    doctor_runs(raising(DataError("shard 3 is cut short; prepare it again")))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "dqrm-cpu: error: shard 3 is cut short; prepare it again\n"


def test_traceback_on_request(doctor_runs: Callable[[Run], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQRM_TRACEBACK", "1")
    doctor_runs(raising(DataError("shard 3")))
    with pytest.raises(DataError):
        main(["doctor"])


def test_interrupt(doctor_runs: Callable[[Run], None], capsys: pytest.CaptureFixture[str]) -> None:
    doctor_runs(raising(KeyboardInterrupt()))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "dqrm-cpu: interrupted\n"


def test_a_broken_socket_is_not_taken_for_a_closed_pipe(
    doctor_runs: Callable[[Run], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end), os.fdopen(write_end, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        doctor_runs(raising(BrokenPipeError()))
        with pytest.raises(BrokenPipeError):
            main(["doctor"])


PRINTING_DOCTOR = """
import sys
from dqrm_cpu.cli import doctor, main
doctor.run = lambda args: print("cpu ok") or 0
sys.exit(main.main(["doctor"]))
"""


def test_a_closed_pipe_ends_quietly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stdout:
        ended = subprocess.run(
            [sys.executable, "-c", PRINTING_DOCTOR], stdout=stdout, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (ended.returncode, ended.stderr) == (141, b"")


USAGE_ERRORS = [
    (["doctr"], f"unknown command doctr; nearest is doctor; there are {', '.join(COMMANDS)}"),
    (["zzz"], f"unknown command zzz; there are {', '.join(COMMANDS)}"),
    (
        ["doctor", "--quant.scale-perod", "200"],
        "--quant.scale-perod 200: unknown option; nearest is --quant.scale-period (integer, 1 or more)",
    ),
    (
        ["doctor", "--quant.scale_period=200"],
        "--quant.scale_period=200: unknown option; nearest is --quant.scale-period (integer, 1 or more)",
    ),
    (
        ["doctor", "--scale-period", "200"],
        "--scale-period 200: unknown option; nearest is --quant.scale-period (integer, 1 or more)",
    ),
    (["doctor", "--jsn"], "--jsn: unknown option; nearest is --json"),
    (["doctor", "--wwwww"], "--wwwww: unknown option; --help lists what there is"),
    (["doctor", "kaggle"], "kaggle: not expected here; settings are given as --SECTION.KEY VALUE"),
    (["doctor", "--seed"], "argument --seed: expected one argument; dqrm-cpu doctor --help lists the options"),
    (["doctor", "--seed", "x"], "--seed x: wrong type; allowed: integer, 0 to 4,294,967,295"),
    (
        ["doctor", "--jsn", "--sed", "3"],
        "2 mistakes:\n  --jsn: unknown option; nearest is --json\n"
        "  --sed 3: unknown option; nearest is --seed (integer, 0 to 4,294,967,295)",
    ),
]


@pytest.mark.parametrize(("argv", "message"), USAGE_ERRORS)
def test_mistaken_command_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr() == ("", f"dqrm-cpu: error: {message}\n")


def test_module_is_the_command() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "dqrm_cpu", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert shown.stdout == f"dqrm-cpu {__version__}\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dqrm-cpu {__version__}\n"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = [
        line.split()[0]
        for line in capsys.readouterr().out.partition("commands:\n")[2].partition("\n\n")[0].splitlines()
    ]
    assert tuple(shown) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    program = (
        "import sys; from dqrm_cpu.cli.main import main; "
        f"status = main([{command!r}, '--help']); "
        "sys.exit(status or int(bool({'torch', 'numba', 'numpy'} & set(sys.modules))))"
    )
    subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, timeout=60, check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_offer_what_the_frame_calls(command: str) -> None:
    module = __import__(f"dqrm_cpu.cli.{command}", fromlist=["run"])
    assert isinstance(module.add_parser, types.FunctionType)
    assert isinstance(module.run, types.FunctionType)


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        ([], ["--help"]),
        (["help"], ["--help"]),
        (["help", "train"], ["train", "--help"]),
        (["help", "train", "quant"], ["train", "--help", "quant"]),
        (["help", "data", "show"], ["data", "show", "--help"]),
    ],
)
def test_help_is_a_command_too(asked: list[str], same: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert main(same) == 0
    assert shown == capsys.readouterr().out


def test_help_on_a_command_that_is_misspelt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "trian"]) == 2
    assert "unknown command trian; nearest is train" in capsys.readouterr().err
