"""`dqrm-cpu evaluate`: metrics of a trained model on the rows of its data set, or of another with its vocabulary."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dqrm_cpu.api.settings import parts_cut
from dqrm_cpu.cli.options import add_config_options, given_settings, tell, warn
from dqrm_cpu.cli.parser import Subparsers, UsageError, whole_number
from dqrm_cpu.cli.train import protocol_line
from dqrm_cpu.data.store.manifest import PART_NAMES
from dqrm_cpu.train.working import Working

if TYPE_CHECKING:
    from dqrm_cpu.api.evaluation import Evaluation
    from dqrm_cpu.metrics.click import ClickMetrics
    from dqrm_cpu.metrics.groups import Slice

_ABOUT = "Computes the metrics of a trained model on a part of its data set, or of another with the same vocabulary."

_EXAMPLES = """examples:
  dqrm-cpu evaluate runs/a                            the best checkpoint, on test
  dqrm-cpu evaluate runs/a --checkpoint last --json
  dqrm-cpu evaluate runs/fp32 --quant.method dqrm     an FP32 model, quantized after training
  dqrm-cpu evaluate runs/a --data data/tuesday --part all
      all rows of another day, prepared with --vocabulary of the data set of the run
  dqrm-cpu evaluate model.safetensors --data data/tuesday
      an exported file, its calibration included
  dqrm-cpu evaluate runs/a --group-by user --slice-by country
      AUC within each user (GAUC), and all metrics of each of the ten most frequent countries
  dqrm-cpu evaluate runs/a --calibrate platt          with the probabilities of Platt's method"""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command's options."""
    parser = subparsers.add_parser("evaluate", help="evaluate a trained model", description=_ABOUT, epilog=_EXAMPLES)
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        type=Path,
        help="the folder of the run; its settings are the defaults. Or a model file (.safetensors), as it scores",
    )
    parser.add_argument("--run-dir", metavar="DIR", type=Path, help="the same")
    parser.add_argument(
        "--checkpoint", metavar="WHICH", default="best", help="best, last, or the folder of one\ndefault: best"
    )
    parser.add_argument(
        "--part",
        metavar="PART",
        choices=(*PART_NAMES, "all"),
        default="test",
        help="train | validation | test (default) | all of them together",
    )
    parser.add_argument(
        "--group-by",
        metavar="COLUMN",
        help="a category: GAUC too, the mean AUC within its values, weighted by rows;\n"
        "values of clicks only, or of none, are left out",
    )
    parser.add_argument(
        "--slice-by", metavar="COLUMN", help="a category: all metrics for each of its most frequent values"
    )
    parser.add_argument(
        "--slices", metavar="N", type=whole_number(1), default=10, help="how many values --slice-by shows\ndefault: 10"
    )
    parser.add_argument(
        "--calibrate",
        metavar="HOW",
        choices=("platt", "isotonic"),
        help="platt | isotonic: correct the probabilities by what the run's validation rows tell",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates on this process' share of the rows; only rank 0 prints."""
    args.run_dir = args.run or args.run_dir
    if args.run_dir is None:
        raise UsageError("which run? give its folder: dqrm-cpu evaluate RUN")
    if args.run_dir.is_file():
        return _run_file(args)
    from dqrm_cpu.api.evaluation import EvaluationOrder, evaluate
    from dqrm_cpu.api.ranks import opened_transport

    order = EvaluationOrder(
        args.run_dir,
        given_settings(args),
        args.part,
        args.checkpoint,
        args.group_by,
        args.slice_by,
        args.slices,
        args.calibrate,
    )
    config = order.load(warn)
    with opened_transport(config, tell) as transport:
        if transport.rank == 0:
            for line in parts_cut(config, order.parts):
                tell(f"note: scoring {line}")
        rows = sum(getattr(config.data, f"{part}_rows") for part in order.parts) // transport.size
        with Working("reading the model and scoring", rows, shown=transport.rank == 0) as work:
            evaluation = evaluate(order, config, transport, warn, work.advance)
        if transport.rank == 0:
            print(_as_json(evaluation, args) if args.json else _as_table(evaluation, args))
            if not args.json and (line := protocol_line(config.data.source)):
                print(line)
    return 0


