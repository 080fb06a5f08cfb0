"""Where a run keeps its settings, and where the data set lies now that it was trained on."""

from pathlib import Path

import msgspec

from dqrm_cpu import __version__
from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.data.store.manifest import holds_manifest
from dqrm_cpu.data.store.run_data import find_data

CONFIG_FILE = "config.toml"
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


def _environment(run_dir: Path) -> _Environment:
    """Reads what is known of where a run was trained; nothing where its environment.json does not say."""
    try:
        return decoded(read_json(run_dir / _ENVIRONMENT_FILE), _Environment)
    except (OSError, UnreadableError):
        return _Environment()
