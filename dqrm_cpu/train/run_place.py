"""Where a run keeps its settings, checkpoints and members, and where the data set lies now that it was trained on."""

from pathlib import Path

import msgspec

from dqrm_cpu import __version__
from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.data.store.manifest import holds_manifest
from dqrm_cpu.data.store.run_data import find_data
from dqrm_cpu.errors import ConfigError

CONFIG_FILE, METRICS_FILE, RESULT_FILE = "config.toml", "metrics.jsonl", "result.json"
CHECKPOINTS, _MEMBERS = "checkpoints", "members"
_ENVIRONMENT_FILE = "environment.json"


class _Environment(msgspec.Struct):
    """Holds the fields that are read of a run's environment.json."""

    data: str = ""
    dqrm_cpu: str = ""


def no_run(path: Path, also: str = "") -> str:
    """Says why a path is not the folder of a run, and what to give instead: that, or `also`."""
    why = "holds no run"
    if not path.exists():
        why += ", it is not there"
    elif path.is_file():
        why += ", it is a file"
    elif holds_manifest(path):
        why += ", it is a data set"
    return f"{path} {why}; give a folder that dqrm-cpu train wrote{also}"


def data_of_run(source: str, run_dir: Path) -> Path:
    """Finds the data set that the run in `run_dir` recorded as `source`, there or at the same path beside the run."""
    return find_data(source, run_dir, _environment(run_dir).data)


def other_version(run_dir: Path) -> str:
    """Returns the end of a sentence that says which other version wrote a run; empty where it was this one."""
    version = _environment(run_dir).dqrm_cpu
    if version in ("", __version__):
        return ""
    return f" (dqrm-cpu {version} wrote the run, and this is {__version__}: use that one)"


def holds_run(path: Path) -> bool:
    """Says whether there is a run in the folder."""
    return any((path / name).exists() for name in (CONFIG_FILE, METRICS_FILE, RESULT_FILE, CHECKPOINTS))


def checkpoints_folder(path: Path) -> Path:
    """Returns the folder where the run at `path` keeps its checkpoints."""
    return path / CHECKPOINTS


def member_folder(path: Path, number: int) -> Path:
    """Returns the folder of a member of the ensemble at `path`, a run of its own; they count from 1."""
    return path / _MEMBERS / str(number)


def members_of(path: Path) -> list[Path]:
    """Returns the folders of an ensemble's members in their order, as far as they have begun; none of a single run."""
    found: list[Path] = []
    while holds_run(member_folder(path, len(found) + 1)):
        found.append(member_folder(path, len(found) + 1))
    return found


def require_one_model(path: Path) -> None:
    """Raises ConfigError for the folder of an ensemble, where one of its models is wanted."""
    members = members_of(path)
    if members:
        raise ConfigError(f"{path} is an ensemble of several models; name one of them, such as {members[0]}")


def _environment(run_dir: Path) -> _Environment:
    """Reads what is known of where a run was trained; nothing where its environment.json does not say."""
    try:
        return decoded(read_json(run_dir / _ENVIRONMENT_FILE), _Environment)
    except (OSError, UnreadableError):
        return _Environment()
