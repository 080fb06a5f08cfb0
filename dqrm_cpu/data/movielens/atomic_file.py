"""RecBole's atomic files: a head of name:type cells, then rows, with tabs between cells."""

from collections.abc import Sequence
from pathlib import Path

from dqrm_cpu.errors import DataError


def read_columns(path: Path, names: Sequence[str]) -> list[list[str]]:
    """The named columns, in that order, each a list of cells."""
    head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    there = [cell.partition(":")[0] for cell in head.split("\t")]
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(f"{path}: no column {missing[0]}; it has {', '.join(there)}, so it is of another data set")
    places = [there.index(name) for name in names]
    columns: list[list[str]] = [[] for _ in names]
    for number, line in enumerate(lines, start=2):
        cells = line.split("\t")
        if len(cells) != len(there):
            raise DataError(f"{path}:{number}: {len(cells)} cells, the head names {len(there)}; copy the file again")
        for column, place in zip(columns, places, strict=True):
            column.append(cells[place])
    return columns
