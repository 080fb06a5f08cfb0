"""raw_rows.mjs makes of any cell what dqrm_cpu.serving makes of it, or refuses it too."""

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packages import run_node
from test_serving import BAG_NAMES, BAG_SCHEMA, LOG_NAMES, LOG_SCHEMA, bag_rows, log_rows

from dqrm_cpu.serving import Model, UnusableRowError
from scoring import SMALL, succeed

NUMBERS = [
    *("", "0", "-0", "3", "-3.0", "3.", ".5", "-.5e1", "1e-3", "1E+2", "007", "1e38", "3.5e38", "1e305", "-1e305"),
    *("1e400", "nan", "NaN", "NULL", "\\N", "True", "false", "inf", "0x10", " 3", "3 ", "1_000", "--1", "1e", "."),
    *("2147483647", "2147483648", "-2147483648", "-2147483649", "0.1", "16777217", "23.999999999999999999"),
]
TEXTS = [
    *(
        "",
        "a",
        "shop 3",
        "NaN",
        "nAn",
        "null",
        "\\N",
        "True",
        "TRUE",
        "false",
        "47",
        "47.0",
        "-47.00",
        "047.0",
        "47.",
        ".0",
    ),
    *("x" * 7, "x" * 8, "x" * 9, "naïve café, 8 rue", "日本語テキスト", "😀", "\u0000", "\ufeffa", " a", "a\n", "İ"),
]
HASHES = ["", "0", "00000000", "a", "FFFFFFFF", "123456789", "xyz", "0x1", "12 ", "NaN", "47.0", "true", "7"]
PLAIN: list[Any] = [None, True, False, 0, 7, -1, 2**31, 2**40]
BAGS: list[Any] = [
    *(
        "",
        "a",
        "a|b",
        " a |a|b",
        "a||b",
        "NaN|a",
        "47.0|47",
        "a|b|c|d|e|f|g",
        "|",
        "true|True",
        "x,y",
        "x,y,z",
        ",",
        "null",
    ),
    *([], ["a", "b"], ["a", None, " a"], [1, 2, 1], ["x,y"], [True, "true"]),
]


def drawn(columns: dict[str, list[Any]], count: int) -> list[dict[str, Any]]:
    """Rows in which every cell of every column occurs, and chance ones."""
    rng = random.Random(4)
    known = {name: next(cell for cell in cells if cell not in ("", None)) for name, cells in columns.items()}
    one_by_one = [{**known, name: cell} for name, cells in columns.items() for cell in cells]
    return one_by_one + [{name: rng.choice(cells) for name, cells in columns.items()} for _ in range(count)]


def exported(folder: Path, schema: str, names: list[str], rows: list[list[str]], *options: str) -> Path:
    with (folder / "rows.csv").open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])
    (folder / "schema.toml").write_text(schema)
    data, run = folder / "data", folder / "run"
    succeed("prepare", folder / "rows.csv", "--schema", folder / "schema.toml", "--out", data, *options)
    succeed("train", "--data", data, "--run-dir", run, *SMALL)
    succeed("export", run)
    return run / "model.safetensors"


def require_alike(packed: Path, rows: list[dict[str, Any]]) -> None:
    model, refused = Model.open(packed), 0
    found = run_node("score.mjs", {"packed": str(packed), "onnx": None, "rows": rows})["rows"]
    for row, of_node in zip(rows, found, strict=True):
        try:
            dense, ids = model.prepare([row])
        except UnusableRowError as error:
            assert str(error).partition(":")[0] == of_node.get("error", "nothing").partition(":")[0], (row, of_node)
            refused += 1
            continue
        assert "error" not in of_node, (row, of_node)
        assert ids[0].tolist() == of_node["ids"], row
        np.testing.assert_array_equal(dense[0], np.float32(of_node["dense"]), err_msg=str(row))
    assert 0 < refused < len(rows) / 2


@pytest.mark.parametrize("options", [(), ("--vocabulary", "hash", "--hash-rows", "50")])
def test_numbers_texts_and_hashes(tmp_path: Path, options: tuple[str, ...]) -> None:
    packed = exported(tmp_path, LOG_SCHEMA, LOG_NAMES, log_rows(900, seed=1), *options)
    known = [cell for row in log_rows(60, seed=1) for cell in row[1:3]]
    columns: dict[str, list[Any]] = dict.fromkeys(("hour", "clicks", "price", "age", "visits"), NUMBERS + PLAIN)
    columns |= {"shop": TEXTS + PLAIN + known, "item": TEXTS + known, "device": HASHES + PLAIN}
    finite = {name: [cell for cell in cells if is_likely(cell)] for name, cells in columns.items()}
    require_alike(packed, drawn(columns, 0) + drawn(finite, 300))


def is_likely(cell: Any) -> bool:
    """Leaves out what numbers and hashes refuse, so that chance rows are scored and not refused."""
    return cell in ("", None, "3", "7", "0", 7, 0) or (isinstance(cell, str) and " " in cell.strip())


def test_several_values_in_a_cell(tmp_path: Path) -> None:
    packed = exported(tmp_path, BAG_SCHEMA, BAG_NAMES, bag_rows(900, 1))
    columns = {"shop": [*TEXTS, *PLAIN, "s1", "s2"], "tags": BAGS + PLAIN, "topics": BAGS + PLAIN, "price": ["1", "x"]}
    require_alike(packed, drawn(columns, 0) + drawn({**columns, "price": ["1", "", "2.5"]}, 200))
