"""Where an interrupted preparation goes on: its request, and the unbroken line of its steps."""

import json
import shutil
from pathlib import Path

from dqrm_cpu.base.files import remove_leftovers, replace_file
from dqrm_cpu.base.lock import FolderLock
from dqrm_cpu.data.prepare.blocks import Place
from dqrm_cpu.data.prepare.categories import Categories
from dqrm_cpu.data.prepare.request import Request
from dqrm_cpu.data.prepare.scan import Position
from dqrm_cpu.data.prepare.spool import Step, read_new_keys, read_step, step_path
from dqrm_cpu.data.store.manifest import FILE_NAME as MANIFEST_FILE
from dqrm_cpu.errors import DataError

WORK_FOLDER = ".prepare"
_REQUEST_FILE = "request.json"
_LOCK_FILE = "lock"


def work_folder(request: Request, restart: bool) -> Path:
    """The folder in which the preparation keeps what it needs to go on; made, or found to belong to this request."""
    folder = request.out / WORK_FOLDER
    if restart and (request.out / WORK_FOLDER).exists():
        with exclusive(request.out / WORK_FOLDER):
            clear(request.out)
    elif restart:
        clear(request.out)
    request.out.mkdir(parents=True, exist_ok=True)
    said = folder / _REQUEST_FILE
    if said.exists():
        if _digest_in(said) != request.digest():
            raise DataError(
                f"{request.out} holds a preparation of other sources or with other settings that was interrupted; "
                "repeat its command to go on, or begin anew with --restart"
            )
        return folder
    others = [path.name for path in request.out.iterdir() if path.name != WORK_FOLDER]
    if others:
        raise DataError(
            f"{request.out} is not empty (it holds {others[0]}); give a folder of its own to --out, or clear a former "
            "preparation with --restart"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content = {"digest": request.digest(), "settings": request.settings.plain()}
    replace_file(said, [(json.dumps(content, indent=1) + "\n").encode()], DataError)
    return folder


def exclusive(folder: Path) -> FolderLock:
    """While entered, no other process prepares into this work folder."""
    refusal = f"another process prepares into {folder.parent}; wait for it, or end it"
    return FolderLock(folder, _LOCK_FILE, refusal, DataError)


def _digest_in(path: Path) -> str:
    try:
        return str(json.loads(path.read_text())["digest"])
    except (OSError, ValueError, KeyError):
        return ""


def clear(out: Path) -> None:
    """Removes what a preparation leaves in its folder, and nothing else."""
    if not (out / WORK_FOLDER).exists() and not (out / MANIFEST_FILE).exists():
        return
    for pattern in (MANIFEST_FILE, "*.shard", "bad-rows.txt"):
        for path in out.glob(pattern):
            path.unlink()
    for name in ("vocabulary", WORK_FOLDER):
        shutil.rmtree(out / name, ignore_errors=True)


def recover(spool: Path, categories: Categories) -> tuple[list[Step], Position]:
    """The complete steps, their categories known again, and where to go on; what lies behind them is removed."""
    steps: list[Step] = []
    position = Position()
    while True:
        path = step_path(spool, len(steps))
        try:
            step = read_step(path)
            new_keys = read_new_keys(step, categories.key_type)
        except (OSError, ValueError, KeyError, TypeError):
            break
        categories.extend(new_keys)
        steps.append(step)
        header = step.header
        line = 0 if header.ends_source else header.first_line + header.lines
        position = Position(len(steps), header.first_row + header.rows, line, header.after)
    for path in spool.iterdir():
        if path.suffix != ".rows" or int(path.stem) >= len(steps):
            path.unlink()
    remove_leftovers(spool.parent.parent)
    if steps and steps[-1].header.ends_source:
        position.place = Place(position.place.source + 1)
    return steps, position
