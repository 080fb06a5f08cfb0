"""What a packed file says of itself, checked: every tensor's presence, type and shape by the file's own configuration.

Scales must be positive, and a sparse file's bits and counts agree. Bytes are checked as they are read. Without torch.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dqrm_cpu.base.files import begins_with
from dqrm_cpu.config import Config
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export.packed_layout import (
    CORRECTED,
    FORMATS,
    LAYOUTS,
    ROWS_PER_RANK,
    ROWWISE_BITS,
    ROWWISE_SCALE_BYTES,
    SELF_CONTAINED,
    Expected,
    expected_tensors,
    stored_config,
    stored_description,
    vocabulary_entries,
)
from dqrm_cpu.export.safetensors_reader import PackedFile
from dqrm_cpu.model.shapes import table_names
from dqrm_cpu.serving.bands import bands_by_table, code_bytes
from dqrm_cpu.serving.description import BANDS, Description, entries_by_member
from dqrm_cpu.serving.model import BANDED

ROWS_AT_ONCE = 1 << 16  # a multiple of ROWS_PER_RANK


@dataclass(frozen=True)
class PackedModel:
    """The facts of a packed file, whose tensors have been checked against its configuration."""

    path: Path
    config: Config
    layout: str
    identity: str  # of the schema and vocabulary whose ids it scores; empty where that is not known
    num_bytes: int
    stored_rows: int  # rows that have codes
    num_checksums: int  # 0: it was written by an earlier version, and damage cannot be noticed
    is_corrected: bool = False  # for the rows without a click that training did not see, in the bias of the last layer
    is_exported: bool = False  # it says what raw rows are, and holds their vocabulary
    members: int = 1  # of an ensemble

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for whoever uses it."""
        if self.num_checksums:
            return ()
        return (f"{self.path} was written by an earlier version, without checksums: damage to it cannot be noticed",)


def looks_packed(path: Path) -> bool:
    """Says whether a file claims to be a packed model, by its name or its beginning."""
    return path.suffix == ".safetensors" or begins_with(path, b"{", at=8)


def read_packed(path: Path) -> PackedModel:
    """Returns what the file says of itself; CheckpointError where that does not fit its tensors. Reads little of it."""
    with open_packed(path) as (_, about):
        return about


def verify_packed(path: Path) -> PackedModel:
    """Reads all of the file, and returns the same; CheckpointError where any of it is not what was written."""
    with open_packed(path) as (file, about):
        file.check_all()
        for member in _members(file, about.members):
            require_usable(member, about)
        return about


@contextmanager
def open_packed(path: Path) -> Iterator[tuple[PackedFile, PackedModel]]:
    """Opens a file whose tensors are those that its configuration asks for."""
    with PackedFile(path) as file:
        version = file.metadata.get("format", "")
        if version not in FORMATS:
            raise CheckpointError(
                f"{path} has format {version[:20] or 'none'}, not {' or '.join(FORMATS)}; "
                "use the dqrm-cpu that wrote it"
            )
        layout = file.metadata.get("layout", "")
        if layout not in LAYOUTS:
            raise file.foreign(f"its layout is {layout[:20] or 'none'}, not one of {', '.join(LAYOUTS)}")
        config, description = stored_config(file), stored_description(file)
        if (layout == BANDS) != (version == BANDED):
            raise file.foreign(f"it has format {version} and the layout {layout}")
        count, vocabulary, stored_rows = 1 if description is None else description.members, description, 0
        for member in _members(file, count):
            _require_layout(member, config, layout, vocabulary_entries(vocabulary))
            if layout == BANDS:
                assert description is not None, "format 6 alone has bands"
                stored_rows += _require_bands(member, description)
            else:
                codes = [member.entries[f"{name}.codes"] for name in table_names(len(config.model.table_rows))]
                stored_rows += sum(entry.shape[0] for entry in codes)
            vocabulary = None  # is written once
        identity = file.metadata.get("identity", "")
        sizes = file.num_bytes, stored_rows, file.num_checksums
        is_exported = version in SELF_CONTAINED
        about = PackedModel(path, config, layout, identity, *sizes, CORRECTED in file.metadata, is_exported, count)
        yield file, about


def _members(file: PackedFile, count: int) -> Iterator[PackedFile]:
    """Yields the file as each of so many members has it: its tensors by the names of a single model."""
    by_member = entries_by_member(file.entries, count)
    if by_member is None:
        raise file.foreign(f"its description has {count} members, its tensors are of another number")
    for entries in by_member:
        view = copy(file)
        view.entries = entries
        yield view


