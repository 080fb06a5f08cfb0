"""`dqrm-cpu predict`: probabilities of raw or prepared rows, by a trained run or a packed model."""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dqrm_cpu.base.signals import StoppedBySignal, stopped_by_signals
from dqrm_cpu.cli.parser import Subparsers, UsageError, add_products_option, whole_number
from dqrm_cpu.comm.transports.launch import detect_launch
from dqrm_cpu.data.store.manifest import PART_NAMES

if TYPE_CHECKING:
    from dqrm_cpu.api.progress import PrepareProgress
    from dqrm_cpu.data.prepare.raw_rows import SkippedRows
    from dqrm_cpu.predict.prediction import PredictionSummary, PredictRequest

_STANDARD = "-"
_MOST_RANGES = 100

_ABOUT = (
    "Scores rows with a trained model: raw ones as they are logged, with or without a label, or a prepared data set."
)

_EXAMPLES = """examples:
  dqrm-cpu predict runs/a today.tsv --out scores.csv
  dqrm-cpu predict runs/a today.parquet --keys request_id,user --out scores.parquet
  zcat today.gz | dqrm-cpu predict runs/a - --out - > scores.csv
  dqrm-cpu predict runs/a/packed/dense.safetensors today.csv --data data/kaggle --out scores.csv
  dqrm-cpu predict runs/a data/kaggle --part validation --calibrate platt --out scores.csv

Raw rows are read as those that the run's data set was prepared from, with its vocabulary: docs/predict.md."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command's options."""
    parser = subparsers.add_parser(
        "predict", help="score rows with a trained model", description=_ABOUT, epilog=_EXAMPLES
    )
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="the folder of a run, or a packed file (.safetensors)"
    )
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="raw files in their order: CSV, TSV, .gz, .zst or Parquet; -: standard input;\n"
        "or the folder of one prepared data set",
    )
    parser.add_argument("--out", metavar="FILE", required=True, help=".csv or .parquet; -: CSV on standard output")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")
    parser.add_argument(
        "--keys",
        metavar="A,B",
        help="columns that name a row, such as an id of the request: kept beside its probability\n"
        "default: the `keys` of the schema with which the data set was prepared",
    )
    parser.add_argument(
        "--data", metavar="DIR", type=Path, help="a data set with the model's vocabulary\ndefault: that of the run"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="WHICH",
        default="best",
        help="of a run: best, last, or the folder of one\ndefault: best",
    )
    parser.add_argument(
        "--part",
        metavar="PART",
        choices=(*PART_NAMES, "all"),
        default="all",
        help="of a prepared data set: train | validation | test | all (default), in this order",
    )
    parser.add_argument(
        "--calibrate",
        metavar="HOW",
        choices=("platt", "isotonic"),
        help="platt | isotonic: correct the probabilities by what the run's validation rows tell",
    )
    add_products_option(parser, "of a file that dqrm-cpu export wrote")
    parser.add_argument(
        "--bad-rows",
        metavar="POLICY",
        choices=("stop", "skip", "quarantine"),
        default="stop",
        help="stop (default), skip: leave them out, and say which they were,\n"
        "or quarantine: also keep them, as they were, in FILE.bad-rows.txt",
    )
    parser.add_argument(
        "--max-bad-rows", metavar="N", type=whole_number(0), default=1000, help="stop after so many (default: 1000)"
    )
    parser.add_argument(
        "--workers", metavar="N", type=whole_number(1), help="threads (default: one per core that this process may use)"
    )


def run(args: argparse.Namespace) -> int:
    """Scores the rows; says on standard error how many there were."""
    if detect_launch(os.environ).size > 1:
        raise UsageError("predict works in one process; start it without the launcher, on as many files as you like")
    from dqrm_cpu.api.progress import PrepareProgress
    from dqrm_cpu.base.kernel_cache import compiling_note
    from dqrm_cpu.predict.prediction import predict

    progress = PrepareProgress(sys.stderr)
    request = _request(args, progress)
    if note := compiling_note("parse", "rows"):
        progress.note(note)
    began = time.monotonic()
    try:
        with stopped_by_signals():
            summary = predict(request)
    except StoppedBySignal as stop:
        progress.close()
        left = "what was written is not all" if args.out == _STANDARD else f"{args.out} was not written"
        print(f"stopped by {stop} {progress.reached}; {left}", file=sys.stderr)
        return stop.status
    finally:
        progress.close()
    print("\n".join(_lines(summary, args.out, time.monotonic() - began)), file=sys.stderr)
    return 0


def _request(args: argparse.Namespace, progress: "PrepareProgress") -> "PredictRequest":
    from dqrm_cpu.base.cgroup import default_threads, usable_cores
    from dqrm_cpu.predict.prediction import PredictRequest
    from dqrm_cpu.train.working import working_on

    workers = args.workers or default_threads(usable_cores(), os.environ)
    # Without its buffer, whose lock a thread that waits for input would hold when the process wants to end.
    stdin: BinaryIO = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    return PredictRequest(
        model=args.model,
        inputs=tuple(args.inputs),
        out=sys.stdout.buffer if args.out == _STANDARD else Path(args.out),
        keys=None if args.keys is None else tuple(name.strip() for name in args.keys.split(",") if name.strip()),
        data=args.data,
        checkpoint=args.checkpoint,
        part=args.part,
        calibrate=args.calibrate,
        products=args.products,
        bad_rows=args.bad_rows,
        max_bad_rows=args.max_bad_rows,
        overwrite=args.overwrite,
        workers=workers,
        stdin=stdin,
        advance=progress.advance,
        note=progress.note,
        show_work=partial(working_on, sys.stderr),
    )


def _lines(summary: "PredictionSummary", out: str, elapsed_s: float) -> list[str]:
    where = "standard output" if out == _STANDARD else out
    speed = f" in {elapsed_s:.1f} s ({summary.rows / elapsed_s:,.0f} rows/s)" if elapsed_s > 0 else ""
    lines = [
        f"{summary.rows:,} rows{speed} to {where}",
        f"{'model':<12}{summary.model}",
        f"{'mean':<12}{summary.mean_probability:.5f}",
    ]
    lines += [f"{'cut':<12}{_cut(summary)}"] if summary.cut else []
    return lines + (_skipped_lines(summary.skipped, summary.quarantine) if summary.skipped.count else [])


def _cut(summary: "PredictionSummary") -> str:
    columns = ", ".join(f"{count:,} of {name}" for name, count in summary.cut.items())
    return f"values beyond the `limit` of their cell were left out, as in training: {columns}"


def _skipped_lines(skipped: "SkippedRows", quarantine: Path | None) -> list[str]:
    kept = "" if quarantine is None else f", kept in {quarantine}"
    lines = [f"{'bad rows':<12}{skipped.count:,} left out{kept}"]
    for places, numbers in skipped.numbers.items():
        ranges = _ranges(numbers)
        shown = ", ".join([*ranges[:_MOST_RANGES], *(["..."] if len(ranges) > _MOST_RANGES else [])])
        lines.append(f"{'':<12}{places if len(numbers) > 1 else places.removesuffix('s')} {shown}")
    return lines + [f"{'':<12}{line}" for line in skipped.first]


def _ranges(numbers: list[int]) -> list[str]:
    """Writes rising numbers, neighbours as first-last."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return [f"{first:,}" if first == last else f"{first:,}-{last:,}" for first, last in ranges]
