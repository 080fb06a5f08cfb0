"""Where an interrupted preparation goes on: its request, and the unbroken series of its spooled files."""

import contextlib
import json
import shutil
from pathlib import Path

from dqrm_cpu.base.decode import UnreadableError, read_json
from dqrm_cpu.base.files import remove_leftovers, replace_file
from dqrm_cpu.base.lock import FolderLock
from dqrm_cpu.data.prepare.bad_rows import QUARANTINE_FILE
from dqrm_cpu.data.prepare.request import PrepareRequest
from dqrm_cpu.data.prepare.scan import ScanPosition
from dqrm_cpu.data.prepare.sources.raw_file import SourcePosition
from dqrm_cpu.data.prepare.spool import SpoolFile, read_new_keys, read_spool_file, spool_path
from dqrm_cpu.data.prepare.vocabulary.vocabulary import Categories
from dqrm_cpu.data.store.manifest import FILE_NAME as MANIFEST_FILE
from dqrm_cpu.errors import ConfigError, DataError

WORK_FOLDER, SPOOL_FOLDER = ".prepare", "spool"
_REQUEST_FILE = "request.json"
_LOCK_FILE = "lock"


def work_folder(request: PrepareRequest, restart: bool) -> Path:
    """Makes the folder that keeps what is needed to go on, or checks that it belongs to this request."""
    folder = request.out / WORK_FOLDER
    if restart and folder.exists():
        with lock_work_folder(folder):
            _clear(request.out)
    elif restart:
        _clear(request.out)
    request.out.mkdir(parents=True, exist_ok=True)
    path = folder / _REQUEST_FILE
    if path.exists():
        if _digest_in(path) == request.digest():
            return folder
        with lock_work_folder(folder) as lock:
            # One that ended before its first rows were safe, as by a mistake in the schema, has nothing to lose.
            if not lock.held or spool_path(folder / SPOOL_FOLDER, 0).exists():
                raise ConfigError(
                    f"{request.out} holds a preparation of other sources or with other settings that was interrupted; "
                    "repeat its command to go on, or begin anew with --restart"
                )
            _clear(request.out)
    others = [entry.name for entry in request.out.iterdir() if entry.name != WORK_FOLDER]
    if others:
        raise ConfigError(
            f"{request.out} is not empty (it holds {others[0]}); give a folder of its own to --out, or clear a former "
            "preparation with --restart"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content = {"digest": request.digest(), "settings": request.settings.plain()}
    replace_file(path, [(json.dumps(content, indent=1) + "\n").encode()], DataError)
    return folder


def lock_work_folder(folder: Path) -> FolderLock:
    """Returns a lock: while it is held, no other process prepares into this work folder."""
    refusal = f"another process prepares into {folder.parent}; wait for it, or end it"
    return FolderLock(folder, _LOCK_FILE, refusal, DataError)


def _digest_in(path: Path) -> str:
    try:
        return str(read_json(path)["digest"])
    except (OSError, UnreadableError, KeyError, TypeError, IndexError) as error:
        reason = str(error) if isinstance(error, UnreadableError) else "cannot be read, or names no request"
        raise DataError(f"{path} {reason}: nobody can say what was interrupted; begin anew with --restart") from None


def _clear(out: Path) -> None:
    """Removes what a preparation leaves in its folder, and nothing else."""
    if not (out / WORK_FOLDER).exists() and not (out / MANIFEST_FILE).exists():
        return
    for pattern in (MANIFEST_FILE, "*.shard", "bad-rows.txt"):
        for path in out.glob(pattern):
            path.unlink()
    for name in ("vocabulary", WORK_FOLDER):
        shutil.rmtree(out / name, ignore_errors=True)


def recover(request: PrepareRequest, spool: Path, categories: Categories) -> tuple[list[SpoolFile], ScanPosition]:
    """Finds the complete files, adds their categories again, and returns the files and where to go on.

    A file that is damaged, or does not follow the one before, is noted and ends them: its rows are read once more, and
    what lies behind it is removed.
    """
    files: list[SpoolFile] = []
    position = ScanPosition()
    kept_bytes = _quarantined(request)
    while True:
        path = spool_path(spool, len(files))
        try:
            file = read_spool_file(path)
            _require_following(request, file, files, position, kept_bytes)
            new_keys = read_new_keys(file, categories.key_type)
        except FileNotFoundError:
            break
        except (OSError, UnreadableError) as error:
            reason = f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)
            request.note(f"{path} {reason}; going back to before it")
            break
        categories.extend(new_keys)
        files.append(file)
        header = file.header
        line = 0 if header.ends_source else header.first_line + header.lines
        position = ScanPosition(len(files), header.first_row + header.rows, line, header.after)
    whole = {file.path for file in files}
    for path in spool.iterdir():
        if path not in whole:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    remove_leftovers(spool.parent.parent)
    if files and files[-1].header.ends_source:
        position.source = SourcePosition(position.source.source + 1)
    return files, position


def _quarantined(request: PrepareRequest) -> int | None:
    """Returns the bytes of the quarantine file; None where there is to be none."""
    if request.settings.bad_rows != "quarantine":
        return None
    with contextlib.suppress(OSError):
        return (request.out / QUARANTINE_FILE).stat().st_size
    return 0


def _require_following(
    request: PrepareRequest, file: SpoolFile, before: list[SpoolFile], position: ScanPosition, kept_bytes: int | None
) -> None:
    """Raises UnreadableError where a file is none of this request, or does not go on where the one before ended."""
    header, schema = file.header, request.settings.layout.raw
    counts = header.counts
    lengths = (
        len(header.new_keys),
        len(counts.missing),
        len(counts.clamped),
        len(counts.unseen),
        len(counts.dense_sum),
        len(counts.cut),
    )
    dense, tables = schema.num_dense, schema.num_tables
    bags = len(request.settings.layout.bags)
    if lengths != (tables, dense + tables, dense, tables, dense, bags) or header.width != dense + tables + 1:
        raise UnreadableError("has other columns")
    some = dense if header.rows else 0
    if (len(counts.dense_min), len(counts.dense_max)) != (some, some):
        raise UnreadableError("has other columns")
    begins_source = bool(before) and before[-1].header.ends_source
    source, offset = position.source.source + begins_source, 0 if begins_source else position.source.offset
    follows = header.after.source == source < len(request.sources) and header.after.offset >= offset
    if (header.first_row, header.first_line) != (position.row, position.line) or not follows:
        raise UnreadableError("does not follow the step before it")
    if kept_bytes is not None and header.quarantined > kept_bytes:
        raise UnreadableError(f"comes with bad rows that {QUARANTINE_FILE} lacks")
