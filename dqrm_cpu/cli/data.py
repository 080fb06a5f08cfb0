"""`dqrm-cpu data`: looks at prepared data sets, checks them, converts those of other programs, generates raw ones."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.cli.parser import Parser, Subparsers, UsageError

if TYPE_CHECKING:
    from dqrm_cpu.data.store.manifest import Manifest

_EPILOG = """examples:
  dqrm-cpu data show data/kaggle                 what the data set is and where it came from
  dqrm-cpu data verify data/kaggle               read all of it and compare it with its checksums
  dqrm-cpu data head data/kaggle --rows 3        the first rows
  dqrm-cpu data convert kaggleAdDisplayChallenge_processed.npz data/kaggle
  dqrm-cpu data generate train.txt.gz --rows 1000000   raw clicks like Criteo's, to try `prepare` on

The format: docs/data-format.md."""

_MOST_HEAD_ROWS = 20
_LAST_SEED = 2**32 - 1


def add_parser(subparsers: Subparsers) -> None:
    """The actions and their options."""
    about = "look at prepared data, check or convert it, generate raw data"
    parser = subparsers.add_parser("data", help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=_EPILOG)
    actions = parser.add_subparsers(dest="action", metavar="COMMAND", title="commands")
    show = _add_action(actions, "show", "describe a data set: rows, columns, where it came from")
    show.add_argument("--json", action="store_true", help="print the description for a program")
    _add_action(actions, "verify", "read every byte and compare it with the checksums; 1 if something is damaged")
    head = _add_action(actions, "head", "print some rows")
    head.add_argument("--part", choices=("train", "validation", "test"), default="train", help="default: train")
    head.add_argument("--rows", metavar="N", type=int, default=5, help=f"1 to {_MOST_HEAD_ROWS} (default: 5)")
    head.add_argument("--start", metavar="ROW", type=int, default=0, help="the first of them (default: 0)")
    convert = actions.add_parser("convert", help="read DLRM's .npz, MLPerf's .bin or torchrec's .npy files")
    convert.add_argument("source", metavar="SOURCE", type=Path, help="an .npz file, or a folder of .bin or .npy files")
    convert.add_argument("out", metavar="OUT", type=Path, help="the folder to write to")
    convert.add_argument(
        "--max-ind-range", metavar="N", type=int, default=0, help="take ids modulo N; 0 (default): as they are"
    )
    generate = actions.add_parser("generate", help="write generated clicks as a raw Criteo file, for `prepare`")
    generate.add_argument("file", metavar="FILE", type=Path, help="the file to write; NAME.gz is compressed")
    generate.add_argument("--rows", metavar="N", type=int, required=True, help="lines to write")
    generate.add_argument("--seed", metavar="N", type=int, default=1, help="the same seed, the same rows (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Does one of them; the exit status is 1 for damaged data."""
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

    from dqrm_cpu.data.prepare.vocabulary_files import verify_vocabulary
    from dqrm_cpu.data.store.manifest import PART_NAMES, read_manifest
    from dqrm_cpu.data.store.verify import verify

    manifest = read_manifest(args.directory)
    files = [file for part in PART_NAMES for file in manifest.parts[part]]
    size = sum(file.bytes for file in files)
    # A bar for what lasts longer than a glance, and only on a terminal.
    with tqdm(total=size, unit="B", unit_scale=True, delay=1, leave=False, file=sys.stderr, disable=None) as bar:
        found = verify(args.directory, manifest, lambda count: _advance(bar, count))
    found += verify_vocabulary(args.directory, manifest)
    for damage in found:
        print(f"damaged: {damage}")
    if found:
        print(f"{len(found)} of the pieces of {args.directory} are damaged.")
        return 1
    rows = sum(file.rows for file in files)
    print(f"{args.directory} is whole: {len(files)} shards, {rows:,} rows, {size:,} bytes read.")
    return 0


def _head(args: argparse.Namespace) -> int:
    from dqrm_cpu.cli.data_tables import format_rows
    from dqrm_cpu.data.store.manifest import read_manifest
    from dqrm_cpu.data.store.part import StoredRows

    if not 1 <= args.rows <= _MOST_HEAD_ROWS:
        raise UsageError(f"--rows {args.rows}: 1 to {_MOST_HEAD_ROWS} rows fit on a screen")
    manifest = read_manifest(args.directory)
    num_rows = manifest.num_rows(args.part)
    if not 0 <= args.start < num_rows:
        raise UsageError(f"--start {args.start}: the {args.part} part has rows 0 to {num_rows - 1:,}")
    stop = min(args.start + args.rows, num_rows)
    batch = StoredRows(args.directory, manifest, args.part).rows(args.start, stop)
    print(f"{args.part} rows {args.start:,} to {stop - 1:,} of {num_rows:,}; dense values are log(x + 1)\n")
    print(format_rows(manifest, batch, args.start))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from dqrm_cpu.data.store.foreign.convert import convert, open_foreign

    if args.max_ind_range < 0:
        raise UsageError(f"--max-ind-range {args.max_ind_range}: a number of rows, or 0 to leave ids as they are")
    foreign = open_foreign(args.source)
    print(f"reading {foreign.description}: {foreign.num_rows:,} rows", file=sys.stderr)
    with tqdm(total=foreign.num_rows, unit=" rows", unit_scale=True, file=sys.stderr, disable=None) as bar:
        manifest = convert(foreign, args.out, args.max_ind_range, lambda count: _advance(bar, count))
    print(_converted(args.out, manifest))
    return 0


def _generate(args: argparse.Namespace) -> int:
    _check_generate(args)
    from tqdm import tqdm

    from dqrm_cpu.config.schema import KAGGLE_TABLE_ROWS
    from dqrm_cpu.data.prepare.layout import CRITEO_LAYOUT
    from dqrm_cpu.data.prepare.write_tsv import write_tsv
    from dqrm_cpu.data.synthetic import SyntheticClicks

    clicks = SyntheticClicks(KAGGLE_TABLE_ROWS, CRITEO_LAYOUT.schema.num_dense, args.seed)
    with tqdm(total=args.rows, unit=" rows", unit_scale=True, delay=1, file=sys.stderr, disable=None) as bar:
        size = write_tsv(clicks, 0, args.rows, args.file, lambda count: _advance(bar, count))
    print(
        f"{args.file} holds {args.rows:,} generated rows, {size:,} bytes of text. Prepare them with:\n"
        f"  dqrm-cpu prepare {args.file} --format kaggle --out DIR"
    )
    return 0


def _check_generate(args: argparse.Namespace) -> None:
    if args.rows < 1:
        raise UsageError(f"--rows {args.rows}: at least one")
    if not 0 <= args.seed <= _LAST_SEED:
        raise UsageError(f"--seed {args.seed}: 0 to {_LAST_SEED:,}")
    if not args.file.parent.is_dir():
        raise UsageError(f"{args.file}: there is no folder {args.file.parent}; make it first")
    if args.file.exists():
        raise UsageError(f"{args.file} is there already, perhaps with clicks that are real; give another name")


def _advance(bar: object, count: int) -> None:
    bar.update(count)  # type: ignore[attr-defined]


def _converted(out: Path, manifest: "Manifest") -> str:
    parts = ", ".join(f"{manifest.num_rows(part):,} {part}" for part in manifest.parts)
    return (
        f"{out} holds {parts} rows, in the order of the source. Train on it with:\n"
        f"  dqrm-cpu train --data {out} --data.reshuffle true"
    )
