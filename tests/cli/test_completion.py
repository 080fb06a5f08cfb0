"""Scripts that complete commands, tried in the shells themselves where they are installed."""

import shutil
import subprocess

import pytest

from commands import dqrm_cpu
from dqrm_cpu.cli.main import COMMANDS
from dqrm_cpu.config.schema import SETTINGS


def bash_offers(*words: str) -> list[str]:
    script = dqrm_cpu("completion", "bash").stdout
    typed = " ".join(f"'{word}'" for word in ("dqrm-cpu", *words))
    asked = f'COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _dqrm_cpu; printf "%s\\n" "${{COMPREPLY[@]}}"'
    shown = subprocess.run(["bash", "-c", script + asked], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stderr == ""
    return shown.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("",), [*COMMANDS, "help"]),
        (("pr",), ["predict", "prepare", "profile"]),
        (("help", "tr"), ["train"]),
        (("train", "--quant.me"), ["--quant.method"]),
        (("train", "--quant.method", "d"), ["dqrm", "dorefa"]),
        (("train", "--resume", ""), ["auto", "never"]),
        (("data", "sh"), ["show"]),
        (("bench", ""), ["step", "kernels", "data", "exchange", "serve", "score", "lookup", "spans", "scaling"]),
        (("predict", "runs/"), []),  # the shell goes on with files
        (("train", "--data", ""), []),
    ],
)
def test_bash(words: tuple[str, ...], offered: list[str]) -> None:
    assert bash_offers(*words) == offered


def test_every_setting_is_offered() -> None:
    assert {setting.option for setting in SETTINGS.values()} <= set(bash_offers("train", "--"))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_theirs(shell: str) -> None:
    script = dqrm_cpu("completion", shell).stdout
    assert "--quant.method" in script if shell == "zsh" else "-l quant.method -x -a 'none ptq dqrm" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, timeout=60, check=True)
