"""Puts a reproduction's tables into docs/results.md: python benchmarks/results_page.py OUT [OUT ...]."""

import sys
from pathlib import Path

from dqrm_cpu.lab.reproduce.results import PROTOCOL

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
START, END = "<!-- tables: start -->\n", "<!-- tables: end -->"


def main() -> None:
    """Each OUT is the --out of a `dqrm-cpu reproduce`; titles give way to the page's, and the protocol stands once."""
    before, rest = PAGE.read_text().split(START)
    _, after = rest.split(END)
    pages = [(Path(out) / "results.md").read_text().removeprefix("# Results\n") for out in sys.argv[1:]]
    tables = "\n".join(page.replace(f"{PROTOCOL}\n\n", "") for page in pages)
    PAGE.write_text(f"{before}{START}\n{PROTOCOL}\n{tables}\n{END}{after}")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
