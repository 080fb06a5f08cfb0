"""A small sample of the fault campaign, of every row; what the campaign says is what its page says."""

import json
from pathlib import Path

import pytest

import campaign
from page import page_of
from rows import ROWS

# Everything is made for it first, with kernels that may have to be compiled.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_PAGE = Path(__file__).parent.parent.parent / "docs" / "reliability.md"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> campaign.Answer:
    out = tmp_path_factory.mktemp("faults") / "results.json"
    status = campaign.main(["--sample", "--jobs", "1", "--out", str(out)])
    found = json.loads(out.read_text())
    assert status == (1 if found["defects"] else 0)
    return found


def test_no_fault_of_the_sample_shows_a_defect(results: campaign.Answer) -> None:
    assert results["defects"] == []


def test_every_row_is_sampled(results: campaign.Answer) -> None:
    assert [name for name, row in results["rows"].items() if row["cases"]] == [row.name for row in ROWS]


def test_the_page_has_the_campaigns_rows(results: campaign.Answer) -> None:
    def rows_of(page: str) -> list[list[str]]:
        """Fault and how it is injected."""
        return [line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| ") and "(`" in line]

    assert rows_of(_PAGE.read_text()) == rows_of(page_of(results))
    assert len(rows_of(_PAGE.read_text())) == len(ROWS)
