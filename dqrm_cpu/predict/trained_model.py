"""A trained model as somebody names it: a run's folder or a packed file; and the data set whose ids it knows."""

from dataclasses import dataclass, replace
from pathlib import Path

from dqrm_cpu.config import Config
from dqrm_cpu.config.load import load_run_config
from dqrm_cpu.config.recorded import differences, require_recorded
from dqrm_cpu.data.store.manifest import FILE_NAME, Manifest, holds_manifest, read_manifest
from dqrm_cpu.data.store.run_data import SYNTHETIC, fingerprint_of
from dqrm_cpu.data.store.schema import DataIdentity
from dqrm_cpu.errors import CheckpointError, ConfigError, DataError
from dqrm_cpu.export.packed_model import looks_packed, read_packed
from dqrm_cpu.train.checkpoint_folder import checkpoints_to_score, find_checkpoint, newest_config, read_state
from dqrm_cpu.train.run_place import (
    CONFIG_FILE,
    checkpoints_folder,
    data_of_run,
    member_folder,
    members_of,
    no_run,
    other_version,
)
from dqrm_cpu.train.same_ids import TrainedIds, require_same_ids

_OF_MODEL = ("model.", "quant.", "data.sub_sample_rate", "data.negative_keep_rate", "data.evaluation_keep_rate")
"""Begin the settings that decide what the probabilities are; what `evaluate` refuses too where they were changed."""


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint or a packed file, of which nothing but the description has been read."""

    path: Path
    config: Config  # on the CPU
    ids: TrainedIds
    run_dir: Path | None  # of a packed file: the run's folder that it lies in, if it does
    is_packed: bool
    warnings: tuple[str, ...] = ()
    is_exported: bool = False  # a packed file that says what raw rows are, by `dqrm-cpu export`
    members: tuple["TrainedModel", ...] = ()  # of an ensemble, whose `path` is its folder


def find_model(path: Path, checkpoint: str = "best") -> TrainedModel:
    """Finds the model of a run in a folder (`checkpoint`: best, last or the folder of one), or of a packed file."""
    if path.is_dir() and not (path / FILE_NAME).exists():
        return _ensemble(path, checkpoint) if members_of(path) else _run_model(path, checkpoint)
    if path.is_file() and looks_packed(path):
        return _packed_model(path)
    what = "is a data set" if path.is_dir() else "is no model" if path.exists() else "is not there"
    raise ConfigError(f"{path} {what}; first name the model: the folder of a run, or a packed file (.safetensors)")


def _ensemble(run_dir: Path, checkpoint: str) -> TrainedModel:
    count = load_run_config(run_dir / CONFIG_FILE, {}, None)[0].config.ensemble
    paths = checkpoints_to_score(run_dir, checkpoint, count)
    members = tuple(_run_model(member_folder(run_dir, number + 1), str(path)) for number, path in enumerate(paths))
    first = members[0]
    for one in members:
        if (one.ids.identity, one.ids.fingerprint) != (first.ids.identity, first.ids.fingerprint):
            raise CheckpointError(
                f"{one.run_dir} was trained on other data than {first.run_dir}: they are no ensemble; train it again"
            )
    return replace(first, path=run_dir, run_dir=run_dir, members=members)


def _run_model(run_dir: Path, checkpoint: str) -> TrainedModel:
    recorded = newest_config(checkpoints_folder(run_dir))
    if recorded is None and not (run_dir / CONFIG_FILE).exists():
        raise ConfigError(no_run(run_dir, ", or a packed file"))
    try:
        loaded, warnings = load_run_config(run_dir / CONFIG_FILE, {}, recorded)
    except ConfigError as error:
        raise ConfigError(f"{error}{other_version(run_dir)}") from error
    if recorded is not None:
        changes = differences(recorded, loaded.config)
        advice = f"correct {run_dir / CONFIG_FILE}: a model is scored as it was trained"
        require_recorded(recorded, [change for change in changes if change.key.startswith(_OF_MODEL)], advice)
    path = find_checkpoint(checkpoints_folder(run_dir), checkpoint)
    state = read_state(path)
    ids = TrainedIds(path, DataIdentity.from_text(str(state.get("identity", ""))), str(state.get("data", "")))
    return TrainedModel(path, replace(loaded.config, device="cpu"), ids, run_dir, False, tuple(warnings))


def _packed_model(path: Path) -> TrainedModel:
    packed = read_packed(path)
    folder = path.absolute().parent.parent  # of RUN/packed and RUN/compressed
    run_dir = folder if (folder / CONFIG_FILE).exists() else None
    ids = TrainedIds(path, DataIdentity.from_text(packed.identity), "")
    # What its rows were trained in says nothing of the file: they are read as the values of their codes.
    config = replace(packed.config, device="cpu", train=replace(packed.config.train, master_rows="fp32"))
    return TrainedModel(path, config, ids, run_dir, True, packed.warnings, packed.is_exported)


def data_of_model(model: TrainedModel, given: Path | None) -> tuple[Path, Manifest, str | None]:
    """Finds the data set with the vocabulary of a model: that which is `given`, or that which it was trained on.

    Returns its folder and manifest, and a warning where nobody can check that the vocabulary is the model's; DataError
    where it is another one.
    """
    folder = given or _recorded_data(model)
    manifest = read_manifest(folder)
    return (
        folder,
        manifest,
        require_same_ids(model.ids, str(folder), manifest.identity, fingerprint_of(manifest.digest())),
    )


def _recorded_data(model: TrainedModel) -> Path:
    source = model.config.data.source
    if source == SYNTHETIC:
        raise DataError(
            f"{model.path} was trained on generated clicks, which have neither a schema nor a vocabulary: nothing says "
            "what raw rows mean to it; train on a data set that dqrm-cpu prepare wrote"
        )
    if model.run_dir is not None:
        return data_of_run(source, model.run_dir)
    if not holds_manifest(Path(source)):
        raise DataError(
            f"{model.path} was trained on {source}, and there is no data set there; give it, or another one with the "
            "same vocabulary, with --data DIR"
        )
    return Path(source)


def require_shape(model: TrainedModel, folder: Path, manifest: Manifest) -> None:
    """Raises DataError where a data set has other columns than a model, or larger tables: ids would point nowhere."""
    mine, theirs = model.config.model.table_rows, manifest.table_rows
    num_dense = len(manifest.schema.features)
    if model.config.model.num_dense != num_dense or len(mine) != len(theirs):
        what = f"{num_dense} dense and {len(theirs)} categorical columns"
        other = f"{model.config.model.num_dense} and {len(mine)}"
    elif any(few < many for few, many in zip(mine, theirs, strict=True)):
        what, other = f"tables of {sum(theirs):,} rows", f"{sum(mine):,}"
    else:
        return
    raise DataError(
        f"{folder} has {what}, {model.path} {other}; give the data set that the model was trained on, or one that was "
        "prepared with its vocabulary"
    )


def lacks_activations(path: Path) -> CheckpointError:
    """Returns the error for a checkpoint that does not know the scales of what its layers read."""
    return CheckpointError(f"{path} has no scales of activations; take a checkpoint of the run itself")