def _run_file(args: argparse.Namespace) -> int:
    """Evaluates a model file in this process."""
    texts = dict(given_settings(args).texts)
    data = texts.pop("data.source", None)
    from dqrm_cpu.api.file_evaluation import FileEvaluationOrder, evaluate_file, open_rows, require_options_of_files

    others = [f"--{name}" for name in ("config", "preset") if getattr(args, name)]
    require_options_of_files([*(f"--{key}" for key in texts), *others], args.checkpoint, args.calibrate)
    order = FileEvaluationOrder(
        args.run_dir, None if data is None else Path(data), args.part, args.group_by, args.slice_by, args.slices
    )
    rows = open_rows(order, warn)
    with Working("reading the model and scoring", rows.num_rows) as work:
        evaluation = evaluate_file(order, rows, work.advance)
    print(_as_json(evaluation, args) if args.json else _as_table(evaluation, args))
    return 0


def _as_table(evaluation: "Evaluation", args: argparse.Namespace) -> str:
    from dqrm_cpu.metrics.click import defined

    metrics = evaluation.metrics
    left_out = f", without {metrics.skipped_rows:,} that are not sound" if metrics.skipped_rows else ""
    how = f", calibrated ({args.calibrate})" if evaluation.calibration else ""
    why = f" (the rows have {metrics.why_no_auc})" if metrics.why_no_auc else ""
    rows = f"all {metrics.examples:,}" if args.part == "all" else f"{metrics.examples:,} {args.part}"
    headline = f"{evaluation.checkpoint} on {rows} rows{left_out}{how}"
    auc, *others = metric_lines(metrics)
    lines = [headline, f"{auc}{why}", *others]
    if evaluation.grouped is not None:
        group = evaluation.grouped
        counts = f"{group.groups:,} values of {args.group_by}, {group.rows:,} rows"
        alike = f"; {group.groups_left_out:,} values, {group.rows_left_out:,} rows, of one label only"
        lines.append(f"  GAUC                {defined(group.gauc, '.5f')} ({counts}{alike})")
    if evaluation.slices is not None:
        lines += ["", *_slice_lines(args.slice_by, *evaluation.slices)]
    return "\n".join(lines)


def _slice_lines(column: str, parts: "Sequence[Slice]", others: "ClickMetrics | None") -> list[str]:
    """Writes a line of metrics for each value of a column, most frequent first, and one for the rows of all others."""
    from dqrm_cpu.metrics.click import defined

    named = [(f"{part.value}", part.metrics) for part in parts]
    named += [("others", others)] if others is not None else []
    width = max(len(f"id of {column}"), *(len(name) for name, _ in named)) if named else 0
    return [
        f"  {f'id of {column}':<{width}}        rows      AUC  log loss  calibration",
        *(
            f"  {name:<{width}}  {metrics.examples:>10,}{defined(metrics.auc, '9.5f')}"
            f"{defined(metrics.log_loss, '10.5f')}{defined(metrics.calibration, '13.5f')}"
            for name, metrics in named
        ),
    ]


def metric_lines(metrics: "ClickMetrics") -> list[str]:
    """Writes metrics below each other, AUC first."""
    from dqrm_cpu.metrics.click import defined

    return [
        f"  AUC                 {defined(metrics.auc, '.5f')}",
        f"  accuracy            {defined(metrics.accuracy, '.3%')}",
        f"  log loss            {defined(metrics.log_loss, '.5f')}",
        f"  normalized entropy  {defined(metrics.normalized_entropy, '.5f')}",
        f"  calibration         {defined(metrics.calibration, '.5f')}",
    ]


def _as_json(evaluation: "Evaluation", args: argparse.Namespace) -> str:
    from dqrm_cpu.train.metrics_row import strict_json

    document: dict[str, Any] = {
        "checkpoint": str(evaluation.checkpoint),
        "part": args.part,
        **evaluation.metrics.as_dict(),
    }
    if evaluation.calibration is not None:
        document["calibrated_by"] = args.calibrate
    if evaluation.grouped is not None:
        document["grouped"] = strict_json({"column": args.group_by, **asdict(evaluation.grouped)})
    if evaluation.slices is not None:
        parts, others = evaluation.slices
        rows: list[Mapping[str, Any]] = [{"id": part.value, **part.metrics.as_dict()} for part in parts]
        document["slices"] = {
            "column": args.slice_by,
            "values": [strict_json(row) for row in rows],
            "others": None if others is None else strict_json(others.as_dict()),
        }
    return json.dumps(strict_json(document), indent=2, allow_nan=False)
