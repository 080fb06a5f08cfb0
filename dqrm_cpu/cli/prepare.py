"""`dqrm-cpu prepare`: raw click logs to a prepared data set."""

import argparse
import re
import shlex
import sys
import time
from dataclasses import fields
from pathlib import Path

from dqrm_cpu.api.prepare_order import CHOICES, LIMITS, PrepareOrder
from dqrm_cpu.base.signals import StoppedBySignal, stopped_by_signals
from dqrm_cpu.cli.parser import Subparsers, UsageError, whole_number
from dqrm_cpu.errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}

_ABOUT = "Turns raw click logs into a data set to train on; run it again to go on after an interruption."

_EXAMPLES = """examples:
  dqrm-cpu prepare train.csv --suggest schema.toml
  dqrm-cpu prepare train.txt --format kaggle --out data/kaggle
  dqrm-cpu prepare day_{0..23}.gz --format terabyte --max-ind-range 10000000 --out data/terabyte
  dqrm-cpu prepare day_24.gz --format tsv --split none --vocabulary data/terabyte --out data/day-24
  dqrm-cpu prepare logs/2024-01 's3://bucket/2024-02/*.parquet' --schema avazu.toml --out data/avazu
  dqrm-cpu prepare day_24.gz --format tsv --grow-from data/terabyte --out data/grown
  zcat logs/*.gz | dqrm-cpu prepare - --schema avazu.toml --out data/avazu

docs/prepare.md says what exactly becomes of every field."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command with its options."""
    parser = subparsers.add_parser(
        "prepare", help="turn raw click logs into a data set", description=_ABOUT, epilog=_EXAMPLES
    )
    parser.add_argument(
        "raw",
        metavar="RAW",
        nargs="+",
        help="raw files in their order: plain, .gz, .zst or Parquet; folders, patterns such as 'day_*.gz', URLs\n"
        "such as s3://bucket/logs; -: standard input",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the data set goes")
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        choices=CHOICES["format"],
        help="kaggle: train.txt, last seventh of the rows held out; terabyte: day_0 ..., last file held out\n"
        "tsv: the same columns from elsewhere",
    )
    parser.add_argument("--schema", metavar="FILE", type=Path, help="TOML that describes the fields of other data sets")
    parser.add_argument(
        "--suggest",
        metavar="FILE",
        type=Path,
        help="write a first schema for --schema, guessed from the first rows, and prepare nothing",
    )
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        choices=CHOICES["split"],
        help="what is held out, half for test and half for validation (default: by --format, or [split] of --schema)",
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        choices=CHOICES["protocol"],
        help="whose split and --min-count, to compare with their figures (docs/prepare.md): paper (chronological),\n"
        "x1 or x4 (BARS: random, a min-count of 10)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=whole_number(*LIMITS["seed"]), default=1, help="of the shuffle (default: 1)"
    )
    _add_vocabulary(parser)
    _add_bad_rows(parser)
    parser.add_argument(
        "--shard-rows",
        metavar="N",
        type=whole_number(*LIMITS["shard_rows"]),
        default=262_144,
        help="rows of a shard, about (262,144)",
    )
    parser.add_argument(
        "--workers", metavar="N", type=whole_number(*LIMITS["workers"]), help="threads (default: every core it may use)"
    )
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
    group.add_argument(
        "--grow-from",
        metavar="DIR",
        type=Path,
        help="the vocabulary of an earlier day's data set, and rows for categories that it does not have:\n"
        "`train --init-from` goes on with the model of that day",
    )
    group.add_argument(
        "--hash-rows", metavar="N", type=whole_number(*LIMITS["hash_rows"]), help="rows of every table when hashing"
    )
    group.add_argument(
        "--min-count",
        metavar="K",
        type=whole_number(*LIMITS["min_count"]),
        help="categories rarer than K get row 0 (default: 1, or as --protocol says); with --grow-from: new\n"
        "ones, whose training rows are counted over all days since the first",
    )
    group.add_argument(
        "--evict-unseen",
        metavar="N",
        type=whole_number(*LIMITS["evict_unseen"]),
        default=0,
        help="with --grow-from: categories that no row of the last N days has, this one among them, leave",
    )
    group.add_argument(
        "--evict-zero",
        metavar="MODEL",
        type=Path,
        help="with --grow-from: categories that no row of this day has leave if their row is zero in this model\n"
        "of the day before, a run or a packed file: it says nothing by them",
    )
    group.add_argument(
        "--max-ind-range",
        metavar="N",
        type=whole_number(*LIMITS["max_ind_range"]),
        default=0,
        help="take hashes modulo N first",
    )


