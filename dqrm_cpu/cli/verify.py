"""`dqrm-cpu verify`: exported files against the run that they were written from."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dqrm_cpu.cli.parser import Subparsers, UsageError, add_products_option, whole_number
from dqrm_cpu.data.store.manifest import PART_NAMES

if TYPE_CHECKING:
    from dqrm_cpu.predict.verifying import Verification

_ABOUT = """Scores rows by a run and by files that `dqrm-cpu export` wrote from it, each in the runtime of its format,
and compares logits and AUC. The exit status is 1 where a file is further from the run than a limit allows."""

_EXAMPLES = """examples:
  dqrm-cpu verify runs/a/model.safetensors runs/a/model.onnx --against runs/a
  dqrm-cpu verify model.onnx --against runs/a --rows 100000 --json
  dqrm-cpu verify model.onnx --against runs/a --data data/tuesday     rows of another day with its vocabulary

ONNX files are read by ONNX Runtime: pip install 'dqrm-cpu[verify]'."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command's options."""
    parser = subparsers.add_parser(
        "verify", help="compare exported files with their run", description=_ABOUT, epilog=_EXAMPLES
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", type=Path, help="files that dqrm-cpu export wrote")
    parser.add_argument("--against", metavar="RUN", type=Path, help="the folder of the run that they were written from")
    parser.add_argument(
        "--checkpoint", metavar="WHICH", default="best", help="best, last, or the folder of one\ndefault: best"
    )
    parser.add_argument(
        "--data", metavar="DATASET", type=Path, help="a data set with the run's vocabulary\ndefault: that of the run"
    )
    parser.add_argument(
        "--part", metavar="PART", choices=PART_NAMES, default="test", help="train | validation | test (default)"
    )
    parser.add_argument("--rows", metavar="N", type=whole_number(1), help="the first N rows\ndefault: all of them")
    add_products_option(parser, "of packed files, beside the exact ones")
    parser.add_argument(
        "--max-logit",
        metavar="X",
        type=_limit,
        default=1e-5,
        help="how far a logit may be from the run's\n"
        "default: 1e-5; OpenVINO's in BF16, and those by int8, may be anything",
    )
    parser.add_argument(
        "--max-auc", metavar="X", type=_limit, help="how far AUC may be from the run's\ndefault: as far as it is"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _limit(text: str) -> float:
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return limit


def run(args: argparse.Namespace) -> int:
    """Prints how far each file is from the run; 1 where that is too far."""
    if args.against is None:
        raise UsageError("against which run? give its folder: dqrm-cpu verify MODEL --against RUN")
    from dqrm_cpu.predict.verifying import Verifier, VerifyRequest
    from dqrm_cpu.train.working import Working

    request = VerifyRequest(
        files=tuple(args.models),
        run_dir=args.against,
        checkpoint=args.checkpoint,
        data=args.data,
        part=args.part,
        rows=args.rows,
        max_logit=args.max_logit,
        max_auc=args.max_auc,
        products=args.products,
        note=lambda text: print(text, file=sys.stderr),
    )
    with Working("opening the run and its files"):
        verifier = Verifier(request)
    with Working("scoring rows by the run and its files", verifier.num_rows) as work:
        found = verifier.verify(work.advance)
    print(_as_json(found) if args.json else _as_table(found))
    for one in found.files:
        for why in one.failures:
            print(f"{one.path}: {why}", file=sys.stderr)
    return 0 if found.passed else 1


def _as_table(found: "Verification") -> str:
    from dqrm_cpu.cli.data_tables import table
    from dqrm_cpu.metrics.click import defined

    left_out = f", without {found.left_out:,} that are not sound" if found.left_out else ""
    rows = [("file", "runtime", "MB", "logits differ by", "AUC", "differs by")]
    for one in found.files:
        rows.append(
            (
                str(one.path),
                one.runtime,
                f"{one.num_bytes / 1e6:,.3f}",
                f"{one.largest_difference:.1g}",
                defined(one.auc, ".5f"),
                defined(one.auc_difference, "+.1g"),
            )
        )
    headline = f"{found.checkpoint} on {found.rows:,} {found.part} rows{left_out}: AUC {defined(found.auc, '.5f')}"
    return f"{headline}\n{table(rows, left=2)}"


def _as_json(found: "Verification") -> str:
    from dqrm_cpu.train.metrics_row import strict_json

    files: list[dict[str, Any]] = [
        {
            "file": str(one.path),
            "runtime": one.runtime,
            "bytes": one.num_bytes,
            "largest_logit_difference": one.largest_difference,
            "auc": one.auc,
            "auc_difference": one.auc_difference,
            "failures": list(one.failures),
        }
        for one in found.files
    ]
    document: dict[str, Any] = {
        "checkpoint": str(found.checkpoint),
        "data": str(found.data),
        "part": found.part,
        "rows": found.rows,
        "rows_left_out": found.left_out,
        "auc": found.auc,
        "files": files,
        "passed": found.passed,
    }
    return json.dumps(strict_json(document), indent=2, allow_nan=False)
