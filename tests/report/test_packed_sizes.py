"""The table of model sizes: what is due to rows that training never updated stands apart from the others."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.report.sizes import packed_sizes
from tiny import tiny_config

PACKED = {
    "dense": 5_250_000,
    "sparse": 2_000_000,
    # 200 rows were updated: 150 of them are alive, 50 are zero. Of the 800 others 150 are alive and 650 zero.
    "rows": {"rows": 1_000, "live": 300, "updated": 200, "live_updated": 150},
    "updated_fp32": 8_000_000,
    "updated_sparse": 500_000,
}
EXPECTED = {
    "run": "a run",
    "packed (MB)": "5.25",
    "without zero rows (MB)": "2.00",
    "rows": "1,000",
    "updated in training": "200",
    "zero of these": "25.0%",
    "zero of the others": "81.2%",
    "updated rows alone: FP32 (MB)": "8.00",
    "updated rows alone: without zero rows (MB)": "0.50",
    "smaller by": "16.0x",
}


def cells_of(packed: Mapping[str, Any] | None) -> tuple[list[str], list[str]]:
    """The heads of the table and the cells of its only row; nothing where there is no table."""
    run = RunFiles("a run", Path("run"), tiny_config(), (), (), {}, {"packed_files": packed})
    page = "".join(packed_sizes([run]))
    head, _, body = page.partition("</thead>")
    assert body.count("<tr>") <= 1
    return re.findall(r"<th>(.*?)</th>", head), re.findall(r"<td[^>]*>(.*?)</td>", body)


def test_rows_that_training_updated_are_told_from_the_others() -> None:
    assert cells_of(PACKED) == (list(EXPECTED), list(EXPECTED.values()))


@pytest.mark.parametrize(
    ("rows", "zero_of_these", "zero_of_others"),
    [
        ({"rows": 10, "live": 4, "updated": 10, "live_updated": 4}, "60.0%", "-"),
        ({"rows": 10, "live": 4, "updated": 0, "live_updated": 0}, "-", "60.0%"),
    ],
    ids=["all updated", "none updated"],
)
def test_a_share_of_no_rows_is_no_number(rows: Mapping[str, int], zero_of_these: str, zero_of_others: str) -> None:
    shown = dict(zip(*cells_of({**PACKED, "rows": rows}), strict=True))
    assert (shown["zero of these"], shown["zero of the others"]) == (zero_of_these, zero_of_others)


def test_files_without_a_sparse_layout_have_no_ratio() -> None:
    _, cells = cells_of({**PACKED, "sparse": None, "updated_sparse": None})
    assert cells == ["a run", "5.25", "-", "1,000", "200", "25.0%", "81.2%", "8.00", "-", "-"]


@pytest.mark.parametrize("packed", [None, {"dense": 5_250_000, "sparse": 2_000_000}, {"dense": "large"}], ids=str)
def test_runs_without_counts_have_no_row(packed: Mapping[str, Any] | None) -> None:
    """Those in FP32, those of earlier versions, and those whose result is something else."""
    assert cells_of(packed) == ([], [])
