"""The result of `dqrm-cpu prepare` in words."""

from pathlib import Path

from dqrm_cpu.data.prepare.bad_rows import QUARANTINE_FILE
from dqrm_cpu.data.prepare.protocols import PROTOCOLS, protocol_of
from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest


def describe_result(manifest: Manifest, out: Path, elapsed_s: float) -> str:
    """Describes a prepared data set in some lines: its parts, tables, and what was not as it should be."""
    rows = sum(manifest.num_rows(part) for part in manifest.parts)
    largest = max(manifest.table_rows)
    speed = f" in {elapsed_s:.1f} s ({rows / elapsed_s:,.0f} rows/s)" if elapsed_s > 0 else ""
    lines = [f"{rows:,} rows{speed}"]
    for part in PART_NAMES:
        count, shards = manifest.num_rows(part), len(manifest.parts[part])
        rate = f", {manifest.num_clicks(part) / count:.2%} clicks" if count else ""
        lines.append(f"{part:<12}{count:>14,} rows in {shards:,} shard{'' if shards == 1 else 's'}{rate}")
    lines.append(
        f"{'tables':<12}{sum(manifest.table_rows):>14,} rows in {len(manifest.table_rows)}; largest {largest:,}"
    )
    if name := protocol_of(manifest):
        lines.append(f"{'protocol':<12}{name}: {PROTOCOLS[name].about}")
    lines += [*_changes(manifest), *_irregularities(manifest, out), *_one_label(manifest)]
    lines.append(f"{'data set':<12}{out}")
    return "\n".join(lines)


def _changes(manifest: Manifest) -> list[str]:
    """Counts what became of the vocabulary that this one grew from; nothing of one that did not grow."""
    found = [column for column in manifest.columns if column.added is not None]
    if not found:
        return []
    added, evicted, waiting = (
        sum(getattr(column, name) or 0 for column in found) for name in ("added", "evicted", "waiting")
    )
    gone = f", {evicted:,} that left" if evicted else ""
    rare = f"; {waiting:,} wait for more rows" if waiting else ""
    return [f"{'vocabulary':<12}{added:>14,} new categories{gone}{rare}"]


def _one_label(manifest: Manifest) -> list[str]:
    """Warns where all rows of a part have one label: nothing is learned of them, or no AUC can be computed."""
    alike = []
    for part in PART_NAMES:
        rows, clicks = manifest.num_rows(part), manifest.num_clicks(part)
        if rows and clicks in (0, rows):
            alike.append(f"the {rows:,} {part} rows have {'only' if clicks else 'no'} clicks")
    return [f"{'warning':<12}{text}: AUC is undefined there; is it the right column?" for text in alike]


def _irregularities(manifest: Manifest, out: Path) -> list[str]:
    """Counts what was not as it should be; silent about what did not happen."""
    lines = []
    for name, meaning in (
        ("clamped", "negative numbers were taken as 0"),
        ("rare", "cells have a category too rare for a row of its own"),
        ("unseen", "cells have a category that the vocabulary does not have"),
        ("cut", "values are beyond the `limit` of their cell, and were left out"),
    ):
        count = sum(getattr(column, name) or 0 for column in manifest.columns)
        if count:
            lines.append(f"{'':<12}{count:>14,} {meaning}")
    bad = manifest.settings["bad_lines"]
    if isinstance(bad, int) and bad:
        kept = out / QUARANTINE_FILE
        lines.append(f"{'bad rows':<12}{bad:>14,} left out{f', kept in {kept}' if kept.exists() else ''}")
        first = manifest.settings["first_bad_lines"]
        lines += [f"{'':<12}{line}" for line in first] if isinstance(first, list) else []
    return lines
