"""A week in a shell script: a command of it is killed anywhere, and the script is started again."""

import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from case_files import copy_tree, file_digest, run_result
from commands import CommandOutput
from folders import files_of
from forked_commands import Lab
from injection import Fault
from outcomes import DEFECTS, LOST, Verdict, verdict_of
from row import Row, nominal, shuffled
from script_commands import run_script

_SCRIPT = Path(__file__).parents[3] / "examples" / "seven_days.sh"
_DAYS = {"DAYS": "3", "ROWS": "300"}
_SMALL = (
    *("--model.embedding-dim", "4", "--model.bottom-mlp", "6,4", "--model.top-mlp", "5,1", "--train.threads", "1"),
    *("--train.batch-size", "60", "--tune", "2"),
)
_WHOLE_EVERY = 20
"""Of so many cases one goes through the whole script again; the others repeat the command that was killed."""


@dataclass(frozen=True)
class _Week:
    """A run of the script that nothing disturbed: commands, the calls of each, and what lay there before each."""

    folder: Path
    commands: Sequence[Sequence[str]]
    calls: Sequence[int]

    def before(self, number: int) -> Path:
        return self.folder / f"before-{number}"

    @property
    def places(self) -> list[tuple[int, int]]:
        """Lists the place of every call that changes a file: number of the command, number of the call."""
        return [(number, call) for number, count in enumerate(self.calls) for call in range(1, count + 1)]


_WEEKS: dict[Path, _Week] = {}


def _week(lab: Lab) -> _Week:
    """The undisturbed run of this worker, in the folder of its cases: what is written records where it lies."""
    folder = lab.root / f"{lab.fresh_folder.name}-week"
    if folder not in _WEEKS:
        shutil.rmtree(folder, ignore_errors=True)
        place = lab.fresh()
        commands: list[Sequence[str]] = []
        calls: list[int] = []

        def command(words: list[str]) -> CommandOutput:
            copy_tree(place, folder / f"before-{len(commands)}")
            done = lab.command(*words, fault=Fault(place), cwd=place, before=_one_core, timeout_s=600)
            commands.append(words)
            calls.append(done.calls)
            return CommandOutput(done.status, done.out, done.err)

        done = run_script(_SCRIPT, place, command, *_SMALL, environ=_DAYS)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        copy_tree(place, folder / f"before-{len(commands)}")
        _WEEKS[folder] = _Week(folder, commands, calls)
    return _WEEKS[folder]


def _one_core() -> None:
    """As many threads as cores would make the order of the calls a matter of chance."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _killed(lab: Lab, random_: random.Random, number: int) -> Verdict:
    week = _week(lab)
    at, call = week.places[shuffled(len(week.places), number)]
    words, folder, mode = week.commands[at], lab.fresh(), random_.choice(("kill", "tear"))
    what = f"command {at + 1}, {' '.join(words[:2])}: {mode} at call {call} of {week.calls[at]}"
    copy_tree(week.before(at), folder)
    done = lab.command(*words, fault=Fault(folder, call, mode), cwd=folder, before=_one_core)
    if not done.killed or done.outcome in DEFECTS:
        return verdict_of(what, done, done.status == 0 and _state(folder) == _state(week.before(at + 1)))
    if number % _WHOLE_EVERY:
        again = lab.command(*words, cwd=folder, before=_one_core)
        status, error, expected = again.status, again.err, at + 1
    else:
        output = run_script(_SCRIPT, folder, lambda words: _done(lab, folder, words), *_SMALL, environ=_DAYS)
        status, error, expected = output.returncode, output.stderr, len(week.commands)
    if status != 0:
        return Verdict(LOST, what, f"again: status {status}\n{error[-2000:]}")
    return verdict_of(what, done, _state(folder) == _state(week.before(expected)))


def _done(lab: Lab, folder: Path, words: list[str]) -> CommandOutput:
    done = lab.command(*words, cwd=folder, before=_one_core)
    return CommandOutput(done.status, done.out, done.err)


def _state(folder: Path) -> object:
    """Days, the suggested schema, data sets, what each run has learned, predictions."""
    data = {path.name: files_of(path, without="lock") for path in (folder / "data").glob("*")}
    runs = {path.name: run_result(path) for path in (folder / "runs").glob("*")}
    files = [*folder.glob("suggested.toml"), *folder.glob("days/day-*"), *folder.glob("predictions.parquet")]
    return data, runs, {path.name: file_digest(path) for path in files}


ROWS = (
    Row(
        "script",
        "Kill anywhere in a week's script",
        "SIGKILL before a call that changes a file, or amid a write, or right behind the call, at every call of all "
        "commands of the first three days of examples/seven_days.sh; then the same command, and each twentieth time "
        "the whole script, again",
        1027,
        _killed,
        nominal(1027),
    ),
)
