"""Kills, full and failing disks: one call of a command meets a fault, and the same command is given again."""

import random

from case_files import CaseFiles
from forked_commands import Lab
from injection import CHANGES, CREATE, NAME, NEEDS_SPACE, READ, REMOVE, SYNC, WRITE, Fault
from outcomes import DEFECTS, LOST, SAME, Verdict, verdict_of
from row import Row, nominal, shuffled

_COMMANDS = ("train", "resume", "prepare", "export")


def tried(lab: Lab, name: str, fault: Fault, what: str) -> Verdict:
    """Gives a command with a fault, and once more without; the result must be that of an undisturbed one."""
    case_files, folder = CaseFiles(lab.case_files), lab.fresh()
    case_files.before(name, folder)
    done = lab.command(*case_files.commands(folder)[name], fault=fault)
    if done.outcome is None and not done.killed:
        return verdict_of(what, done, case_files.result(name, folder) == case_files.expected(name))
    verdict = verdict_of(what, done, good=True)
    if verdict.outcome in DEFECTS:
        return verdict
    again = case_files.commands(folder)["resume" if name == "train" else name]
    second = lab.command(*again)
    if second.status != 0 and second.outcome not in DEFECTS:
        return Verdict(LOST, what, f"the same command again: status {second.status}\n{second.err[-2000:]}")
    good = second.status == 0 and case_files.result(name, folder) == case_files.expected(name)
    back = verdict_of(what, second, good)
    # A refusal that told what was wrong, and then the whole result, counts as the refusal that it was.
    return verdict if back.outcome == SAME and not done.killed else back


def _places(case_files: CaseFiles) -> list[tuple[str, int]]:
    """Lists every call of every command that changes something."""
    return [(name, number) for name in _COMMANDS for number in range(1, case_files.facts[name] + 1)]


def _kill(lab: Lab, random_: random.Random, number: int) -> Verdict:
    places = _places(CaseFiles(lab.case_files))
    at = shuffled(2 * len(places), number)
    (name, call), mode = places[at // 2], ("kill", "tear")[at % 2]
    return tried(lab, name, Fault(lab.fresh(), call, mode), f"{name}: {mode} at call {call}")


def _kill_size(case_files: CaseFiles) -> int:
    return 2 * len(_places(case_files))


def _full(lab: Lab, random_: random.Random, number: int) -> Verdict:
    places = _places(CaseFiles(lab.case_files))
    name, call = places[shuffled(len(places), number)]
    mode, kinds = random_.choice(("ENOSPC", "EDQUOT", "short")), NEEDS_SPACE
    sticky = mode != "short" and random_.random() < 0.8
    fault = Fault(lab.fresh(), call, mode, kinds, sticky)
    return tried(lab, name, fault, f"{name}: {mode} {'from' if sticky else 'at'} call {call}")


def _read_only(lab: Lab, random_: random.Random, number: int) -> Verdict:
    places = _places(CaseFiles(lab.case_files))
    name, call = places[shuffled(len(places), number)]
    fault = Fault(lab.fresh(), call, random_.choice(("EROFS", "EACCES")), WRITE | NAME | CREATE | REMOVE, True)
    return tried(lab, name, fault, f"{name}: {fault.mode} from call {call} on")


def _slow(lab: Lab, random_: random.Random, number: int) -> Verdict:
    name = random_.choice(_COMMANDS)
    pause = random_.choice((500, 2000, 5000))
    fault = Fault(lab.fresh(), 1, f"delay{pause}", CHANGES, True)
    return tried(lab, name, fault, f"{name}: every call waits {pause} us")


def _failing(lab: Lab, random_: random.Random, number: int) -> Verdict:
    """EIO at a call that changes something, or at one that reads: of the files that cases start from, too."""
    places = _places(CaseFiles(lab.case_files))
    name, call = places[shuffled(len(places), number)]
    kinds = random_.choice((CHANGES, SYNC, READ, READ | CHANGES))
    where = lab.fresh() if kinds != READ or random_.random() < 0.3 else lab.case_files
    fault = Fault(where, call if kinds == CHANGES else random_.randrange(1, 60), "EIO", kinds, random_.random() < 0.5)
    case = f"{name}: EIO {'from' if fault.sticky else 'at'} call {fault.number} of kinds {kinds} in {where.name}"
    return tried(lab, name, fault, case)


ROWS = (
    Row(
        "kills",
        "Kill at any write, fsync, rename",
        "SIGKILL before a call that changes a file, or amid a write, or right behind the call: every call of train, of "
        "a resumed train, of prepare and of export; then the same command again (`--resume auto`)",
        2400,
        _kill,
        _kill_size,
    ),
    Row(
        "full",
        "Disk full",
        "ENOSPC or EDQUOT from a call on, or a write that takes half; then the same command again",
        600,
        _full,
        nominal(600),
    ),
    Row(
        "read-only",
        "Read-only disk",
        "EROFS or EACCES from a call on; then the same command again",
        300,
        _read_only,
        nominal(300),
    ),
    Row("slow", "Slow disk", "every call that changes a file waits 0.5 to 5 ms", 60, _slow, nominal(60)),
    Row(
        "eio",
        "I/O error",
        "EIO at a write, fsync, rename or read, once or from then on; then the same command again",
        600,
        _failing,
        nominal(600),
    ),
)
