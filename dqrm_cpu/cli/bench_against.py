"""`dqrm-cpu bench --against FILE`: what got slower since the figures that --json wrote there."""

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dqrm_cpu.bench.against import Change, Earlier, TimedGroup
    from dqrm_cpu.bench.document import Circumstances

_ALONE = "*"


def earlier_of(args: argparse.Namespace, benchmark: str) -> "Earlier | None":
    """The earlier figures that were asked for.

    To be read before hours of timing: whatever is wrong with the file is said at once, and --json may replace it.
    """
    from dqrm_cpu.bench.against import read_earlier

    return None if args.against is None else read_earlier(args.against, benchmark)


def print_changes(earlier: "Earlier | None", groups: "Iterable[TimedGroup]", around: "Circumstances") -> None:
    """Nothing where nothing was asked for."""
    from dqrm_cpu.bench.against import changes_since

    if earlier is not None:
        print(format_changes(earlier, changes_since(earlier, groups), earlier.differences(around)))


def format_changes(earlier: "Earlier", changes: "Sequence[Change]", differences: Sequence[str]) -> str:
    """What got slower beyond noise, what got quicker, and whether the two may be compared at all."""
    lines = [f"against {earlier.path}, each over its group's baseline:"]
    lines += [f"  not the same circumstances: {text}" for text in differences]
    if not changes:
        return "\n".join([*lines, "  nothing was timed in both"])
    told = [change for change in changes if change.slower or change.quicker]
    width = max((len(_place(change)) for change in told), default=0)
    for change in sorted(told, key=lambda change: -change.ratio):
        verdict = "slower" if change.slower else "quicker"
        lines.append(f"  {_place(change):<{width}}  {change.ratio:5.2f} times  {verdict} (noise {change.noise:.0%})")
    if any(change.alone for change in told):
        lines.append(f"  {_ALONE} without a baseline beside it: a slow day of the machine looks the same")
    slower = sum(change.slower for change in changes)
    return "\n".join([*lines, f"  {slower} of {len(changes)} got slower beyond noise"])


def _place(change: "Change") -> str:
    return f"{change.case} {change.name}{_ALONE if change.alone else ''}"
