"""The parent of a run: the checkpoint that `dqrm-cpu train --init-from` takes weights from, and whether they fit."""

from dataclasses import dataclass
from pathlib import Path

from dqrm_cpu.config import Config
from dqrm_cpu.config.load import load_config
from dqrm_cpu.config.recorded import RecordedConfig, differences, recorded_config
from dqrm_cpu.config.schema import flatten
from dqrm_cpu.config.setting import Value, value_text
from dqrm_cpu.data.store.run_data import find_data
from dqrm_cpu.data.store.schema import DataIdentity
from dqrm_cpu.errors import CheckpointError, ConfigError, DataError
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.checkpoint_manifest import STATE_FILE, CheckpointManifest, read_manifest
from dqrm_cpu.train.run_place import CONFIG_FILE, checkpoints_folder, require_one_model

_TABLE_ROWS = "model.table_rows"


@dataclass(frozen=True)
class ParentCheckpoint:
    """A checkpoint to begin with, and the settings of its run."""

    path: Path
    manifest: CheckpointManifest
    settings: RecordedConfig

    @property
    def table_rows(self) -> tuple[int, ...]:
        """The number of rows of each table."""
        rows = self.settings.values[_TABLE_ROWS]
        assert isinstance(rows, tuple)
        return tuple(int(count) for count in rows)

    @property
    def identity(self) -> DataIdentity | None:
        """The identity of the data set that gave the parent its ids; None where the checkpoint does not record it."""
        return DataIdentity.from_text(str(self.manifest.state.get("identity", "")))

    @property
    def fingerprint(self) -> str:
        """The rows that the run was trained on; empty where the checkpoint does not say it."""
        return str(self.manifest.state.get("data", ""))

    def find_data(self) -> Path | None:
        """Finds the folder of the data set that the run was trained on; None where it is gone."""
        try:
            return find_data(str(self.settings.values["data.source"]), run_of_checkpoint(self.path), self.fingerprint)
        except DataError:
            return None


def run_of_checkpoint(path: Path) -> Path:
    """Returns the folder of the run that a checkpoint belongs to, as long as it lies where it was written."""
    return path.absolute().parent.parent


def find_parent(place: Path) -> Path:
    """Finds the checkpoint that somebody names: that folder itself, or the best one of a run, else its last."""
    if (place / STATE_FILE).exists():
        return place
    if not place.is_dir():
        what = " is a file" if place.exists() else ": there is no such folder"
        raise ConfigError(f"--init-from {place}{what}; give a run, or one of its checkpoints")
    require_one_model(place)
    store = CheckpointStore(checkpoints_folder(place), keep=1)
    path = store.best() or store.newest()
    if path is None:
        raise CheckpointError(
            f"--init-from {place}: there is no checkpoint in it; give the folder of a run that dqrm-cpu train wrote, "
            "or of one of its checkpoints"
        )
    return path


def read_parent(place: Path) -> ParentCheckpoint:
    """Reads what the checkpoint at `place`, or the chosen one of a run there, says of itself."""
    path = find_parent(place)
    manifest = read_manifest(path)
    if manifest.config is not None:
        return ParentCheckpoint(path, manifest, recorded_config(path, manifest.config))
    file = run_of_checkpoint(path) / CONFIG_FILE  # of a version whose checkpoints did not record settings
    return ParentCheckpoint(path, manifest, RecordedConfig(path, flatten(load_config(None, file, {}))))


def require_same_architecture(parent: ParentCheckpoint, config: Config) -> None:
    """Raises a CheckpointError that names every setting of the model, but for sizes of tables, that is another."""
    wrong = [
        f"{change.key} {value_text(change.recorded)} there, {value_text(change.now)} here"
        for change in differences(parent.settings, config)
        if change.key.startswith("model.") and change.key != _TABLE_ROWS
    ]
    there, here = len(parent.table_rows), len(config.model.table_rows)
    if there != here:
        wrong.append(f"{there} tables (model.table_rows) there, {here} here")
    if wrong:
        raise CheckpointError(
            f"{parent.path} has another architecture: {'; '.join(wrong)}; leave those settings as the run has them "
            "(without --preset and --config they are), or train without --init-from"
        )


def same_scales(parent: ParentCheckpoint, config: Config) -> bool:
    """Says whether scales that the parent learned mean the same to this run."""
    now: dict[str, Value] = flatten(config)
    keys = ("quant.method", "quant.embedding_bits", "quant.mlp_bits", "quant.mlp_granularity")
    return all(parent.settings.values.get(key) == now[key] for key in keys)
