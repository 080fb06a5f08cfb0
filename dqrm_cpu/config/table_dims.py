"""`model.table_dims`: how many values the rows of each table have, as a text names them or by the table's rows."""

import math
import re

from dqrm_cpu.config.setting import BadValueError

LARGEST_DIM = 4096

AUTO_DIMS = "auto"
"""The text of `model.table_dims` that has `power_dim` choose them."""


def power_dim(rows: int, most: int) -> int:
    """Returns 6 times the fourth root of a table's rows, to the nearest multiple of 4, which is `most` at most."""
    root = math.sqrt(math.sqrt(rows))  # each rounded as IEEE 754 says: the same on every machine
    return min(most, 4 * int(6 * root / 4 + 0.5))


def named_dims(text: str) -> dict[int, int]:
    """Reads `model.table_dims`: the dimension of each table that it names, by the table's number from 0."""
    dims: dict[int, int] = {}
    for part in text.split(",") if text not in ("", AUTO_DIMS) else ():
        match = re.fullmatch(r"\s*C([1-9]\d{0,8})\s*=\s*([1-9]\d{0,8})\s*", part)
        if match is None:
            raise BadValueError(
                f"has {part.strip()[:40]!r}, write C3=4,C7=32 for 4 values in the third table, 32 in C7, or auto"
            )
        number, dim = int(match[1]) - 1, int(match[2])
        if number in dims:
            raise BadValueError(f"names C{number + 1} twice, leave one of them")
        if dim > LARGEST_DIM:
            raise BadValueError(f"gives C{number + 1} {dim} values, {LARGEST_DIM:,} are the most")
        dims[number] = dim
    return dims
