"""`dqrm-cpu prepare`: raw click logs to a prepared data set."""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.cli.parser import Subparsers, UsageError
from dqrm_cpu.cli.stop import StoppedBySignal, stopped_by_signals
from dqrm_cpu.errors import ConfigError

if TYPE_CHECKING:
    from dqrm_cpu.data.prepare.layout import Layout
    from dqrm_cpu.data.prepare.progress import PrepareProgress
    from dqrm_cpu.data.prepare.raw_files import RawFile
    from dqrm_cpu.data.prepare.request import Means, Request, Settings, VocabularySettings
    from dqrm_cpu.data.store.manifest import Manifest

_FORMATS = ("kaggle", "terabyte", "tsv")
_SPLIT_OF = {"kaggle": "last-seventh", "terabyte": "last-file", "tsv": "last-seventh"}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}

_ABOUT = "Turns raw click logs into a data set to train on; run it again to go on after an interruption."

_EXAMPLES = """examples:
  dqrm-cpu prepare train.txt --format kaggle --out data/kaggle
  dqrm-cpu prepare day_{0..23}.gz --format terabyte --max-ind-range 10000000 --out data/terabyte
  dqrm-cpu prepare day_24.gz --format tsv --split none --vocabulary data/terabyte --out data/day-24
  zcat logs/*.gz | dqrm-cpu prepare - --schema avazu.toml --out data/avazu

docs/prepare.md says what exactly becomes of every field."""


def add_parser(subparsers: Subparsers) -> None:
    """The command's options."""
    parser = subparsers.add_parser(
        "prepare", help="turn raw click logs into a data set", description=_ABOUT, epilog=_EXAMPLES
    )
    parser.add_argument(
        "raw", metavar="RAW", nargs="+", help="raw files in their order: plain, .gz, .zst or Parquet; -: standard input"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the data set goes")
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        choices=_FORMATS,
        help="kaggle: train.txt, last seventh of the rows held out; terabyte: day_0 ..., last file held out\n"
        "tsv: the same columns from elsewhere",
    )
    parser.add_argument("--schema", metavar="FILE", type=Path, help="TOML that describes the fields of other data sets")
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        choices=("last-file", "last-seventh", "none"),
        help="what is held out, half for test and half for validation (default: by --format)",
    )
    parser.add_argument("--seed", metavar="N", type=_count(0, 2**32 - 1), default=1, help="of the shuffle (default: 1)")
    _add_vocabulary(parser)
    _add_bad_rows(parser)
    parser.add_argument(
        "--shard-rows", metavar="N", type=_count(1, 1 << 26), default=262_144, help="rows of a shard, about (262,144)"
    )
    parser.add_argument("--workers", metavar="N", type=_count(1, 256), help="threads (default: every core it may use)")
    parser.add_argument(
        "--memory-budget",
        metavar="BYTES",
        type=_size,
        help="of vocabularies, such as 16G; default: three quarters\nof what is free",
    )
    parser.add_argument("--force", action="store_true", help="start even where memory or disk seem too small")
    parser.add_argument("--restart", action="store_true", help="forget what --out holds of a former preparation")


