"""What one checkpoint folder holds: tensors in safetensors shards of bounded size, and state.json with their checksums.

A large tensor is split by rows over several shards and moves shard by shard, so that writing or reading tables of many
GB needs about one shard of extra memory. Checksums are CRC-32: they guard against damage, not against forgery, and are
fast on machines without SHA instructions too.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from dqrm_cpu.base.decode import Json
from dqrm_cpu.base.files import sync_file, sync_folder
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.kernels.master_rows import row_values
from dqrm_cpu.train.checkpoint_manifest import (
    STATE_FILE,
    CheckpointManifest,
    CheckpointShard,
    Piece,
    TensorInfo,
    canonical,
    format_of,
    is_table,
    read_manifest,
)
from dqrm_cpu.train.checkpoint_shard import ShardReader, damaged
from dqrm_cpu.train.held_tensor import HeldTensor, Stored
from dqrm_cpu.train.working import Advance, untold

SHARD_BYTES = 256 << 20
_READ_BYTES = 1 << 20
_DIFFERENCES_SHOWN = 10


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
    _check_same(folder, manifest.tensors, into, allow_unused)
    with torch.no_grad():
        for piece, rows in _read_pieces(folder, manifest, lambda piece: _is_held(piece, into), advance):
            target = into[piece.tensor]
            if isinstance(target, HeldTensor):
                target.fill(piece.first_row, rows)
            else:
                _rows_of(piece, into).copy_(rows)
    return manifest.state


def read_pieces(folder: Path, manifest: CheckpointManifest, names: Set[str]) -> Iterator[tuple[Piece, Tensor]]:
    """Yields the rows of the named tensors, shard after shard; a shard is checked before any of its rows come."""
    yield from _read_pieces(folder, manifest, lambda piece: piece.tensor in names)


def _read_pieces(
    folder: Path, manifest: CheckpointManifest, is_wanted: Callable[[Piece], bool], advance: Advance = untold
) -> Iterator[tuple[Piece, Tensor]]:
    for shard in manifest.shards:
        wanted = [piece for piece in shard.pieces if is_wanted(piece)]
        if wanted:
            with ShardReader(folder / shard.file, shard.num_bytes, manifest.parts(shard)) as file:
                _require_checksum(file, folder, shard)
                for piece in wanted:
                    yield piece, file.tensor(piece.tensor)
        advance(shard.num_bytes)


def require_intact(folder: Path, manifest: CheckpointManifest, advance: Advance = untold) -> None:
    """Reads every shard to its end and compares its checksum; DamagedCheckpointError where it is another one.

    `advance` hears of the bytes that were read.
    """
    for shard in manifest.shards:
        with ShardReader(folder / shard.file, shard.num_bytes, manifest.parts(shard)) as file:
            _require_checksum(file, folder, shard)
        advance(shard.num_bytes)


def _require_checksum(file: ShardReader, folder: Path, shard: CheckpointShard) -> None:
    if file.crc32() != shard.crc32:
        raise damaged(folder / shard.file, "its checksum changed")


def read_blocks(
    folder: Path, manifest: CheckpointManifest, tensor: str, first_row: int, num_rows: int, rows_at_once: int
) -> Iterator[Tensor]:
    """Yields rows of a tensor in their order, few at a time; checksums of shards are left to `require_intact`."""
    end = first_row + num_rows
    pieces = [(piece, shard) for shard in manifest.shards for piece in shard.pieces if piece.tensor == tensor]
    for piece, shard in sorted(pieces, key=lambda one: one[0].first_row):
        low, high = max(first_row, piece.first_row), min(end, piece.first_row + piece.num_rows)
        if low >= high:
            continue
        with ShardReader(folder / shard.file, shard.num_bytes, manifest.parts(shard)) as file:
            for begin in range(low, high, rows_at_once):
                last = min(begin + rows_at_once, high)
                yield file.rows(tensor, begin - piece.first_row, last - piece.first_row)


class RowReader:
    """Reads a few rows of a large checkpoint without the rest of it.

    Checksums of whole shards are left to whoever loads it to go on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest = read_manifest(folder)

    def read(self, tensor: str, first_row: int, num_rows: int) -> npt.NDArray[np.float32]:
        """Reads rows of a float32 tensor, or values of rows of tables in fewer bits, f32[num_rows, ...]."""
        dtype, shape = self._manifest.tensors.get(tensor, ("float32", (0,)))
        is_stored = is_table(tensor) and dtype in ("bfloat16", "uint8")
        there = max(min(first_row + num_rows, shape[0] if shape else 1) - max(first_row, 0), 0)
        if there != num_rows:
            raise CheckpointError(
                f"{self._folder} holds {there} of the {num_rows} rows from {first_row} of {tensor}; "
                "use another checkpoint"
            )
        if dtype != "float32" and not is_stored:
            raise CheckpointError(f"{tensor} is {dtype} in {self._folder}, not float32; use another checkpoint")
        end, parts = first_row + num_rows, [np.empty((0, *shape[1:]), dtype=np.float32)] if not num_rows else []
        for shard in self._manifest.shards:
            for piece in shard.pieces:
                low, high = max(first_row, piece.first_row), min(end, piece.first_row + piece.num_rows)
                if piece.tensor == tensor and low < high:
                    parts.append(self._rows(shard, tensor, low - piece.first_row, high - piece.first_row))
        return np.concatenate(parts)

    def _rows(self, shard: CheckpointShard, tensor: str, low: int, high: int) -> npt.NDArray[np.float32]:
        with ShardReader(self._folder / shard.file, shard.num_bytes, self._manifest.parts(shard)) as file:
            rows = file.rows(tensor, low, high)
            values: npt.NDArray[np.float32] = (row_values(rows) if is_table(tensor) else rows).numpy()
            return values


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


def _check_same(folder: Path, stored: Mapping[str, TensorInfo], into: Mapping[str, Stored], allow_unused: bool) -> None:
    wanted = describe_tensors(into)
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
