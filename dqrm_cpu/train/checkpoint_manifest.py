"""What state.json says of a checkpoint: tensors, the shards that hold them, the state; checked before it is used."""

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from dqrm_cpu.base.decode import Json, UnreadableError, decoded, read_json
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.kernels.row_forms import ROW_TYPE_NAMES, num_columns
from dqrm_cpu.train.checkpoint_shard import DTYPES, DamagedCheckpointError, ShardTensor, damaged

STATE_FILE = "state.json"
FORMATS = (1, 2)
"""1: rows of tables are FP32; 2: they have fewer bits, which earlier versions must not take for anything else."""

_SHARD_NAME = re.compile(r"shard-\d{5,9}\.safetensors")
_DIFFERENCES_SHOWN = 10
_MOST_BYTES = 1 << 62  # of a tensor: sizes stay numbers that torch can hold


class TensorInfo(NamedTuple):
    """The type and the shape of a tensor."""

    dtype: str  # such as float32
    shape: tuple[int, ...]


class Piece(NamedTuple):
    """Rows of one tensor within a shard; a scalar counts as one row."""

    tensor: str
    first_row: int
    num_rows: int


class CheckpointShard(NamedTuple):
    """A file of a checkpoint, and the rows of tensors that it holds."""

    file: str
    num_bytes: int
    crc32: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class CheckpointManifest:
    """The contents of state.json."""

    step: int
    best: bool
    tensors: Mapping[str, TensorInfo]
    shards: tuple[CheckpointShard, ...]
    state: Mapping[str, Json]
    config: Mapping[str, Json] | None = None  # dotted keys; None in checkpoints of earlier versions

    @property
    def num_bytes(self) -> int:
        """The bytes of all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    def parts(self, shard: CheckpointShard) -> list[ShardTensor]:
        """Lists the tensors that the file of a shard should hold."""
        return [self._part(piece) for piece in shard.pieces]

    def _part(self, piece: Piece) -> ShardTensor:
        dtype, shape = self.tensors[piece.tensor]
        if shape:
            shape = (piece.num_rows, *shape[1:])
        return ShardTensor(piece.tensor, dtype, shape or (1,), math.prod(shape) * DTYPES[dtype][1].itemsize)


class _Document(msgspec.Struct):
    """state.json: its checksum is that of the body as sorted, compact JSON."""

    crc32: int
    body: dict[str, Any]


class _Body(msgspec.Struct):
    """The body of both formats."""

    step: int
    best: bool
    tensors: dict[str, TensorInfo]
    shards: list[tuple[str, int, int, list[Piece]]]
    state: dict[str, Any]
    config: dict[str, Any] | None = None


def read_manifest(folder: Path) -> CheckpointManifest:
    """Reads what a checkpoint holds, without its tensors: pieces of shards cover each of them exactly once."""
    path = folder / STATE_FILE
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint at {folder}; give the path of a step-... folder")
    try:
        document = decoded(read_json(path), _Document)
        intact = document.crc32 == zlib.crc32(canonical(document.body))
    except (OSError, UnreadableError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {_clause(error)}; use another checkpoint") from error
    if not intact:
        raise DamagedCheckpointError(f"{path} does not match its own checksum; use another checkpoint")
    version = document.body.get("format")
    if version not in FORMATS:
        shown = str(version)[:20]
        raise CheckpointError(f"{path} has format {shown}, not 1 or 2; use the dqrm-cpu that wrote it")
    try:
        body = decoded(document.body, _Body)
    except UnreadableError as error:
        raise damaged(path, f"it {error}") from error
    shards = tuple(CheckpointShard(file, size, crc32, tuple(pieces)) for file, size, crc32, pieces in body.shards)
    for mistake in _mistakes(body.step, body.tensors, shards):
        raise damaged(path, mistake)
    return CheckpointManifest(body.step, body.best, body.tensors, shards, body.state, body.config)


def format_of(tensors: Mapping[str, TensorInfo]) -> int:
    """Returns the format of a checkpoint with these tensors."""
    return 1 if all(info.dtype == "float32" for name, info in tensors.items() if is_table(name)) else 2


def table_info(form: str, num_rows: int, dim: int) -> TensorInfo:
    """Returns what the rows of tables are as a tensor of a checkpoint; `form`: the setting train.master_rows."""
    return TensorInfo(ROW_TYPE_NAMES[form], (num_rows, num_columns(form, dim)))


def is_table(name: str) -> bool:
    """Tells whether a tensor has the rows of tables."""
    return name.split(".")[0] == "tables"


def _clause(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"it {error}" if isinstance(error, UnreadableError) else "it is nested too deeply"


def _mistakes(step: int, tensors: Mapping[str, TensorInfo], shards: Sequence[CheckpointShard]) -> Iterator[str]:
    """Yields what is wrong with a manifest, in clauses of a message."""
    if not 0 <= step < 1 << 62:
        yield "its step is no number of steps"
    for name, info in tensors.items():
        yield from _tensor_mistakes(name[:80], info)
    if len({shard.file for shard in shards}) < len(shards):
        yield "it names a shard twice"
    for shard in shards:
        if not _SHARD_NAME.fullmatch(shard.file):
            yield f"it names a file that is no shard, {shard.file[:80]!r}"
        if len({piece.tensor for piece in shard.pieces}) < len(shard.pieces):
            yield f"it has two pieces of one tensor in {shard.file}"
    yield from _cover_mistakes(tensors, [piece for shard in shards for piece in shard.pieces])


def _tensor_mistakes(name: str, info: TensorInfo) -> Iterator[str]:
    if info.dtype not in DTYPES:
        yield f"{name} has the type {info.dtype[:20]}, which no checkpoint has"
    elif any(size < 0 for size in info.shape) or 8 * math.prod(info.shape) > _MOST_BYTES:
        yield f"{name} has an impossible shape"


def _cover_mistakes(tensors: Mapping[str, TensorInfo], pieces: Sequence[Piece]) -> Iterator[str]:
    """Pieces are in the order of rows: each begins where the one before ended, the last ends with the tensor."""
    covered = dict.fromkeys(tensors, 0)
    for piece in pieces:
        if covered.get(piece.tensor) != piece.first_row or piece.num_rows < 1:
            yield f"its pieces of {piece.tensor[:80]} do not cover each row once"
        else:
            covered[piece.tensor] += piece.num_rows
    for name, (_, shape) in tensors.items():
        num_rows = shape[0] if shape else 1
        if covered[name] != (num_rows if math.prod(shape) else 0):
            yield f"its pieces of {name[:80]} do not cover each row once"


def require_tensors(
    folder: Path, manifest: CheckpointManifest, wanted: Mapping[str, TensorInfo], allow_unused: bool
) -> None:
    """Raises CheckpointError where a checkpoint lacks tensors that are wanted; or has others, unless `allow_unused`."""
    stored = manifest.tensors
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


def canonical(body: object) -> bytes:
    """Returns the text that the checksum is of."""
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
