"""`dqrm-cpu evaluate`: metrics of a trained model on the rows of its data set, or of another with its vocabulary."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.cli.options import add_config_options
from dqrm_cpu.cli.parser import Subparsers, UsageError
from dqrm_cpu.cli.run_config import config_to_score, parts_cut

if TYPE_CHECKING:
    from dqrm_cpu.comm.transport import Transport
    from dqrm_cpu.config import Config
    from dqrm_cpu.train.metrics import ClickMetrics

_ABOUT = "Computes the metrics of a trained model on a part of its data set, or of another with the same vocabulary."

_PARTS = ("train", "validation", "test")

_EXAMPLES = """examples:
  dqrm-cpu evaluate --run-dir runs/a                            the best checkpoint, on test
  dqrm-cpu evaluate --run-dir runs/a --checkpoint last --json
  dqrm-cpu evaluate --run-dir runs/fp32 --quant.method dqrm     an FP32 model, quantized after training
  dqrm-cpu evaluate --run-dir runs/a --data data/tuesday --part all
      all rows of another day, prepared with --vocabulary of the data set of the run"""


def add_parser(subparsers: Subparsers) -> None:
    """The command's options."""
    parser = subparsers.add_parser("evaluate", help="evaluate a trained model", description=_ABOUT, epilog=_EXAMPLES)
    parser.add_argument(
        "--run-dir", metavar="DIR", type=Path, help="the run whose model is evaluated; its settings are the defaults"
    )
    parser.add_argument(
        "--checkpoint", metavar="WHICH", default="best", help="best, last, or the folder of one\ndefault: best"
    )
    parser.add_argument(
        "--part",
        metavar="PART",
        choices=(*_PARTS, "all"),
        default="test",
        help="train | validation | test (default) | all of them together",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates on this process' share of the rows; only rank 0 prints."""
    if args.run_dir is None:
        raise UsageError("which run? give --run-dir DIR")
    parts = _PARTS if args.part == "all" else (args.part,)
    config = config_to_score(args, args.run_dir, parts)
    from dqrm_cpu.cli.ranks import opened_transport

    with opened_transport(config) as transport:
        if transport.rank == 0:
            for line in parts_cut(config, parts):
                print(f"note: scoring {line}", file=sys.stderr)
        path, metrics = _evaluate(config, args, parts, transport)
        if transport.rank == 0:
            print(_as_json(path, args.part, metrics) if args.json else _as_table(path, args.part, metrics))
    return 0


def _evaluate(
    config: "Config", args: argparse.Namespace, parts: Sequence[str], transport: "Transport"
) -> tuple[Path, "ClickMetrics"]:
    import torch

    from dqrm_cpu.data.loader import Loader
    from dqrm_cpu.data.shards import shards_of
    from dqrm_cpu.data.source import open_data
    from dqrm_cpu.train.checkpoint import find_checkpoint
    from dqrm_cpu.train.run_folder import checkpoints_folder
    from dqrm_cpu.train.same_data import require_same_vocabulary
    from dqrm_cpu.train.session import build_session, load_kernels, load_weights

    path = find_checkpoint(checkpoints_folder(args.run_dir), args.checkpoint)
    device = torch.device(config.device)
    data = open_data(config)
    warning = require_same_vocabulary(path, data, config.data.source)
    if warning and transport.rank == 0:
        print(f"warning: {warning}", file=sys.stderr)
    session = build_session(config, load_kernels(config, device), data, transport, device)
    load_weights(session, path)
    # Training rows as they are stored, none left out: the data set of the session may thin them.
    plain = open_data(replace(config, data=replace(config.data, reshuffle=False, sub_sample_rate=0.0)))
    shards = shards_of(transport.rank, transport.size, config.comm.simulated_ranks)
    batch_size = config.train.test_batch_size
    names = {part: "training" if part == "train" else part for part in parts}
    loaders = (Loader(plain.part(part), batch_size, shards, device, part_name=name) for part, name in names.items())
    return path, session.evaluate(*loaders)


def _as_table(path: Path, part: str, metrics: "ClickMetrics") -> str:
    from dqrm_cpu.train.metrics import defined

    left_out = f", without {metrics.skipped_rows:,} that are not sound" if metrics.skipped_rows else ""
    why = f" (the rows have {metrics.why_no_auc})" if metrics.why_no_auc else ""
    lines = [
        f"{path} on {metrics.examples:,} {part} rows{left_out}",
        f"  AUC                 {defined(metrics.auc, '.5f')}{why}",
        f"  accuracy            {defined(metrics.accuracy, '.3%')}",
        f"  log loss            {defined(metrics.log_loss, '.5f')}",
        f"  normalized entropy  {defined(metrics.normalized_entropy, '.5f')}",
        f"  calibration         {defined(metrics.calibration, '.5f')}",
    ]
    return "\n".join(lines)


def _as_json(path: Path, part: str, metrics: "ClickMetrics") -> str:
    from dataclasses import asdict

    from dqrm_cpu.train.metrics_row import strict_json

    document = {"checkpoint": str(path), "part": part, **asdict(metrics)}
    return json.dumps(strict_json(document), indent=2, allow_nan=False)
