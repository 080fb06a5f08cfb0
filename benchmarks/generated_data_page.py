"""Writes the tables of docs/generated-data.md anew: python benchmarks/generated_data_page.py [seed]."""

import sys
from pathlib import Path

from dqrm_cpu.data.synthetic.comparison import comparison_markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "generated-data.md"
START, END = "<!-- tables: start -->\n", "<!-- tables: end -->"


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    before, rest = PAGE.read_text().split(START)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{START}\nSeed {seed}.\n\n{comparison_markdown(seed)}\n{END}{after}")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
