"""`dqrm-cpu data`: looks at prepared data sets, checks them, converts those of other programs, generates raw ones."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.cli.parser import Parser, Subparsers, UsageError, whole_number

if TYPE_CHECKING:
    from dqrm_cpu.data.store.manifest import Manifest

_EPILOG = """examples:
  dqrm-cpu data show data/kaggle                 what the data set is and where it came from
  dqrm-cpu data verify data/kaggle               read all of it and compare it with its checksums
  dqrm-cpu data head data/kaggle --rows 3        the first rows
  dqrm-cpu data convert kaggleAdDisplayChallenge_processed.npz data/kaggle
  dqrm-cpu data generate train.txt.gz --rows 1000000   raw clicks like Criteo's, to try `prepare` on
  dqrm-cpu data generate days --format log --days 7 --rows 20000
      a week of a log as CSV: tags, times, negative numbers, bad rows, drift and new users every day

The format: docs/data-format.md."""

_MOST_HEAD_ROWS = 20
_LAST_SEED = 2**32 - 1
_MOST_DAYS = 3650


def add_parser(subparsers: Subparsers) -> None:
    """Adds the actions and their options."""
    about = "look at prepared data, check or convert it, generate raw data"
    parser = subparsers.add_parser("data", help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=_EPILOG)
    actions = parser.add_subparsers(dest="action", metavar="COMMAND", title="commands")
    show = _add_action(actions, "show", "describe a data set: rows, columns, where it came from")
    show.add_argument("--json", action="store_true", help="print the description for a program")
    _add_action(actions, "verify", "read every byte and compare it with the checksums; 1 if something is damaged")
    head = _add_action(actions, "head", "print some rows")
    head.add_argument("--part", choices=("train", "validation", "test"), default="train", help="default: train")
    head.add_argument(
        "--rows",
        metavar="N",
        type=whole_number(1, _MOST_HEAD_ROWS),
        default=5,
        help=f"1 to {_MOST_HEAD_ROWS} (default: 5)",
    )
    head.add_argument("--start", metavar="ROW", type=whole_number(0), default=0, help="the first of them (default: 0)")
    convert = actions.add_parser("convert", help="read DLRM's .npz, MLPerf's .bin or torchrec's .npy files")
    convert.add_argument("source", metavar="SOURCE", type=Path, help="an .npz file, or a folder of .bin or .npy files")
    convert.add_argument("out", metavar="OUT", type=Path, help="the folder to write to")
    convert.add_argument(
        "--max-ind-range",
        metavar="N",
        type=whole_number(0),
        default=0,
        help="take ids modulo N; 0 (default): as they are",
    )
    generate = actions.add_parser("generate", help="write generated clicks as raw files, for `prepare`")
    generate.add_argument(
        "file", metavar="FILE", type=Path, help="the file to write, NAME.gz is compressed; for a log the folder of days"
    )
    generate.add_argument(
        "--format",
        metavar="FORMAT",
        choices=("criteo", "log"),
        default="criteo",
        help="criteo (default): rows like Criteo's, in their form\n"
        "log: CSV files FILE/day-1.csv and so on, with drift and new categories every day",
    )
    generate.add_argument(
        "--rows", metavar="N", type=whole_number(1), required=True, help="lines to write; of a log: for each day"
    )
    generate.add_argument("--days", metavar="N", type=whole_number(1, _MOST_DAYS), help="of a log (default: 7)")
    generate.add_argument(
        "--seed",
        metavar="N",
        type=whole_number(0, _LAST_SEED),
        default=1,
        help="the same seed, the same rows (default: 1)",
    )


def run(args: argparse.Namespace) -> int:
    """Does one of the actions; the exit status is 1 for damaged data."""
    actions = {"show": _show, "verify": _verify, "head": _head, "convert": _convert, "generate": _generate}
    if args.action is None:
        raise UsageError(f"what to do with the data? {', '.join(actions)}; dqrm-cpu data --help says more")
    return actions[args.action](args)


def _add_action(actions: Subparsers, name: str, about: str) -> Parser:
    parser = actions.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    parser.add_argument("directory", metavar="DIR", type=Path, help="the folder of a prepared data set")
    return parser


def _show(args: argparse.Namespace) -> int:
    from dqrm_cpu.cli.data_tables import describe
    from dqrm_cpu.data.store.manifest import read_manifest

    manifest = read_manifest(args.directory)
    if args.json:
        print(json.dumps({"fingerprint": manifest.digest(), **asdict(manifest)}, indent=2))
    else:
        print(describe(args.directory, manifest))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import verify_vocabulary, vocabulary_bytes
    from dqrm_cpu.data.store.manifest import PART_NAMES, read_manifest
    from dqrm_cpu.data.store.mapping_faults import name_unreadable_files
    from dqrm_cpu.data.store.shard import verify

    name_unreadable_files()
    manifest = read_manifest(args.directory)
    files = [file for part in PART_NAMES for file in manifest.parts[part]]
    size = sum(file.bytes for file in files)
    # A bar for what lasts longer than a glance, and only on a terminal.
    total = size + vocabulary_bytes(args.directory)
    with tqdm(total=total, unit="B", unit_scale=True, delay=1, leave=False, file=sys.stderr, disable=None) as bar:
        damages = verify(args.directory, manifest, lambda count: _advance(bar, count))
        damages += verify_vocabulary(args.directory, manifest, lambda count: _advance(bar, count))
    for damage in damages:
        print(f"damaged: {damage}")
    if damages:
        print(f"{len(damages)} of the pieces of {args.directory} are damaged.")
        return 1
    rows = sum(file.rows for file in files)
    print(f"{args.directory} is whole: {len(files)} shards, {rows:,} rows, {size:,} bytes read.")
    return 0


def _head(args: argparse.Namespace) -> int:
    from dqrm_cpu.cli.data_tables import format_rows
    from dqrm_cpu.data.store.manifest import read_manifest
    from dqrm_cpu.data.store.stored_rows import StoredRows

    manifest = read_manifest(args.directory)
    num_rows = manifest.num_rows(args.part)
    if args.start >= num_rows:
        raise UsageError(f"--start {args.start}: the {args.part} part has rows 0 to {num_rows - 1:,}")
    stop = min(args.start + args.rows, num_rows)
    batch = StoredRows(args.directory, manifest, args.part).rows(args.start, stop)
    print(f"{args.part} rows {args.start:,} to {stop - 1:,} of {num_rows:,}; dense values as a model reads them\n")
    print(format_rows(manifest, batch, args.start))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from dqrm_cpu.data.store.foreign.convert import convert, open_foreign

    foreign = open_foreign(args.source)
    print(f"reading {foreign.description}: {foreign.num_rows:,} rows", file=sys.stderr)
    with tqdm(total=foreign.num_rows, unit=" rows", unit_scale=True, file=sys.stderr, disable=None) as bar:
        manifest = convert(foreign, args.out, args.max_ind_range, lambda count: _advance(bar, count))
    print(_converted(args.out, manifest))
    return 0


def _generate(args: argparse.Namespace) -> int:
    _check_generate(args)
    return _generate_log(args) if args.format == "log" else _generate_criteo(args)


def _generate_log(args: argparse.Namespace) -> int:
    """Writes days of a log; the same command again finds them and says the same."""
    from tqdm import tqdm

    from dqrm_cpu.data.synthetic.daily_log import DailyLog, write_days

    log, days = DailyLog(args.rows, args.seed), args.days or 7
    with tqdm(total=days * args.rows, unit=" rows", unit_scale=True, delay=1, file=sys.stderr, disable=None) as bar:
        paths, size = write_days(log, args.file, days, lambda count: _advance(bar, count))
    print(
        f"{args.file} holds {days} days of {args.rows:,} generated rows, {size:,} bytes of text. Describe them with:\n"
        f"  dqrm-cpu prepare {paths[0]} --suggest schema.toml"
    )
    return 0


def _generate_criteo(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from dqrm_cpu.config.schema import KAGGLE_TABLE_ROWS
    from dqrm_cpu.data.prepare.row_layout import CRITEO_LAYOUT
    from dqrm_cpu.data.synthetic.stream import SyntheticClicks
    from dqrm_cpu.data.synthetic.write_tsv import write_tsv

    clicks = SyntheticClicks(KAGGLE_TABLE_ROWS, CRITEO_LAYOUT.schema.num_dense, args.seed)
    with tqdm(total=args.rows, unit=" rows", unit_scale=True, delay=1, file=sys.stderr, disable=None) as bar:
        size = write_tsv(clicks, 0, args.rows, args.file, lambda count: _advance(bar, count))
    print(
        f"{args.file} holds {args.rows:,} generated rows, {size:,} bytes of text. Prepare them with:\n"
        f"  dqrm-cpu prepare {args.file} --format kaggle --out DIR"
    )
    return 0


def _check_generate(args: argparse.Namespace) -> None:
    if not args.file.parent.is_dir():
        raise UsageError(f"{args.file}: there is no folder {args.file.parent}; make it first")
    if args.days is not None and args.format != "log":
        raise UsageError("--days is for --format log; Criteo's rows have no days")
    if args.format == "log" and args.file.exists() and not args.file.is_dir():
        raise UsageError(f"{args.file} is a file; days of a log go into a folder")
    if args.format == "criteo" and args.file.exists():
        raise UsageError(f"{args.file} is there already, perhaps with clicks that are real; give another name")


def _advance(bar: object, count: int) -> None:
    bar.update(count)  # type: ignore[attr-defined]


def _converted(out: Path, manifest: "Manifest") -> str:
    parts = ", ".join(f"{manifest.num_rows(part):,} {part}" for part in manifest.parts)
    return (
        f"{out} holds {parts} rows, in the order of the source. Train on it with:\n"
        f"  dqrm-cpu train --data {out} --data.reshuffle true"
    )
