"""Where an interrupted preparation goes on: its request, and the unbroken line of its steps."""

import contextlib
import json
import shutil
from pathlib import Path

from dqrm_cpu.base.decode import UnreadableError, read_json
from dqrm_cpu.base.files import remove_leftovers, replace_file
from dqrm_cpu.base.lock import FolderLock
from dqrm_cpu.data.prepare.bad_rows import QUARANTINE_FILE
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
        return str(read_json(path)["digest"])
    except (OSError, UnreadableError, KeyError, TypeError, IndexError) as error:
        said = str(error) if isinstance(error, UnreadableError) else "cannot be read, or names no request"
        raise DataError(f"{path} {said}: nobody can say what was interrupted; begin anew with --restart") from None


def clear(out: Path) -> None:
    """Removes what a preparation leaves in its folder, and nothing else."""
    if not (out / WORK_FOLDER).exists() and not (out / MANIFEST_FILE).exists():
        return
    for pattern in (MANIFEST_FILE, "*.shard", "bad-rows.txt"):
        for path in out.glob(pattern):
            path.unlink()
    for name in ("vocabulary", WORK_FOLDER):
        shutil.rmtree(out / name, ignore_errors=True)


def recover(request: Request, spool: Path, categories: Categories) -> tuple[list[Step], Position]:
    """The complete steps, their categories known again, and where to go on; what lies behind them is removed.

    A step that is damaged, or does not follow the one before, is told and ends them: it is read once more.
    """
    steps: list[Step] = []
    position = Position()
    kept_bytes = _quarantined(request)
    while True:
        path = step_path(spool, len(steps))
        try:
            step = read_step(path)
            _require_following(request, step, steps, position, kept_bytes)
            new_keys = read_new_keys(step, categories.key_type)
        except FileNotFoundError:
            break
        except (OSError, UnreadableError) as error:
            said = f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)
            request.note(f"{path} {said}; going back to before it")
            break
        categories.extend(new_keys)
        steps.append(step)
        header = step.header
        line = 0 if header.ends_source else header.first_line + header.lines
        position = Position(len(steps), header.first_row + header.rows, line, header.after)
    whole = {step.path for step in steps}
    for path in spool.iterdir():
        if path not in whole:
            _remove(path)
    remove_leftovers(spool.parent.parent)
    if steps and steps[-1].header.ends_source:
        position.place = Place(position.place.source + 1)
    return steps, position


def _quarantined(request: Request) -> int | None:
    """Bytes of the quarantine file; None where there is to be none."""
    if request.settings.bad_rows != "quarantine":
        return None
    with contextlib.suppress(OSError):
        return (request.out / QUARANTINE_FILE).stat().st_size
    return 0


def _require_following(
    request: Request, step: Step, before: list[Step], position: Position, kept_bytes: int | None
) -> None:
    """UnreadableError where a step is none of this request, or does not go on where the one before ended."""
    header, schema = step.header, request.settings.layout.schema
    counts = header.counts
    lengths = (
        len(header.new_keys),
        len(counts.missing),
        len(counts.clamped),
        len(counts.unseen),
        len(counts.dense_sum),
    )
    dense, tables = schema.num_dense, schema.num_tables
    if lengths != (tables, dense + tables, dense, tables, dense) or header.width != dense + tables + 1:
        raise UnreadableError("has other columns")
    some = dense if header.rows else 0
    if (len(counts.dense_min), len(counts.dense_max)) != (some, some):
        raise UnreadableError("has other columns")
    begins_source = bool(before) and before[-1].header.ends_source
    source, offset = position.place.source + begins_source, 0 if begins_source else position.place.offset
    follows = header.after.source == source < len(request.sources) and header.after.offset >= offset
    if (header.first_row, header.first_line) != (position.row, position.line) or not follows:
        raise UnreadableError("does not follow the step before it")
    if kept_bytes is not None and header.quarantined > kept_bytes:
        raise UnreadableError(f"comes with bad rows that {QUARANTINE_FILE} lacks")


def _remove(path: Path) -> None:
    """A file or a folder of ours."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
