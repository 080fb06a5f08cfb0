"""What one checkpoint folder holds: tensors in safetensors shards of bounded size, and state.json with their checksums.

A large tensor is split by rows over several shards and moves shard by shard, so that writing or reading tables of many
GB needs about one shard of extra memory. Checksums are CRC-32: they guard against damage, not against forgery, and are
fast on machines without SHA instructions too.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from dqrm_cpu.base.decode import Json
from dqrm_cpu.base.files import sync_file, sync_folder
from dqrm_cpu.train.checkpoint_manifest import (
    STATE_FILE,
    CheckpointManifest,
    CheckpointShard,
    Piece,
    TensorInfo,
    canonical,
    format_of,
    read_manifest,
    require_tensors,
)
from dqrm_cpu.train.checkpoint_rows import read_wanted
from dqrm_cpu.train.checkpoint_shard import BFLOAT16
from dqrm_cpu.train.held_tensor import HeldTensor, Stored
from dqrm_cpu.train.working import Advance, untold

SHARD_BYTES = 256 << 20
_READ_BYTES = 1 << 20


def write_folder(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Json],
    best: bool,
    shard_bytes: int,
    config: Mapping[str, Json] | None = None,
    advance: Advance = untold,
) -> None:
    """Fills an empty folder and forces it to the disk; state.json comes last. `advance` hears of bytes."""
    shards = [shard for _, shard in write_shards(folder, tensors, shard_bytes, 0, advance)]
    write_state(folder, CheckpointManifest(step, best, describe_tensors(tensors), tuple(shards), state, config))


def write_shards(
    folder: Path, tensors: Mapping[str, Stored], shard_bytes: int, rank: int, advance: Advance = untold
) -> list[tuple[int, CheckpointShard]]:
    """Writes the shards that are a rank's to write, with their numbers: whole tensors are rank 0's."""
    written = []
    for number, (writer, pieces) in enumerate(_plan_ranks(tensors, shard_bytes)):
        if writer == rank:
            written.append((number, _write_shard(folder / f"shard-{number:05d}.safetensors", pieces, tensors)))
            advance(written[-1][1].num_bytes)
    return written


def write_state(folder: Path, manifest: CheckpointManifest) -> None:
    """Writes state.json, once every shard lies in the folder, and forces their names to the disk."""
    _write_manifest(folder / STATE_FILE, manifest)
    sync_folder(folder)


def describe_tensors(tensors: Mapping[str, Stored]) -> dict[str, TensorInfo]:
    """Returns the types and shapes of whole tensors."""
    return {name: _describe(tensor) for name, tensor in tensors.items()}


def load_checkpoint(
    folder: Path, into: Mapping[str, Stored], *, allow_unused: bool = False, advance: Advance = untold
) -> Mapping[str, Json]:
    """Copies the tensors of the checkpoint in `folder` into those of `into`, and returns its state.

    Names, shapes and dtypes must match. Every shard is checked before it is copied; after a DamagedCheckpointError
    earlier shards may have been copied already. Shards with no row that is held here are not read. With
    `allow_unused`, tensors that `into` does not name, such as the optimizer's, are passed over and their shards not
    read. `advance` hears of the bytes of each shard that is done, `num_bytes` of the manifest in all.
    """
    manifest = read_manifest(folder)
    require_tensors(folder, manifest, describe_tensors(into), allow_unused)
    with torch.no_grad():
        for piece, stored in read_wanted(folder, manifest, lambda piece: _is_held(piece, into), advance):
            target, rows = into[piece.tensor], to_tensor(stored, manifest.tensors[piece.tensor].dtype)
            if isinstance(target, HeldTensor):
                target.fill(piece.first_row, rows)
            else:
                _rows_of(piece, into).copy_(rows)
    return manifest.state


def to_tensor(rows: NDArray[Any], dtype: str) -> Tensor:
    """Returns rows that a checkpoint stores in a type of torch's name, in the same memory."""
    found = torch.from_numpy(rows)
    return found.view(torch.bfloat16) if dtype == BFLOAT16 else found


def _is_held(piece: Piece, into: Mapping[str, Stored]) -> bool:
    target = into.get(piece.tensor)
    return target.holds_any(piece.first_row, piece.num_rows) if isinstance(target, HeldTensor) else target is not None


def _plan_ranks(tensors: Mapping[str, Stored], shard_bytes: int) -> list[tuple[int, list[Piece]]]:
    """Returns what is in each shard, and which rank writes it; every rank comes to the same."""
    whole = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    planned = [(0, pieces) for pieces in _plan(whole, shard_bytes)]
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            continue
        row_bytes = math.prod(tensor.shape[1:]) * tensor.tensor.element_size()
        at_once = max(shard_bytes // row_bytes, 1)
        for part in tensor.owned:
            end = part.first_row + part.num_rows
            for first in range(part.first_row, end, at_once):
                planned.append((part.rank, [Piece(name, first, min(at_once, end - first))]))
    return planned


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


def _write_shard(path: Path, pieces: Sequence[Piece], tensors: Mapping[str, Stored]) -> CheckpointShard:
    parts = {piece.tensor: _rows_of(piece, tensors).detach().cpu().contiguous() for piece in pieces}
    save_file(parts, path)
    sync_file(path)
    return CheckpointShard(path.name, path.stat().st_size, _crc32(path), tuple(pieces))


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(1) if tensor.dim() == 0 else tensor


def _rows_of(piece: Piece, tensors: Mapping[str, Stored]) -> Tensor:
    tensor = tensors[piece.tensor]
    if isinstance(tensor, HeldTensor):
        return tensor.rows(piece.first_row, piece.num_rows)
    return _as_rows(tensor).narrow(0, piece.first_row, piece.num_rows)


def _describe(tensor: Stored) -> TensorInfo:
    dtype = tensor.dtype if isinstance(tensor, Tensor) else tensor.tensor.dtype
    return TensorInfo(str(dtype).removeprefix("torch."), tuple(tensor.shape))


def _write_manifest(path: Path, manifest: CheckpointManifest) -> None:
    body: dict[str, object] = {
        "format": format_of(manifest.tensors),
        "step": manifest.step,
        "best": manifest.best,
        "tensors": manifest.tensors,
        "shards": [[shard.file, shard.num_bytes, shard.crc32, shard.pieces] for shard in manifest.shards],
        "state": manifest.state,
    }
    if manifest.config is not None:
        body["config"] = manifest.config
    with path.open("w", encoding="utf-8") as file:
        # Not strict JSON where the state holds NaN or an infinity: a state must come back exactly as it was.
        json.dump({"crc32": zlib.crc32(canonical(body)), "body": body}, file, indent=1)
    sync_file(path)


def _crc32(path: Path) -> int:
    checksum = 0
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            checksum = zlib.crc32(buffer[:size], checksum)
    return checksum
