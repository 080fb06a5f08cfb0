"""What a prepared data set consists of: its manifest names the shards and says where they came from.

It is the last file to be written: a folder without it holds nothing that can be trusted.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.base.files import replace_file
from dqrm_cpu.data.store.identity import DataIdentity
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.errors import DataError

FORMAT = 1
"""Raised whenever an older version could not read the folder."""

FILE_NAME = "manifest.json"
_FORMATS = 1 << 16
PART_NAMES = ("train", "validation", "test")

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True)
class ShardFile:
    """One file of rows. `crc32` is that of its header, which holds the checksum of every section."""

    name: str  # of the file, within the folder of the manifest
    rows: int
    bytes: int
    crc32: int
    clicks: int  # rows whose label is 1


@dataclass(frozen=True)
class SourceFile:
    """A raw file that rows came from; `digest` reads algorithm:hexadecimal, or is empty where none was taken."""

    path: str
    bytes: int
    digest: str
    rows: int


@dataclass(frozen=True)
class ColumnStatistics:
    """Counts of one column; None where it was not counted. Values are those stored: log(x + 1) in a dense column."""

    name: str
    missing: int | None = None
    clamped: int | None = None  # negative numbers that were taken as 0
    distinct: int | None = None  # categories, as found
    rare: int | None = None  # cells whose category was too rare for a row of its own
    unseen: int | None = None  # cells whose category the vocabulary does not have
    minimum: float | None = None
    mean: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class Manifest:
    """A prepared data set. `parts` has each of PART_NAMES; `table_rows[k]` is above every id of column k."""

    format: int
    schema: Schema
    table_rows: tuple[int, ...]
    parts: Mapping[str, tuple[ShardFile, ...]]
    columns: tuple[ColumnStatistics, ...]  # dense, then categorical
    sources: tuple[SourceFile, ...]
    settings: Mapping[str, Json]  # what was asked for when the data set was prepared
    version: str  # of the code that prepared it
    identity: DataIdentity | None = None  # None: of other programs or earlier versions, what an id means is not known

    def num_rows(self, part: str) -> int:
        """Rows of one of PART_NAMES."""
        return sum(shard.rows for shard in self.parts[part])

    def num_clicks(self, part: str) -> int:
        """Rows of a part whose label is 1."""
        return sum(shard.clicks for shard in self.parts[part])

    def digest(self) -> str:
        """Names the rows themselves, wherever they lie and whatever they came from: 16 hexadecimal digits."""
        shards = {part: [[s.rows, s.bytes, s.crc32] for s in self.parts[part]] for part in PART_NAMES}
        said = [self.format, self.schema.dense, self.schema.categorical, self.table_rows, shards]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


_Text = Annotated[str, msgspec.Meta(max_length=4096)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
_Crc32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_TableRows = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
_Names = Annotated[tuple[_Text, ...], msgspec.Meta(max_length=1 << 16)]
FileName = Annotated[str, msgspec.Meta(pattern=r"^(?!\.\.?$)[^/\x00]+$", max_length=255)]
"""Of a file in the folder itself, and of no other."""


class _Shard(msgspec.Struct):
    name: FileName
    rows: _Count
    bytes: _Count
    crc32: _Crc32
    clicks: _Count


class _Source(msgspec.Struct):
    path: _Text
    bytes: _Count
    digest: _Text
    rows: _Count


class _Statistics(msgspec.Struct):
    """Of one column; what was not counted may be left out."""

    name: _Text
    missing: _Count | None = None
    clamped: _Count | None = None
    distinct: _Count | None = None
    rare: _Count | None = None
    unseen: _Count | None = None
    minimum: float | None = None
    mean: float | None = None
    maximum: float | None = None


class _Schema(msgspec.Struct):
    dense: _Names
    categorical: _Names


class _Identity(msgspec.Struct):
    schema: _Text
    vocabulary: _Text


class _Document(msgspec.Struct):
    """The manifest as a file may hold it: what each field can be at all, whatever the others say."""

    format: Annotated[int, msgspec.Meta(ge=FORMAT, le=FORMAT)]
    schema: _Schema
    table_rows: tuple[_TableRows, ...]
    parts: dict[_Text, tuple[_Shard, ...]]
    columns: tuple[_Statistics, ...]
    sources: tuple[_Source, ...]
    settings: dict[str, Any]
    version: _Text
    identity: _Identity | None = None

    def manifest(self, path: Path) -> Manifest:
        """Checked as a whole; `path` is named where it contradicts itself."""
        try:
            manifest = Manifest(
                format=FORMAT,
                schema=Schema(self.schema.dense, self.schema.categorical),
                table_rows=self.table_rows,
                parts={name: tuple(map(_shard_file, shards)) for name, shards in self.parts.items()},
                columns=tuple(ColumnStatistics(**msgspec.structs.asdict(column)) for column in self.columns),
                sources=tuple(SourceFile(**msgspec.structs.asdict(source)) for source in self.sources),
                settings=self.settings,
                version=self.version,
                identity=None
                if self.identity is None
                else DataIdentity(self.identity.schema, self.identity.vocabulary),
            )
            _check_complete(manifest)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        return manifest


def _shard_file(shard: _Shard) -> ShardFile:
    return ShardFile(**msgspec.structs.asdict(shard))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Completes a data set: call it once all its shards are written."""
    _check_complete(manifest)
    body = json.loads(json.dumps(asdict(manifest)))
    document = {"crc32": _checksum(body), **body}
    replace_file(directory / FILE_NAME, [(json.dumps(document, indent=1) + "\n").encode()], DataError)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a folder; DataError when it is missing, damaged or of another version."""
    path = directory / FILE_NAME
    try:
        document = read_json(path)
        checksum, found = document.pop("crc32"), document["format"]
        if isinstance(found, int) and 0 <= found < _FORMATS and found != FORMAT:
            raise DataError(
                f"{path} has format {found}, this version reads {FORMAT}; prepare the data set again, or use that "
                "version"
            )
        body = decoded(document, _Document)
        intact = checksum == _checksum(document)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(_missing(directory)) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); may you read it?") from None
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path} is not a manifest or was cut short; prepare the data set again") from None
    except UnreadableError as error:
        raise DataError(f"{path} is not a manifest or was cut short: it {error}; prepare the data set again") from None
    if not intact:
        raise DataError(f"{path} does not match its own checksum; restore it, or prepare the data set again")
    return body.manifest(path)


def holds_manifest(directory: Path) -> bool:
    """Whether a folder claims to be a prepared data set."""
    return (directory / FILE_NAME).is_file()


def _missing(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory}: there is no such folder; give the folder that dqrm-cpu prepare or data convert wrote"
    return (
        f"{directory} holds no {FILE_NAME}: it is no prepared data set, or its preparation has not finished; "
        "run dqrm-cpu prepare (it goes on where it stopped)"
    )


def _checksum(body: Mapping[str, Json]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def _check_complete(manifest: Manifest) -> None:
    schema = manifest.schema
    if len(manifest.table_rows) != schema.num_tables:
        raise DataError(
            f"the manifest has {len(manifest.table_rows)} table sizes for {schema.num_tables} categorical columns; "
            "give one for each"
        )
    if set(manifest.parts) != set(PART_NAMES):
        raise DataError(f"the manifest has parts {', '.join(manifest.parts)}; it must have {', '.join(PART_NAMES)}")
    if tuple(column.name for column in manifest.columns) != (*schema.dense, *schema.categorical):
        raise DataError("the manifest's column statistics do not follow its schema; give one for each column, in order")
    for shards in manifest.parts.values():
        for shard in shards:
            # A label and the dense values of each row: what the file takes at the very least.
            if shard.rows * (1 + 4 * schema.num_dense) > shard.bytes or shard.clicks > shard.rows:
                raise DataError(
                    f"the manifest gives {shard.name} {shard.rows:,} rows and {shard.clicks:,} clicks in "
                    f"{shard.bytes:,} bytes, which cannot be"
                )
