"""Puts a reproduction's tables into docs/results.md: python benchmarks/results_page.py OUT [OUT ...]."""

import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
START, END = "<!-- tables: start -->\n", "<!-- tables: end -->"


def main() -> None:
    """Each OUT is the --out of a `dqrm-cpu reproduce`; its own title gives way to the page's."""
    before, rest = PAGE.read_text().split(START)
    _, after = rest.split(END)
    tables = "\n".join((Path(out) / "results.md").read_text().removeprefix("# Results\n") for out in sys.argv[1:])
    PAGE.write_text(f"{before}{START}{tables}\n{END}{after}")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
