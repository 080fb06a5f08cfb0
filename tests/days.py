"""Days of clicks as text: each day some categories go and others appear, and the commands that walk over them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from commands import CommandOutput, dqrm_cpu

COLUMNS = ("site", "app", "user")
SCHEMA = f"""delimiter = ","
label = "click"
integers = ["hour", "age"]
categories = {list(COLUMNS)}
fields = {["click", "hour", "age", *COLUMNS]}
"""
SMALL = [
    *("--model.embedding-dim", "6", "--model.bottom-mlp", "9,6", "--model.top-mlp", "11,1"),
    *("--train.epochs", "1", "--train.batch-size", "50", "--train.threads", "1", "--train.keep-checkpoints", "100"),
]
_WIDTHS = (40, 150, 600)


def clicks_of_day(day: int, rows: int, seed: int = 0, moved_by: float = 0.2) -> list[str]:
    """Lines of a day: a share `moved_by` of each column's categories is new, and as many are not seen any more."""
    random = np.random.default_rng([seed, day])
    hours, ages = random.integers(0, 24, rows), random.integers(0, 90, rows)
    logits = -1.0 + 0.03 * (hours - 12)
    cells: list[NDArray[np.int64]] = []
    for column, width in enumerate(_WIDTHS):
        first = int(day * moved_by * width)
        # Squared: some categories are frequent, and not those that are the newest.
        place = (random.random(rows) ** 2 * width).astype(np.int64)
        ids = first + (place * 7919) % width
        effects = np.random.default_rng([seed, 1000 + column]).normal(0, 1, 100 * width)
        logits = logits + effects[ids]
        cells.append(ids)
    labels = random.random(rows) < 1 / (1 + np.exp(-logits))
    names = zip(
        *([f"{name}-{identifier}" for identifier in ids] for name, ids in zip(COLUMNS, cells, strict=True)), strict=True
    )
    return [
        ",".join([str(int(label)), str(hour), str(age), *row])
        for label, hour, age, row in zip(labels, hours, ages, names, strict=True)
    ]


def write_day(folder: Path, day: int, rows: int, **options: float) -> Path:
    """Writes the clicks of a day into a folder, beside the schema; returns their file."""
    folder.mkdir(exist_ok=True)
    (folder / "clicks.toml").write_text(SCHEMA)
    path = folder / f"day-{day}.csv"
    path.write_text("\n".join(clicks_of_day(day, rows, **options)) + "\n")  # type: ignore[arg-type]
    return path


def prepare_day(raw: Path, out: Path, *options: object) -> Path:
    """Prepares a day and returns its data set."""
    checked("prepare", raw, "--schema", raw.parent / "clicks.toml", "--out", out, *options)
    return out


def checked(*arguments: object) -> CommandOutput:
    """Runs a command that must succeed."""
    done = dqrm_cpu(*arguments)
    assert done.returncode == 0, done.stderr
    return done
