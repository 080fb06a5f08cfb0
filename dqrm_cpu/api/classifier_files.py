"""The folder of a fitted classifier: what it knows of its columns, the vocabulary, and the model."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.api.columns import Feature
from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.base.files import making_folder, replace_file
from dqrm_cpu.data.store.manifest import PART_NAMES, read_manifest
from dqrm_cpu.errors import ConfigError, DataError
from dqrm_cpu.export.write import packed_path
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.run_place import checkpoints_folder

FORMAT = 1
"""Raised whenever an older version could not read the folder."""

_FILE = "classifier.json"
_CLASS_KINDS = "biufU"


@dataclass(frozen=True)
class FittedState:
    """The columns, classes and parameters of a fitted classifier, which its model does not hold."""

    format: int
    features: tuple[Feature, ...]
    classes: tuple[bool | int | float | str, ...]
    class_type: str  # of NumPy
    is_named: bool  # the rows came with names of columns
    params: dict[str, Any]

    @classmethod
    def of(cls, features: Sequence[Feature], classes: NDArray[Any], is_named: bool, params: Mapping[str, Any]) -> Self:
        """Makes the state; ConfigError where a class or a parameter is nothing that JSON has."""
        kinds = {type(label) for label in classes.tolist()}
        if classes.dtype.kind not in _CLASS_KINDS and kinds != {str}:
            raise ConfigError(f"y holds labels of the type {classes.dtype}; give numbers, texts or booleans")
        try:
            plain = json.loads(json.dumps(dict(params), default=_plain))
        except TypeError as error:
            raise ConfigError(f"a parameter of the classifier cannot be kept: {error}") from None
        return cls(FORMAT, tuple(features), tuple(classes.tolist()), classes.dtype.str, is_named, plain)

    def class_array(self) -> NDArray[Any]:
        """Returns both classes as an array of the type that y had."""
        return np.array(self.classes, dtype=np.dtype(self.class_type))


def write_state(folder: Path, state: FittedState) -> None:
    """Writes the state, whole or not at all."""
    replace_file(folder / _FILE, [(json.dumps(asdict(state), indent=1) + "\n").encode()], DataError)


def load_state(folder: Path) -> FittedState:
    """Reads what `write_state` wrote; DataError where it is not there or damaged."""
    path = folder / _FILE
    try:
        document = read_json(path)
        if isinstance(document, dict) and document.get("format") != FORMAT:
            raise UnreadableError(f"has format {document.get('format')}, this version reads {FORMAT}")
        state = decoded(document, FittedState)
        if np.dtype(state.class_type).kind not in _CLASS_KINDS + "O" or len(state.classes) != 2:
            raise UnreadableError("does not name two classes")
        return state
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder} holds no classifier; give a folder that DqrmClassifier.save wrote") from None
    except (OSError, UnreadableError, TypeError) as error:
        raise DataError(f"{path} cannot be read (it {error}); save the classifier again") from error


def model_of(folder: Path) -> Path:
    """Returns the model in the folder: the packed file, or the run where it is in FP32."""
    packed = packed_path(folder / "run" / "packed", "dense")
    return packed if packed.exists() else folder / "run"


def save_fitted(fitted: Path, folder: Path) -> None:
    """Copies what predicting takes into a new folder; DataError where that is there already."""
    if folder.exists():
        raise DataError(f"{folder} is there already; give another name, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with making_folder(folder) as new:
            shutil.copy2(fitted / _FILE, new)
            data, manifest = fitted / "data", read_manifest(fitted / "data")
            rows = {shard.name for part in PART_NAMES for shard in manifest.parts[part]}
            shutil.copytree(data, new / "data", ignore=lambda place, names: rows & set(names))
            _copy_model(fitted / "run", new / "run")
    except OSError as error:
        raise DataError(f"the classifier could not be written to {folder}: {error}; give another place") from error


def _copy_model(run: Path, new: Path) -> None:
    new.mkdir()
    for file in run.iterdir():
        if file.is_file() and file.suffix in (".toml", ".json", ".jsonl"):
            shutil.copy2(file, new)
    packed = packed_path(run / "packed", "dense")
    if packed.exists():
        packed_path(new / "packed", "dense").parent.mkdir()
        shutil.copy2(packed, packed_path(new / "packed", "dense"))
    else:
        best = find_checkpoint(checkpoints_folder(run), "best")
        shutil.copytree(best, checkpoints_folder(new) / best.name)


def _plain(value: Any) -> Any:
    """Returns what JSON has for a value of NumPy or a path."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{value!r} is neither a number nor a text")