def _add_vocabulary(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("categories")
    group.add_argument(
        "--vocabulary",
        metavar="HOW",
        default="exact",
        help="exact (default): a row for every category, in order of first appearance; hash: no vocabulary\n"
        "DIR: that of a prepared data set, categories that it does not have get row 0",
    )
    group.add_argument("--hash-rows", metavar="N", type=_count(2, 2**31 - 1), help="rows of every table when hashing")
    group.add_argument(
        "--min-count", metavar="K", type=_count(1, 2**31 - 1), default=1, help="categories rarer than K get row 0"
    )
    group.add_argument(
        "--max-ind-range", metavar="N", type=_count(1, 2**31 - 1), default=0, help="take hashes modulo N first"
    )


def _add_bad_rows(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("bad rows")
    group.add_argument(
        "--bad-rows",
        metavar="POLICY",
        choices=("stop", "skip", "quarantine"),
        default="stop",
        help="stop (default), skip, or quarantine: keep them in DIR/bad-rows.txt",
    )
    group.add_argument(
        "--max-bad-rows", metavar="N", type=_count(0, 2**62), default=1000, help="stop after so many (default: 1000)"
    )


def run(args: argparse.Namespace) -> int:
    """Prepares, and says what came out."""
    from dqrm_cpu.data.prepare.progress import PrepareProgress
    from dqrm_cpu.data.prepare.run import prepare
    from dqrm_cpu.kernel_cache import must_compile

    progress = PrepareProgress(sys.stderr)
    request = _request(args, progress)
    if must_compile():
        progress.note("compiling the parser, once for this machine: about 10 s before the first rows")
    was_there = (args.out / "manifest.json").exists() and not args.restart
    began = time.monotonic()
    try:
        with stopped_by_signals():
            manifest = prepare(request, args.restart)
    except StoppedBySignal as stop:
        progress.close()
        print(f"stopped by {stop} {progress.reached}; {_how_to_go_on(args)}", file=sys.stderr)
        return stop.status
    finally:
        progress.close()
    print(_result(manifest, args.out, 0.0 if was_there else time.monotonic() - began))
    return 0


def _how_to_go_on(args: argparse.Namespace) -> str:
    if "-" in args.raw:
        return "the same command, fed with the same data, goes on from there"
    return "the same command goes on from there" + (" (without --restart)" if args.restart else "")


def _request(args: argparse.Namespace, progress: "PrepareProgress") -> "Request":
    from dqrm_cpu.data.prepare.raw_files import examine
    from dqrm_cpu.data.prepare.request import Request, Settings

    if (args.format is None) == (args.schema is None):
        raise UsageError(f"give either --format ({', '.join(_FORMATS)}) or --schema FILE")
    if len(set(args.raw)) != len(args.raw):
        raise UsageError("a raw file is named twice")
    sources = tuple(examine(path) for path in args.raw)
    if len({_identity(source) for source in sources}) != len(sources):
        raise UsageError("a raw file is named twice, once by a link or another path")
    layout = _layout(args, sources)
    settings = Settings(
        layout=layout,
        split=args.split or _SPLIT_OF.get(args.format, "last-seventh"),
        vocabulary=_vocabulary(args, layout),
        bad_rows=args.bad_rows,
        max_bad_rows=args.max_bad_rows,
        seed=args.seed,
        shard_rows=args.shard_rows,
    )
    if settings.split == "last-file" and len(sources) < 2:
        raise UsageError("the last of several files is held out, but there is only one: give all, or --split")
    if settings.split == "last-file" and args.split is None:
        _require_number_order(args.raw)
    means = _means(args, settings, sources)
    # Without its buffer, whose lock a thread that waits for input would hold when the process wants to end.
    stdin = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    return Request(sources, args.out, settings, means, stdin, progress.advance, progress.note)


def _identity(source: "RawFile") -> tuple[int, int]:
    if source.kind == "stdin":
        return -1, -1
    try:
        status = Path(source.path).stat()
    except OSError as error:
        raise UsageError(f"{source.path} cannot be read: {error.strerror}") from None
    return status.st_dev, status.st_ino


def _require_number_order(paths: list[str]) -> None:
    """A shell writes day_10 before day_2: the wrong day would be held out without a word."""
    last = max(paths, key=lambda path: [int(digits) for digits in re.findall(r"\d+", path)])
    if len({re.sub(r"\d+", "", path) for path in paths}) == 1 and last != paths[-1]:
        raise UsageError(
            f"the last file is held out, which is {paths[-1]}, but {last} has the higher number: give them in order, "
            "as in day_{0..23}.gz, or --split last-file if that one is meant"
        )


def _layout(args: argparse.Namespace, sources: "tuple[RawFile, ...]") -> "Layout":
    from dqrm_cpu.data.prepare.layout import CRITEO_LAYOUT
    from dqrm_cpu.data.prepare.raw_files import first_line
    from dqrm_cpu.data.prepare.schema_file import read_schema

    if sources[0].kind == "parquet":
        from dqrm_cpu.data.prepare.parquet import column_names

        if not args.schema:
            raise UsageError("Parquet files need --schema FILE, which says what their columns are")
        return read_schema(args.schema, "", column_names(sources[0].path))
    if not args.schema:
        return CRITEO_LAYOUT
    layout = read_schema(args.schema, first_line(sources[0]))
    if layout.header:
        _require_same_fields(args.schema, layout, sources[1:])
    return layout


def _require_same_fields(schema: Path, layout: "Layout", sources: "tuple[RawFile, ...]") -> None:
    """The header of every file is skipped: one with another order, or without one, would be read wrongly in silence."""
    from dqrm_cpu.data.prepare.raw_files import first_line
    from dqrm_cpu.data.prepare.schema_file import read_schema

    for source in sources:
        try:
            differs = source.kind != "parquet" and read_schema(schema, first_line(source)) != layout
        except ConfigError as error:
            raise UsageError(f"the first line of {source.path} is not the header of the first file: {error}") from None
        if differs:
            raise UsageError(f"the header of {source.path} names other fields than that of the first file")


def _vocabulary(args: argparse.Namespace, layout: "Layout") -> "VocabularySettings":
    from dqrm_cpu.data.prepare.request import VocabularySettings

    kind = args.vocabulary if args.vocabulary in ("exact", "hash") else "given"
    if (kind == "hash") != (args.hash_rows is not None):
        raise UsageError("--vocabulary hash and --hash-rows N belong together")
    if kind != "exact" and args.min_count > 1:
        raise UsageError("--min-count chooses the rows of an exact vocabulary; leave it out with another one")
    if kind == "given":
        from dqrm_cpu.data.prepare.vocabulary_files import require_vocabulary

        return require_vocabulary(Path(args.vocabulary), layout, args.max_ind_range)
    return VocabularySettings(kind, "", "", args.min_count, args.max_ind_range, args.hash_rows or 0)


def _means(args: argparse.Namespace, settings: "Settings", sources: "tuple[RawFile, ...]") -> "Means":
    from dqrm_cpu.data.prepare.estimate import buffer_bytes
    from dqrm_cpu.data.prepare.raw_files import estimate_text_bytes
    from dqrm_cpu.data.prepare.request import Means

    workers, available = args.workers or len(os.sched_getaffinity(0)), _free_memory()
    buffers = buffer_bytes(settings, workers, sum(estimate_text_bytes(source) for source in sources))
    budget = args.memory_budget or max(int(0.75 * (available - buffers)), 1)
    return Means(workers, budget, available_bytes=available, force=args.force)


def _free_memory() -> int:
    """Of the machine, and of the control group that a container or a scheduler gave this process."""
    import psutil

    from dqrm_cpu.profile.cgroup import read_cgroup

    available, of_group = int(psutil.virtual_memory().available), read_cgroup().memory_free_bytes
    return available if of_group is None else min(available, of_group)


def _result(manifest: "Manifest", out: Path, elapsed_s: float) -> str:
    rows = sum(manifest.num_rows(part) for part in manifest.parts)
    largest = max(manifest.table_rows)
    speed = f" in {elapsed_s:.1f} s ({rows / elapsed_s:,.0f} rows/s)" if elapsed_s > 0 else ""
    lines = [f"{rows:,} rows{speed}"]
    for part in ("train", "validation", "test"):
        count = manifest.num_rows(part)
        rate = f", {manifest.num_clicks(part) / count:.2%} clicks" if count else ""
        lines.append(f"{part:<12}{count:>14,} rows in {_shards(len(manifest.parts[part]))}{rate}")
    lines.append(
        f"{'tables':<12}{sum(manifest.table_rows):>14,} rows in {len(manifest.table_rows)}; largest {largest:,}"
    )
    lines += _counted(manifest)
    lines.append(f"{'data set':<12}{out}")
    return "\n".join(lines)


def _shards(count: int) -> str:
    return f"{count:,} shard{'' if count == 1 else 's'}"


def _counted(manifest: "Manifest") -> list[str]:
    """What was not as it should be; silent about what did not happen."""
    lines = []
    for name, meaning in (
        ("clamped", "negative numbers were taken as 0"),
        ("rare", "cells have a category too rare for a row of its own"),
        ("unseen", "cells have a category that the vocabulary does not have"),
    ):
        count = sum(getattr(column, name) or 0 for column in manifest.columns)
        if count:
            lines.append(f"{'':<12}{count:>14,} {meaning}")
    bad = manifest.settings["bad_lines"]
    if isinstance(bad, int) and bad:
        lines.append(f"{'bad rows':<12}{bad:>14,} left out")
        first = manifest.settings["first_bad_lines"]
        lines += [f"{'':<12}{line}" for line in first] if isinstance(first, list) else []
    return lines


def _count(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text.replace("_", "").replace(",", ""))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"{text} is out of range: want {minimum:,} to {maximum:,}")
        return value

    return parse


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes; write 500M or 16G")
    return int(float(match[1]) * _UNITS[match[2]])
