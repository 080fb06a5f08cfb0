"""Which checkpoints a run has: the newest, the best, the one that somebody names; one of each member of an ensemble.

Nothing of their tensors is read. Without torch.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dqrm_cpu.base.decode import Json
from dqrm_cpu.config.recorded import RecordedConfig, recorded_config
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.train.checkpoint_manifest import STATE_FILE, read_manifest
from dqrm_cpu.train.checkpoint_shard import DamagedCheckpointError
from dqrm_cpu.train.run_place import checkpoints_folder, member_folder, members_of, require_one_model

# A second checkpoint of one step gets a number, so that the first is never taken away before the new one is there.
_NAME = re.compile(r"step-(\d{9,})(?:\.(\d+))?")


class CheckpointFolder:
    """The folder of one run's checkpoints.

    A complete checkpoint is a folder named step-000001234; whatever a crash leaves behind has another name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest(self) -> Path | None:
        """Returns the checkpoint of the latest step, which only loading can prove undamaged."""
        paths = [path for path in self.paths() if (path / STATE_FILE).exists()] or self.paths()
        return paths[-1] if paths else None

    def best(self, until_step: int | None = None) -> Path | None:
        """Returns the latest checkpoint that was saved as the best so far, among those up to a step."""
        return _latest_best([path for path in self.paths() if until_step is None or order_of(path)[0] <= until_step])

    def paths(self) -> list[Path]:
        """Lists all complete checkpoints, oldest step first."""
        return [path for path in self.named() if path.is_dir()]

    def named(self) -> list[Path]:
        """Lists, oldest step first, whatever has the name of a checkpoint."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), key=order_of)


def read_state(path: Path) -> Mapping[str, Json]:
    """Reads the state of the checkpoint at `path`, without reading its tensors."""
    return read_manifest(path).state


def find_checkpoint(folder: Path, which: str) -> Path:
    """Finds the checkpoint that a user names: `best`, `last` or the name of one in `folder`, or the path of any."""
    store = CheckpointFolder(folder)
    named = {"best": store.best, "last": store.newest}.get(which)
    path = named() if named else next((path for path in store.paths() if path.name == which), Path(which))
    if path is None or not path.is_dir():
        require_one_model(folder.parent)
        there = ", ".join(path.name for path in store.paths()) or "none"
        raise CheckpointError(f"no checkpoint {which!r} in {folder}; there: {there}")
    return path


def newest_config(folder: Path) -> RecordedConfig | None:
    """Reads the settings that the newest checkpoint in `folder` recorded; None where none did that can be read."""
    for path in reversed(CheckpointFolder(folder).paths()):
        try:
            config = read_manifest(path).config
        except DamagedCheckpointError:  # reported where it is loaded
            continue
        return None if config is None else recorded_config(path, config)
    return None


def checkpoints_to_score(run_dir: Path, which: str, members: int) -> list[Path]:
    """Finds the checkpoints whose mean is scored: one of a run, one of each of the first so many of an ensemble.

    `which`: best or last, of a single run also the folder of one.
    """
    there = members_of(run_dir)
    if not there:
        if members > 1:
            raise ConfigError(f"{run_dir} holds one model: ensemble {members} is of a run that trained as many")
        return [find_checkpoint(checkpoints_folder(run_dir), which)]
    if which not in ("best", "last"):
        raise ConfigError(
            f"{run_dir} is an ensemble, whose score is of a checkpoint of each member: --checkpoint is best or last, "
            f"not {which}; a single model is scored as {there[0]}"
        )
    folders = [member_folder(run_dir, number) for number in range(1, members + 1)]
    missing = [folder for folder in folders if not CheckpointFolder(checkpoints_folder(folder)).paths()]
    if missing:
        raise CheckpointError(
            f"{run_dir} is an ensemble of {members}, and {missing[0]} has no checkpoint yet; go on with "
            f"dqrm-cpu train --run-dir {run_dir} --resume auto"
        )
    return [find_checkpoint(checkpoints_folder(folder), which) for folder in folders]


def order_of(path: Path) -> tuple[int, int]:
    """Returns the step of a checkpoint, and which attempt at it this is."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not the name of a checkpoint")
    return int(match[1]), int(match[2] or 0)


def _latest_best(paths: Sequence[Path]) -> Path | None:
    for path in reversed(paths):
        with contextlib.suppress(CheckpointError):
            if read_manifest(path).best:
                return path
    return None
