"""`dqrm-cpu compress`: quantizes a trained model, writes it as a packed file, and scores what the file holds."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.cli.options import add_config_options
from dqrm_cpu.cli.parser import Subparsers
from dqrm_cpu.cli.run_config import config_to_score

if TYPE_CHECKING:
    from torch import Tensor

    from dqrm_cpu.comm.transport import Transport
    from dqrm_cpu.config import Config
    from dqrm_cpu.model.dlrm import Dlrm
    from dqrm_cpu.train.metrics import ClickMetrics

_LAYOUTS = ("dense", "sparse", "rowwise")

_ABOUT = "Quantizes a trained model, writes it as a packed file, and scores what the file holds."

_EXAMPLES = """examples:
  dqrm-cpu compress runs/fp32                                    INT4, one scale per table
  dqrm-cpu compress runs/fp32 --quant.embedding-bits 2 --quant.mlp-bits 8
  dqrm-cpu compress runs/fp32 --layout rowwise                   a scale and bias per row, by greedy search
  dqrm-cpu compress runs/int4 --layout sparse                    without the rows that are zero
  dqrm-cpu compress runs/fp32 --quant.target-alive 0.05 --layout sparse"""


@dataclass(frozen=True)
class Compressed:
    """A packed file, and the metrics of the model that was read back from it."""

    file: Path
    num_bytes: int
    fp32_bytes: int
    metrics: "ClickMetrics"


def add_parser(subparsers: Subparsers) -> None:
    """The command's options."""
    parser = subparsers.add_parser(
        "compress", help="quantize a trained model and write it packed", description=_ABOUT, epilog=_EXAMPLES
    )
    parser.add_argument(
        "run_dir", metavar="RUN", type=Path, help="the folder of the run; its settings are the defaults"
    )
    parser.add_argument(
        "--checkpoint", metavar="WHICH", default="best", help="best, last, or the folder of one\ndefault: best"
    )
    parser.add_argument(
        "--layout",
        metavar="NAME",
        choices=_LAYOUTS,
        default="dense",
        help="dense (default): the codes of all rows\nsparse: of rows that are not zero\n"
        "rowwise: a scale and bias per row, the production baseline",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="default: RUN/compressed/METHOD-BITS-LAYOUT.safetensors"
    )
    parser.add_argument(
        "--part", metavar="PART", choices=("validation", "test"), default="test", help="validation | test (default)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """In one process; a model without quantization of its own is quantized as `ptq` does."""
    config = config_to_score(args, args.run_dir, (args.part,))
    if config.quant.method == "none":
        config = replace(config, quant=replace(config.quant, method="ptq"))
    from dqrm_cpu.cli.ranks import opened_transport

    with opened_transport(config) as transport:
        compressed = _compress(config, args, transport)
        if transport.rank == 0:
            print(_as_json(compressed, args.part) if args.json else _as_table(compressed, args.part))
    return 0


def _compress(config: "Config", args: argparse.Namespace, transport: "Transport") -> Compressed:
    import torch

    from dqrm_cpu.comm.first_rank import on_first_rank
    from dqrm_cpu.data.source import open_data
    from dqrm_cpu.export.read import load_packed
    from dqrm_cpu.model.size import model_bytes
    from dqrm_cpu.train.checkpoint import find_checkpoint
    from dqrm_cpu.train.run_folder import checkpoints_folder
    from dqrm_cpu.train.same_data import require_same_vocabulary
    from dqrm_cpu.train.session import build_session, load_kernels, load_weights

    checkpoint = find_checkpoint(checkpoints_folder(args.run_dir), args.checkpoint)
    device = torch.device(config.device)
    data = open_data(config)
    warning = require_same_vocabulary(checkpoint, data, config.data.source)
    if warning and transport.rank == 0:
        print(f"warning: {warning}", file=sys.stderr)
    session = build_session(config, load_kernels(config, device), data, transport, device)
    load_weights(session, checkpoint)
    name = f"{config.quant.method}-{config.quant.embedding_bits}-{args.layout}.safetensors"
    path = args.out or args.run_dir / "compressed" / name
    scale = session.scales.for_evaluation()
    on_first_rank(transport, lambda: _write(path, config, session.model, scale, args.layout))
    load_packed(path, session.model, config.quant)
    loader = session.loaders.test if args.part == "test" else session.loaders.validation
    metrics = session.evaluate(loader, quantized=False)
    return Compressed(path, path.stat().st_size, model_bytes(config).fp32, metrics)


def _write(path: Path, config: "Config", model: "Dlrm", scale: "Tensor", layout: str) -> int:
    from dqrm_cpu.errors import ConfigError
    from dqrm_cpu.export.rowwise import write_rowwise
    from dqrm_cpu.export.write import has_sparse_layout, write_model

    if layout == "rowwise":
        return write_rowwise(path, config, model)
    if layout == "sparse" and not has_sparse_layout(model):
        raise ConfigError(f"{config.quant.method} has no code for zero, so no row can be left out; use --layout dense")
    return write_model(path, config, model, scale, layout)


def _as_table(compressed: Compressed, part: str) -> str:
    metrics, ratio = compressed.metrics, compressed.fp32_bytes / compressed.num_bytes
    lines = [
        f"{compressed.file}",
        f"  file                {compressed.num_bytes / 1e6:,.3f} MB, FP32 {compressed.fp32_bytes / 1e6:,.3f} MB "
        f"({ratio:.1f}x smaller)",
        f"  read back, on {metrics.examples:,} {part} rows:",
        f"  AUC                 {metrics.auc:.5f}",
        f"  accuracy            {metrics.accuracy:.3%}",
        f"  log loss            {metrics.log_loss:.5f}",
        f"  normalized entropy  {metrics.normalized_entropy:.5f}",
        f"  calibration         {metrics.calibration:.5f}",
    ]
    return "\n".join(lines)


def _as_json(compressed: Compressed, part: str) -> str:
    from dqrm_cpu.train.metrics_row import strict_json

    document = {
        "file": str(compressed.file),
        "bytes": compressed.num_bytes,
        "fp32_bytes": compressed.fp32_bytes,
        "part": part,
        **asdict(compressed.metrics),
    }
    return json.dumps(strict_json(document), indent=2, allow_nan=False)
