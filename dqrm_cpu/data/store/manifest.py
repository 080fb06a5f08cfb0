"""What a prepared data set consists of: its manifest names the shards and says where they came from.

It is the last file to be written: a folder without it holds nothing that can be trusted.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dqrm_cpu.base.files import replace_file
from dqrm_cpu.data.store.identity import DataIdentity
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.errors import DataError

FORMAT = 1
"""Raised whenever an older version could not read the folder."""

FILE_NAME = "manifest.json"
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
        document = json.loads(path.read_bytes())
        checksum = document.pop("crc32")
        found = int(document["format"])
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(_missing(directory)) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); may you read it?") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is not a manifest or was cut short; prepare the data set again") from None
    if found != FORMAT:
        raise DataError(
            f"{path} has format {found}, this version reads {FORMAT}; prepare the data set again, or use that version"
        )
    if checksum != _checksum(document):
        raise DataError(f"{path} does not match its own checksum; restore it, or prepare the data set again")
    return _parsed(path, document)


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


def _parsed(path: Path, body: Mapping[str, Any]) -> Manifest:
    try:
        manifest = Manifest(
            format=FORMAT,
            schema=Schema(tuple(body["schema"]["dense"]), tuple(body["schema"]["categorical"])),
            table_rows=tuple(body["table_rows"]),
            parts={name: tuple(ShardFile(**shard) for shard in shards) for name, shards in body["parts"].items()},
            columns=tuple(ColumnStatistics(**column) for column in body["columns"]),
            sources=tuple(SourceFile(**source) for source in body["sources"]),
            settings=body["settings"],
            version=body["version"],
            identity=DataIdentity(**body["identity"]) if body.get("identity") else None,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} lacks or mistakes a field ({error}); prepare the data set again") from error
    _check_complete(manifest)
    return manifest


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