def _require_layout(file: PackedFile, config: Config, layout: str, vocabulary: Mapping[str, Expected]) -> None:
    """Requires the tensors that the configuration asks for, and no others."""
    if config.quant.method == "none":
        raise file.foreign("its configuration is that of an FP32 model")
    if layout == "rowwise" and config.quant.embedding_bits not in ROWWISE_BITS:
        raise file.foreign(f"row-wise tables have 2 or 4 bits, it names {config.quant.embedding_bits}")
    expected = {**expected_tensors(config, layout), **vocabulary}
    if layout == "sparse" and "tables.offset" in expected:
        raise file.foreign(f"{config.quant.method} has no code for zero, so that no row can be left out")
    for name, one in expected.items():
        entry = file.entries.get(name)
        if entry is None:
            raise file.foreign(f"it lacks {name}")
        shape = tuple(
            actual if wanted is None else wanted for actual, wanted in zip(entry.shape, one.shape, strict=False)
        )
        if entry.dtype != one.dtype or len(entry.shape) != len(one.shape) or entry.shape != shape:
            raise file.foreign(
                f"{name} is {entry.dtype} {list(entry.shape)}, its configuration wants {one.dtype} "
                f"{[('live rows' if wanted is None else wanted) for wanted in one.shape]}"
            )
    unknown = sorted(set(file.entries) - set(expected))
    if unknown:
        raise file.foreign(f"its configuration has no use for {unknown[0][:80]}")


def _require_bands(file: PackedFile, description: Description) -> int:
    """Requires bands with the rows and the bytes of each table; returns their rows."""
    try:
        by_table = bands_by_table(file.tensor("tables.bands"), description)
    except ValueError as error:
        raise file.foreign(f"it has {error}") from None
    for part in ("step", "offset"):
        if file.entries[f"tables.{part}"].shape[0] != sum(map(len, by_table)):
            raise file.foreign(f"tables.{part} has not a number for each band")
    for t, (column, bands) in enumerate(zip(description.categories, by_table, strict=True)):
        if file.entries[f"C{t + 1}.codes"].shape[0] != code_bytes(bands, column.dim):
            raise file.foreign(f"C{t + 1}.codes has not the bytes of its {column.rows:,} rows in bands")
    return sum(column.rows for column in description.categories)


def require_usable(file: PackedFile, about: PackedModel) -> None:
    """Requires positive scales, other numbers finite, and a sparse table's bits, counts and codes that agree."""
    for name, one in expected_tensors(about.config, about.layout).items():
        if one.dtype != "F32":
            continue
        values = file.tensor(name)
        if not np.isfinite(values).all() or (one.is_scale and not (values > 0).all()):
            what = "a scale that is not positive" if one.is_scale else "a number that is not finite"
            raise CheckpointError(f"{about.path}: {name} holds {what}; write it again by dqrm-cpu compress")
    names = table_names(len(about.config.model.table_rows))
    for name, rows in zip(names, about.config.model.table_rows, strict=True):
        if about.layout == "sparse":
            _require_consistent(file, name, rows)
        elif about.layout == "rowwise":
            _require_finite_rows(file, name, rows)


def _require_consistent(file: PackedFile, name: str, rows: int) -> None:
    bits = np.unpackbits(file.tensor(f"{name}.bitmap"), bitorder="little")
    alive, padding = bits[:rows], bits[rows:]
    live_rows = np.add.reduceat(alive, np.arange(0, rows, ROWS_PER_RANK), dtype=np.int64)
    before = np.cumsum(live_rows) - live_rows
    if padding.any() or not np.array_equal(before, file.tensor(f"{name}.rank")):
        raise file.foreign(f"{name}.rank does not count the live rows of {name}.bitmap")
    if file.entries[f"{name}.codes"].shape[0] != int(live_rows.sum()):
        raise file.foreign(f"{name}.codes has not a row for each live row of {name}.bitmap")


def _require_finite_rows(file: PackedFile, name: str, rows: int) -> None:
    for first in range(0, rows, ROWS_AT_ONCE):
        behind = file.rows(f"{name}.codes", first, min(first + ROWS_AT_ONCE, rows))[:, -ROWWISE_SCALE_BYTES:]
        if not np.isfinite(np.ascontiguousarray(behind).view(np.float16)).all():
            raise CheckpointError(
                f"{file.path}: {name} holds a scale or bias that is not finite; write it again by dqrm-cpu compress"
            )
