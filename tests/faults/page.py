"""docs/reliability.md, made from the results of a campaign."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outcomes import DEFECTS, GOOD, OUTCOMES
from rows import ROWS

_NOTES = Path(__file__).with_name("notes.md")

_HEAD = """\
# Reliability

What happens to a run, a data set and a model when something goes wrong, tried out and counted. This page is made by
`tests/faults/campaign.py` from the results that it wrote:

    python tests/faults/campaign.py --jobs 2 --out results.json
    python tests/faults/campaign.py --page results.json > docs/reliability.md

{when}. A sample of every row is part of `make test`
(`tests/faults/test_campaign.py`). One case is repeated alone by `--row ROW --case NUMBER` and the seed.

"""

_TAIL = """
## What the outcomes mean

- **same**: the result is that of an undisturbed command to the bit, perhaps after the same command was given again:
  weights, everything else that a checkpoint keeps, logged metrics, result, packed files, every byte of a data set.
- **refused**: one line says what is wrong, with exit status 1 or 2. Where the fault is over (a disk that is whole
  again), the same command then gave the very result.
- **stopped**: a signal ended the command in an orderly way, and it was gone on with.
- **accepted**: a forged file with valid checksums says something else than before and might have been written like
  that; the rows that are read of a data set are rows that a model can take.
- **defects**: `wrong` (another model, prediction, metric or row, with status 0), `lost` (work that was safe and cannot
  be gone on with), `traceback`, `crash` (SIGSEGV, SIGBUS, SIGABRT), `hang`.

A change that cannot change a model, a prediction, a metric or a row counts as `same`: a byte between two sections of
a shard, a comment in `config.toml`, a time in `spans/`. The digests that are compared hold everything that is read.

## How it is done

`tests/faults/inject.c` is preloaded (LD_PRELOAD) and counts the calls that touch files below one folder: write,
ftruncate, fsync, rename, link, mkdir, open, unlink, where asked for read and close. Call number N meets the fault. The
commands are those of the command line; each runs in a child of a process that has loaded everything and runs kernels
in one thread. Every case draws its choices from the seed, its row and its number alone.
"""


def _by_group(results: Mapping[str, Any]) -> list[str]:
    """A table of the rows whose cases are counted by kind of file as well."""
    lines = []
    for row in ROWS:
        groups = results["rows"].get(row.name, {}).get("groups") or {}
        for name, outcomes in sorted(groups.items()):
            good = " | ".join(f"{outcomes.get(outcome, 0):,}" for outcome in GOOD)
            bad = sum(outcomes.get(outcome, 0) for outcome in DEFECTS)
            lines.append(f"| {row.name} | {name} | {sum(outcomes.values()):,} | {good} | {bad} |\n")
    head = f"\n| row | of | cases | {' | '.join(GOOD)} | defects |\n|---|---|--:|--:|--:|--:|--:|--:|\n"
    return [head, *lines] if lines else []


def added(campaigns: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """One document of several campaigns of the same code: of other rows, or of other seeds."""
    first, *others = campaigns
    if not others:
        return first
    rows: dict[str, dict[str, Any]] = {}
    for campaign in campaigns:
        for name, row in campaign["rows"].items():
            sums = rows.setdefault(name, {"cases": 0, "outcomes": Counter(), "groups": {}})
            sums["cases"] += row["cases"]
            sums["outcomes"].update(row["outcomes"])
            for group, outcomes in row.get("groups", {}).items():
                sums["groups"].setdefault(group, Counter()).update(outcomes)
    seeds = ", ".join(str(seed) for seed in sorted({campaign["seed"] for campaign in campaigns}))
    seconds = sum(campaign["seconds"] for campaign in campaigns)
    return {**first, "seed": seeds, "seconds": seconds, "rows": rows}


def page_of(results: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    total = sum(row["cases"] for row in results["rows"].values())
    minutes = max(1, round(results["seconds"] / 60))
    when = (
        f"These figures are of {results['date']}, seed {results['seed']}, {total:,} cases in {minutes} minutes\n"
        f"on {results['machine']}"
    )
    lines = [_HEAD.format(when=when)]
    lines += [
        f"| fault | how it is injected | cases | {' | '.join(GOOD)} | defects |\n|---|---|--:|--:|--:|--:|--:|--:|\n"
    ]
    for row in ROWS:
        found = results["rows"].get(row.name) or {"cases": 0, "outcomes": dict.fromkeys(OUTCOMES, 0)}
        outcomes = found["outcomes"]
        good = " | ".join(f"{outcomes.get(name, 0):,}" for name in GOOD)
        bad = ", ".join(f"{outcomes.get(name)} {name}" for name in DEFECTS if outcomes.get(name)) or "0"
        lines.append(f"| {row.fault} (`{row.name}`) | {row.how} | {found['cases']:,} | {good} | {bad} |\n")
    lines += _by_group(results)
    lines.append(_TAIL)
    if _NOTES.exists():
        lines.append("\n" + _NOTES.read_text())
    return "".join(lines)
