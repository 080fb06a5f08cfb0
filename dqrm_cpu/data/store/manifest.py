"""What a prepared data set consists of: its manifest names the shards and says where they came from.

It is the last file to be written: a folder without it holds nothing that can be trusted.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dqrm_cpu.base.decode import Json, UnreadableError, decoded, read_json
from dqrm_cpu.base.files import replace_file
from dqrm_cpu.data.store.schema import DataIdentity, Schema
from dqrm_cpu.data.store.transform import Text, Transform
from dqrm_cpu.errors import DataError

FORMAT = 1
"""Raised whenever an older version could not read the folder."""

FILE_NAME = "manifest.json"
_FORMATS = 1 << 16
PART_NAMES = ("train", "validation", "test")

FileName = Annotated[str, msgspec.Meta(pattern=r"^(?!\.\.?$)[^/\x00]+$", max_length=255)]
"""The name of a file in the folder itself, and of no other."""

# What a field can be at all, whatever the others say: a manifest may be of somebody else's making.
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
_Crc32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_TableRows = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]


@dataclass(frozen=True)
class ShardFile:
    """A file of rows. `crc32` is that of its header, which holds the checksum of every section."""

    name: FileName
    rows: _Count
    bytes: _Count
    crc32: _Crc32
    clicks: _Count  # rows whose label is 1


@dataclass(frozen=True)
class SourceFile:
    """A raw file that rows came from; `digest` reads algorithm:hexadecimal, or is empty where none was taken."""

    path: Text
    bytes: _Count
    digest: Text
    rows: _Count


@dataclass(frozen=True)
class ColumnStatistics:
    """Counts of a column; None where it was not counted.

    Values are log(x + 1) in a dense column, or those that are transformed in another way, as they were read.
    """

    name: Text
    missing: _Count | None = None
    clamped: _Count | None = None  # negative numbers that were taken as 0
    distinct: _Count | None = None  # categories, as found
    rare: _Count | None = None  # cells whose category was too rare for a row of its own
    unseen: _Count | None = None  # cells whose category the vocabulary does not have
    added: _Count | None = None  # categories that the vocabulary grew by
    evicted: _Count | None = None  # categories of the vocabulary that it grew from and which it does not have any more
    waiting: _Count | None = None  # categories without a row whose training rows are counted over data sets
    cut: _Count | None = None  # values beyond the limit of a cell, where cells have several
    minimum: float | None = None
    mean: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class Manifest:
    """A prepared data set. `parts` has each of PART_NAMES; `table_rows[k]` is above every id of column k."""

    format: Annotated[int, msgspec.Meta(ge=FORMAT, le=FORMAT)]
    schema: Schema
    table_rows: tuple[_TableRows, ...]
    parts: Mapping[Text, tuple[ShardFile, ...]]
    columns: tuple[ColumnStatistics, ...]  # dense, then categorical
    sources: tuple[SourceFile, ...]
    settings: Mapping[str, Any]  # JSON values: what was asked for when the data set was prepared
    version: Text  # of the code that prepared it
    identity: DataIdentity | None = None  # None: of other programs or earlier versions, what an id means is not known
    transforms: Annotated[tuple[Transform, ...], msgspec.Meta(max_length=1 << 16)] = ()  # of columns that are no log
    parent: DataIdentity | None = None  # of the data set whose vocabulary this one grew from; None: from nothing

    def num_rows(self, part: str) -> int:
        """Returns the number of rows of one of PART_NAMES."""
        return sum(shard.rows for shard in self.parts[part])

    def num_clicks(self, part: str) -> int:
        """Returns the number of rows of a part whose label is 1."""
        return sum(shard.clicks for shard in self.parts[part])

    def digest(self) -> str:
        """Returns a name of the rows, wherever they lie and whatever they came from: 16 hexadecimal digits."""
        shards = {part: [[s.rows, s.bytes, s.crc32] for s in self.parts[part]] for part in PART_NAMES}
        columns = [self.schema.dense, self.schema.categorical, *([self.schema.weight] if self.schema.weight else [])]
        content = [self.format, *columns, self.table_rows, shards]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Completes a data set: call it once all its shards are written."""
    _check_complete(manifest)
    body = json.loads(json.dumps(asdict(manifest)))
    if not manifest.schema.weight:
        del body["schema"]["weight"]  # so that earlier versions read it
    document = {"crc32": _checksum(body), **body}
    replace_file(directory / FILE_NAME, [(json.dumps(document, indent=1) + "\n").encode()], DataError)


def read_manifest(directory: Path) -> Manifest:
    """Reads the manifest of a folder; DataError when it is missing, damaged or of another version."""
    path = directory / FILE_NAME
    try:
        document = read_json(path)
        checksum, format_number = document.pop("crc32"), document["format"]
        if isinstance(format_number, int) and 0 <= format_number < _FORMATS and format_number != FORMAT:
            raise DataError(
                f"{path} has format {format_number}, this version reads {FORMAT}; prepare the data set again, or use "
                "that version"
            )
        manifest, contradiction = _decoded(document)
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
    if manifest is None:
        raise DataError(f"{path}: {contradiction}")
    return manifest


def _decoded(document: Any) -> tuple[Manifest | None, str]:
    """Returns the manifest, or None and how its fields contradict each other. UnreadableError for other fields."""
    try:
        manifest = decoded(document, Manifest)
        _check_complete(manifest)
    except DataError as error:
        return None, str(error)
    return manifest, ""


def holds_manifest(directory: Path) -> bool:
    """Says whether a folder claims to be a prepared data set."""
    return (directory / FILE_NAME).is_file()


def _missing(directory: Path) -> str:
    if not directory.exists():
        return f"{directory}: there is no such folder; give the folder that dqrm-cpu prepare or data convert wrote"
    if not directory.is_dir():
        return (
            f"{directory} is a file, and no data set: dqrm-cpu prepare makes one of raw rows (begin with --suggest "
            "schema.toml); give its folder"
        )
    if (directory / "metrics.jsonl").exists():
        return f"{directory} is the folder of a run, and no data set; give the folder that dqrm-cpu prepare wrote"
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