def _add_bad_rows(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("bad rows")
    group.add_argument(
        "--bad-rows",
        metavar="POLICY",
        choices=CHOICES["bad_rows"],
        default="stop",
        help="stop (default), skip, or quarantine: keep them in DIR/bad-rows.txt",
    )
    group.add_argument(
        "--max-bad-rows",
        metavar="N",
        type=whole_number(*LIMITS["max_bad_rows"]),
        default=1000,
        help="stop after so many (default: 1000)",
    )


def run(args: argparse.Namespace) -> int:
    """Prepares the data set and prints what it holds, or writes a schema for it."""
    if args.suggest is not None:
        return _suggest(args)
    if args.out is None:
        raise UsageError("give --out DIR, where the data set goes (or --suggest FILE, for a schema first)")
    from dqrm_cpu.api.preparing import prepare_request
    from dqrm_cpu.api.progress import PrepareProgress
    from dqrm_cpu.base.kernel_cache import compiling_note
    from dqrm_cpu.cli.prepare_output import describe_result
    from dqrm_cpu.data.prepare.preparation import prepare

    progress = PrepareProgress(sys.stderr)
    given = {field.name: getattr(args, field.name) for field in fields(PrepareOrder)}
    order = PrepareOrder(**{**given, "raw": tuple(args.raw)})
    # Without its buffer, whose lock a thread that waits for input would hold when the process wants to end.
    stdin = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    request = prepare_request(order, stdin, progress.advance, progress.note)
    if note := compiling_note("parse", "rows"):
        progress.note(note)
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
    print(describe_result(manifest, args.out, 0.0 if was_there else time.monotonic() - began))
    return 0


def _suggest(args: argparse.Namespace) -> int:
    """Writes a schema for the first of the raw files."""
    from dqrm_cpu.base.files import replace_file
    from dqrm_cpu.data.prepare.sample import read_sample
    from dqrm_cpu.data.prepare.sources.find import find_sources
    from dqrm_cpu.data.prepare.sources.raw_file import examine
    from dqrm_cpu.data.prepare.suggest import suggest_schema
    from dqrm_cpu.train.working import Working

    if args.out is not None or args.schema is not None or args.format is not None:
        raise UsageError("--suggest prepares nothing; give it without --out, --schema and --format")
    source = find_sources(args.raw)[0]
    with Working(f"reading the first rows of {source}"):
        sample = read_sample(examine(source))
    with Working("finding the roles of the columns", len(sample.names)) as work:
        text = suggest_schema(sample, source, work.advance).encode()
    if not args.suggest.exists():
        replace_file(args.suggest, [text], ConfigError)
    elif not args.suggest.is_file() or args.suggest.read_bytes() != text:
        raise UsageError(f"{args.suggest} is there already, and not as suggested; give another name, or remove it")
    print(f"{args.suggest} describes {source}; look it over, then:")
    print(f"  dqrm-cpu prepare {shlex.join(args.raw)} --schema {shlex.quote(str(args.suggest))} --out DIR")
    return 0


def _how_to_go_on(args: argparse.Namespace) -> str:
    if "-" in args.raw:
        return "the same command, fed with the same data, goes on from there"
    return "the same command goes on from there" + (" (without --restart)" if args.restart else "")


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes; write 500M or 16G")
    return int(float(match[1]) * _UNITS[match[2]])
