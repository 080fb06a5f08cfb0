"""A small sample of the fault campaign, of every row; what the campaign says is what its page says.

That of a whole script, whose undisturbed run alone takes long, is apart: tests/predict/test_seven_days.py runs it too.
"""

import json
from pathlib import Path

import pytest

import campaign
from page import page_of
from rows import ROWS

# Everything is made for it first, with kernels that may have to be compiled.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_SCRIPT = "script"
_PAGE = Path(__file__).parent.parent.parent / "docs" / "reliability.md"


def sample(folder: Path, *rows: str) -> campaign.Answer:
    out = folder / "results.json"
    chosen = [word for row in rows for word in ("--row", row)]
    status = campaign.main(["--sample", "--jobs", "1", "--out", str(out), *chosen])
    found: campaign.Answer = json.loads(out.read_text())
    assert status == (1 if found["defects"] else 0)
    assert [name for name, row in found["rows"].items() if row["cases"]] == [*rows]
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> campaign.Answer:
    return sample(tmp_path_factory.mktemp("faults"), *(row.name for row in ROWS if row.name != _SCRIPT))


def test_no_fault_of_the_sample_shows_a_defect(results: campaign.Answer) -> None:
    assert results["defects"] == []


@pytest.mark.long
def test_no_kill_of_a_script_shows_a_defect(tmp_path: Path) -> None:
    assert sample(tmp_path, _SCRIPT)["defects"] == []


def test_the_page_has_the_campaigns_rows(results: campaign.Answer) -> None:
    def rows_of(page: str) -> list[list[str]]:
        """Fault and how it is injected."""
        return [line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| ") and "(`" in line]

    assert rows_of(_PAGE.read_text()) == rows_of(page_of(results))
    assert len(rows_of(_PAGE.read_text())) == len(ROWS)
