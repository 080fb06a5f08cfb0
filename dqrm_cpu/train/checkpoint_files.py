"""What one checkpoint folder holds: tensors in safetensors shards of bounded size, and state.json with their checksums.

A large tensor is split by rows over several shards and moves shard by shard, so that writing or reading tables of many
GB needs about one shard of extra memory. Checksums are CRC-32: they guard against damage, not against forgery, and are
fast on machines without SHA instructions too.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dqrm_cpu.base.files import sync_folder
from dqrm_cpu.errors import CheckpointError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

SHARD_BYTES = 256 << 20
_STATE_FILE = "state.json"
_FORMAT = 1
_READ_BYTES = 1 << 20
_DIFFERENCES_SHOWN = 10


class DamagedCheckpointError(CheckpointError):
    """Files are missing, cut short or changed since they were written; an earlier checkpoint may still be good."""


class TensorInfo(NamedTuple):
    dtype: str  # such as float32
    shape: tuple[int, ...]


class Piece(NamedTuple):
    """Rows of one tensor within a shard; a scalar counts as one row."""

    tensor: str
    first_row: int
    num_rows: int


class Shard(NamedTuple):
    file: str
    num_bytes: int
    crc32: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Manifest:
    """The contents of state.json."""

    step: int
    best: bool
    tensors: Mapping[str, TensorInfo]
    shards: tuple[Shard, ...]
    state: Mapping[str, JSON]


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def write_folder(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, JSON], best: bool, shard_bytes: int
) -> None:
    """Fills an empty folder and forces it to the disk; state.json comes last."""
    shards = []
    for number, pieces in enumerate(_plan(tensors, shard_bytes)):
        shards.append(_write_shard(folder / f"shard-{number:05d}.safetensors", pieces, tensors))
    described = {name: _describe(tensor) for name, tensor in tensors.items()}
    _write_manifest(folder / _STATE_FILE, Manifest(step, best, described, tuple(shards), state))
    sync_folder(folder)


def read_folder(folder: Path, into: Mapping[str, Tensor], *, allow_unused: bool = False) -> Mapping[str, JSON]:
    """Copies the tensors into those of `into` and returns the state.

    Every shard is checked before it is copied; after a DamagedCheckpointError earlier shards may have been copied
    already. With `allow_unused`, tensors that `into` does not name are passed over and their shards not read.
    """
    manifest = read_manifest(folder)
    _check_same(folder, manifest.tensors, into, allow_unused)
    for shard in manifest.shards:
        wanted = [piece for piece in shard.pieces if piece.tensor in into]
        if wanted:
            _read_shard(folder / shard.file, shard, wanted, into)
    return manifest.state


def read_manifest(folder: Path) -> Manifest:
    """What a checkpoint holds, without its tensors."""
    path = folder / _STATE_FILE
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint at {folder}; give the path of a step-... folder")
    try:
        document = json.loads(path.read_bytes())
        body = document["body"]
        intact = document["crc32"] == zlib.crc32(_canonical(body))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read ({error}); use another checkpoint") from error
    if not intact:
        raise DamagedCheckpointError(f"{path} does not match its own checksum; use another checkpoint")
    if body["format"] != _FORMAT:
        raise CheckpointError(f"{path} has format {body['format']}, not {_FORMAT}; use the dqrm-cpu that wrote it")
    return _manifest_of(body)


def _plan(tensors: Mapping[str, Tensor], shard_bytes: int) -> list[list[Piece]]:
    """Fills one shard after another; only a single row larger than a shard exceeds it."""
    shards: list[list[Piece]] = []
    free = 0
    for name, tensor in tensors.items():
        rows = _as_rows(tensor)
        row_bytes = math.prod(rows.shape[1:]) * rows.element_size()
        first = 0
        while row_bytes and first < rows.shape[0]:
            if free < row_bytes:
                shards.append([])
                free = shard_bytes
            taken = min(max(free // row_bytes, 1), rows.shape[0] - first)
            shards[-1].append(Piece(name, first, taken))
            free = max(free - taken * row_bytes, 0)
            first += taken
    return shards


def _write_shard(path: Path, pieces: Sequence[Piece], tensors: Mapping[str, Tensor]) -> Shard:
    parts = {piece.tensor: _rows_of(piece, tensors).detach().cpu().contiguous() for piece in pieces}
    save_file(parts, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return Shard(path.name, path.stat().st_size, _crc32(path), tuple(pieces))


def _read_shard(path: Path, shard: Shard, wanted: Sequence[Piece], into: Mapping[str, Tensor]) -> None:
    try:
        intact = path.stat().st_size == shard.num_bytes and _crc32(path) == shard.crc32
        if not intact:
            raise DamagedCheckpointError(f"{path} is damaged: size or checksum changed; use another checkpoint")
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for piece in wanted:
                _rows_of(piece, into).copy_(file.get_tensor(piece.tensor))
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read ({error}); use another checkpoint") from error


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(1) if tensor.dim() == 0 else tensor


def _rows_of(piece: Piece, tensors: Mapping[str, Tensor]) -> Tensor:
    return _as_rows(tensors[piece.tensor]).narrow(0, piece.first_row, piece.num_rows)


def _describe(tensor: Tensor) -> TensorInfo:
    return TensorInfo(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def _check_same(folder: Path, stored: Mapping[str, TensorInfo], into: Mapping[str, Tensor], allow_unused: bool) -> None:
    wanted = {name: _describe(tensor) for name, tensor in into.items()}
    differences = [f"{name} is missing" for name in sorted(wanted.keys() - stored.keys())]
    if not allow_unused:
        differences += [f"{name} is not part of this model" for name in sorted(stored.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & stored.keys()):
        if wanted[name] != stored[name]:
            differences.append(f"{name} is {_text(stored[name])}, here {_text(wanted[name])}")
    if differences:
        shown, more = differences[:_DIFFERENCES_SHOWN], len(differences) - _DIFFERENCES_SHOWN
        rest = f"; and {more} more" if more > 0 else ""
        raise CheckpointError(
            f"the checkpoint {folder} belongs to another model: {'; '.join(shown)}{rest}; "
            "use the configuration that it was saved with"
        )


def _text(info: TensorInfo) -> str:
    return f"{info.dtype}{list(info.shape)}"


def _write_manifest(path: Path, manifest: Manifest) -> None:
    body = {
        "format": _FORMAT,
        "step": manifest.step,
        "best": manifest.best,
        "tensors": manifest.tensors,
        "shards": [[shard.file, shard.num_bytes, shard.crc32, shard.pieces] for shard in manifest.shards],
        "state": manifest.state,
    }
    with path.open("w", encoding="utf-8") as file:
        # Not strict JSON where the state holds NaN or an infinity: a state must come back exactly as it was.
        json.dump({"crc32": zlib.crc32(_canonical(body)), "body": body}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _manifest_of(body: Mapping[str, Any]) -> Manifest:
    shards = [
        Shard(file, num_bytes, crc32, tuple(Piece(*piece) for piece in pieces))
        for file, num_bytes, crc32, pieces in body["shards"]
    ]
    tensors = {name: TensorInfo(dtype, tuple(shape)) for name, (dtype, shape) in body["tensors"].items()}
    return Manifest(body["step"], body["best"], tensors, tuple(shards), body["state"])


def _canonical(body: object) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _crc32(path: Path) -> int:
    checksum = 0
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            checksum = zlib.crc32(buffer[:size], checksum)
    return checksum
