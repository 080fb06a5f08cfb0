"""Files from a stranger: checksums are valid, contents lie. Nothing crashes, hangs or reads beyond a file."""

import os
import random
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import forge
import readers
from case_files import CaseFiles, copy_tree
from forked_commands import Lab
from outcomes import ACCEPTED, Done, Verdict, verdict_of
from row import Row, nominal

_SHARE = 3000
_TIMEOUT_S = 40.0

Forge = Callable[[Path, random.Random], None]
"""Changes a file so that what it says of itself still holds."""


def _first(folder: Path, pattern: str, random_: random.Random) -> Path:
    return random_.choice(sorted(folder.glob(pattern)))


def _newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def _in_data(lab: Lab, random_: random.Random, pattern: str, forged: Forge) -> Verdict:
    data = lab.fresh() / "data"
    copy_tree(CaseFiles(lab.case_files).data, data)
    path = _first(data, pattern, random_)
    forged(path, random_)
    return _used(lab, random_, data, f"forged {path.name}")


def _used(lab: Lab, random_: random.Random, data: Path, what: str) -> Verdict:
    """Whatever uses a data set: rows that are read must be rows that a model can take."""
    run = lab.fresh_folder / "run"
    later = ["prepare", CaseFiles(lab.case_files).raw_later, "--format", "tsv", "--split", "none", "--workers", "1"]
    uses = {
        "read": None,
        "verify": ["data", "verify", data],
        "show": ["data", "show", data],
        "head": ["data", "head", data],
        "train": CaseFiles(lab.case_files).train_arguments(run, data),
        "prepare": [*later, "--vocabulary", data, "--out", lab.fresh_folder / "later"],
    }
    use = random_.choice(["read"] * 4 + list(uses))
    command = uses[use]
    if command is None:
        return _accepted(what + ", read", lab.call(partial(readers.usable_rows, data), _TIMEOUT_S))
    return _accepted(f"{what}, {use}", lab.command(*command, timeout_s=_TIMEOUT_S))


def _accepted(what: str, done: Done) -> Verdict:
    verdict = verdict_of(what, done, good=True)
    return verdict._replace(outcome=ACCEPTED) if verdict.outcome == "same" else verdict


def _in_checkpoint(lab: Lab, random_: random.Random, pattern: str, forged: Forge) -> Verdict:
    run = lab.fresh() / "run"
    copy_tree(CaseFiles(lab.case_files).run, run)
    folder = _newest(run)
    path = _first(folder, pattern, random_)
    forged(path, random_)
    if path.name != "state.json":
        forge.adopt_shard(folder, path.name)
    use = random_.choice(("evaluate", "resume", "export"))
    commands = {
        "evaluate": ["evaluate", "--run-dir", run, "--checkpoint", "last"],
        "resume": ["train", "--run-dir", run, "--resume", "auto"],
        "export": ["compress", run, "--checkpoint", "last"],
    }
    return _accepted(f"forged {path.name}, {use}", lab.command(*commands[use], timeout_s=_TIMEOUT_S))


def _in_run(lab: Lab, random_: random.Random, pattern: str, forged: Forge) -> Verdict:
    run = lab.fresh() / "run"
    copy_tree(CaseFiles(lab.case_files).cut if random_.random() < 0.5 else CaseFiles(lab.case_files).run, run)
    paths = sorted(run.glob(pattern))
    if not paths:
        copy_tree(CaseFiles(lab.case_files).run, run)
        paths = sorted(run.glob(pattern))
    path = random_.choice(paths)
    forged(path, random_)
    return _run_used(lab, random_, run, f"forged {path.relative_to(run)}")


def _run_used(lab: Lab, random_: random.Random, run: Path, what: str) -> Verdict:
    commands = {
        "evaluate": ["evaluate", "--run-dir", run],
        "resume": ["train", "--run-dir", run, "--resume", "auto"],
        "report": ["report", run],
        "export": ["compress", run],
    }
    use = random_.choice(tuple(commands))
    return _accepted(f"{what}, {use}", lab.command(*commands[use], timeout_s=_TIMEOUT_S))


def _in_packed(lab: Lab, random_: random.Random, pattern: str, forged: Forge) -> Verdict:
    run = lab.fresh() / "run"
    copy_tree(CaseFiles(lab.case_files).run, run)
    path = _first(run, pattern, random_)
    forged(path, random_)
    done = lab.call(partial(readers.packed, path, run / "config.toml"), _TIMEOUT_S)
    return _accepted(f"forged {path.name}, read", done)


def _no_file(lab: Lab, random_: random.Random, pattern: str, forged: Forge) -> Verdict:
    """A FIFO, a device, a folder, a socket, an empty file or a link to nowhere under the name of any file."""
    folder = lab.fresh()
    in_data = random_.random() < 0.4
    copy_tree(CaseFiles(lab.case_files).data if in_data else CaseFiles(lab.case_files).run, folder / "it")
    path = random_.choice(sorted(p for p in (folder / "it").rglob("*") if p.is_file()))
    path.unlink()
    kind = random_.choice(
        ("FIFO", "/dev/zero", "/dev/full", "folder", "socket", "empty file", "link to nowhere", "loop")
    )
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind.startswith("/dev"):
        path.symlink_to(kind)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "empty file":
        path.touch()
    else:
        path.symlink_to(path.name if kind == "loop" else "nowhere")
    what = f"{kind} instead of {path.relative_to(folder / 'it')}"
    return (_used if in_data else _run_used)(lab, random_, folder / "it", what)


_KINDS: dict[str, tuple[Callable[[Lab, random.Random, str, Forge], Verdict], str, Forge]] = {
    "shard": (_in_data, "*.shard", forge.forge_shard),
    "manifest": (_in_data, "manifest.json", forge.forge_manifest),
    "vocabulary.json": (_in_data, "vocabulary/*.json", forge.forge_page),
    "vocabulary column": (_in_data, "vocabulary/*.npy", forge.forge_npy),
    "state.json": (_in_checkpoint, "state.json", forge.forge_state),
    "checkpoint shard": (_in_checkpoint, "*.safetensors", forge.forge_safetensors),
    "packed file": (_in_packed, "packed/*.safetensors", forge.forge_safetensors),
    "config.toml": (_in_run, "config.toml", forge.forge_toml),
    "metrics.jsonl": (_in_run, "metrics.jsonl", forge.forge_lines),
    "result.json, environment.json, spans": (_in_run, "**/[rei][enr]*.json", forge.forge_json),
    "no regular file": (_no_file, "", forge.forge_json),
}


def _hostile(lab: Lab, random_: random.Random, number: int) -> Verdict:
    group = tuple(_KINDS)[number % len(_KINDS)]
    tried, pattern, forged = _KINDS[group]
    return tried(lab, random_, pattern, forged)._replace(group=group)


ROWS = (
    Row(
        "hostile",
        "Hostile files",
        "files whose checksums fit and whose contents lie: offsets, sizes, counts, types, nesting, endless numbers, "
        "unknown and missing keys, names that lead elsewhere, NumPy headers; FIFOs, devices, folders and links instead "
        "of files; then whatever reads them",
        _SHARE,
        _hostile,
        nominal(_SHARE),
        sample=5,
    ),
)
