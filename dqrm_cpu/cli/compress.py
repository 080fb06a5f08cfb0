"""`dqrm-cpu compress`: quantizes a trained model, writes it as a packed file, and scores what the file holds."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.cli.options import add_config_options
from dqrm_cpu.cli.parser import Subparsers, UsageError
from dqrm_cpu.cli.run_config import CONFIG_FILE, config_to_score

if TYPE_CHECKING:
    from torch import Tensor

    from dqrm_cpu.comm.transport import Transport
    from dqrm_cpu.config import Config
    from dqrm_cpu.export.read import PackedModel
    from dqrm_cpu.model.dlrm import Dlrm
    from dqrm_cpu.train.checkpoint_manifest import JSON
    from dqrm_cpu.train.metrics import ClickMetrics

_FP32_BITS = 32
_METHOD = "quant.method"
_LAYOUTS = ("dense", "sparse", "rowwise")

_ABOUT = "Quantizes a trained model, writes it as a packed file, and scores what the file holds."

_EXAMPLES = """examples:
  dqrm-cpu compress runs/fp32                                    INT4, one scale per table
  dqrm-cpu compress runs/fp32 --quant.embedding-bits 2 --quant.mlp-bits 8
  dqrm-cpu compress runs/fp32 --layout rowwise                   a scale and bias per row, by greedy search
  dqrm-cpu compress runs/int4 --layout sparse                    without the rows that are zero
  dqrm-cpu compress runs/fp32 --quant.target-alive 0.05 --layout sparse
  dqrm-cpu compress --verify runs/int4/packed/sparse.safetensors"""


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
        "run_dir", metavar="RUN", nargs="?", type=Path, help="the folder of the run; its settings are the defaults"
    )
    parser.add_argument(
        "--verify", metavar="FILE", type=Path, help="only read a packed file: is every byte of it as it was written?"
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
    if args.verify is not None:
        return _verify(args)
    if args.run_dir is None:
        raise UsageError("which run? give its folder, or a packed file to --verify")
    _choose_method(args)
    config = config_to_score(args, args.run_dir, (args.part,))
    from dqrm_cpu.cli.ranks import opened_transport

    with opened_transport(config) as transport:
        compressed = _compress(config, args, transport)
        if transport.rank == 0:
            print(_as_json(_document(compressed, args.part)) if args.json else _as_table(compressed, args.part))
    return 0


def _choose_method(args: argparse.Namespace) -> None:
    """An FP32 run is quantized as `ptq` does; that is settled before rules between settings are looked at."""
    from dqrm_cpu.config.load import load_config

    file = args.config if args.config or args.preset else args.run_dir / CONFIG_FILE
    given = getattr(args, _METHOD)
    if given == "none" or (given is None and load_config(args.preset, file, {}).quant.method == "none"):
        setattr(args, _METHOD, "ptq")


def _verify(args: argparse.Namespace) -> int:
    """Reads all of a packed file; whatever is wrong with it is an error."""
    from dqrm_cpu.export.read import verify_packed

    found = verify_packed(args.verify)
    for text in found.warnings:
        print(f"warning: {text}", file=sys.stderr)
    print(_as_json(_facts(found)) if args.json else _facts_table(found))
    return 0


def _compress(config: "Config", args: argparse.Namespace, transport: "Transport") -> Compressed:
    import torch

    from dqrm_cpu.comm.coordination import on_first_rank
    from dqrm_cpu.data.source import open_data
    from dqrm_cpu.export.read import load_packed
    from dqrm_cpu.model.size import model_bytes
    from dqrm_cpu.train.checkpoint import find_checkpoint, read_state
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
    identity = str(read_state(checkpoint).get("identity") or "")
    on_first_rank(transport, lambda: _write(path, config, session.model, scale, args.layout, identity))
    load_packed(path, session.model, config.quant)
    loader = session.loaders.test if args.part == "test" else session.loaders.validation
    metrics = session.evaluate(loader, quantized=False)
    return Compressed(path, path.stat().st_size, model_bytes(config).fp32, metrics)


def _write(path: Path, config: "Config", model: "Dlrm", scale: "Tensor", layout: str, identity: str) -> int:
    from dqrm_cpu.errors import ConfigError
    from dqrm_cpu.export.rowwise import write_rowwise
    from dqrm_cpu.export.write import has_sparse_layout, write_model

    if layout == "rowwise":
        return write_rowwise(path, config, model, identity)
    if layout == "sparse" and not has_sparse_layout(model):
        raise ConfigError(f"{config.quant.method} has no code for zero, so no row can be left out; use --layout dense")
    return write_model(path, config, model, scale, layout, identity)


def _as_table(compressed: Compressed, part: str) -> str:
    from dqrm_cpu.train.metrics import defined

    metrics, ratio = compressed.metrics, compressed.fp32_bytes / compressed.num_bytes
    lines = [
        f"{compressed.file}",
        f"  file                {compressed.num_bytes / 1e6:,.3f} MB, FP32 {compressed.fp32_bytes / 1e6:,.3f} MB "
        f"({ratio:.1f}x smaller)",
        f"  read back, on {metrics.examples:,} {part} rows:",
        f"  AUC                 {defined(metrics.auc, '.5f')}",
        f"  accuracy            {metrics.accuracy:.3%}",
        f"  log loss            {metrics.log_loss:.5f}",
        f"  normalized entropy  {defined(metrics.normalized_entropy, '.5f')}",
        f"  calibration         {defined(metrics.calibration, '.5f')}",
    ]
    return "\n".join(lines)


def _document(compressed: Compressed, part: str) -> "dict[str, JSON]":
    return {
        "file": str(compressed.file),
        "bytes": compressed.num_bytes,
        "fp32_bytes": compressed.fp32_bytes,
        "part": part,
        **asdict(compressed.metrics),
    }


def _facts(found: "PackedModel") -> "dict[str, JSON]":
    return {
        "file": str(found.path),
        "bytes": found.num_bytes,
        "checksums": found.num_checksums,
        "layout": found.layout,
        "method": found.config.quant.method,
        "embedding_bits": found.config.quant.embedding_bits,
        "mlp_bits": found.config.quant.mlp_bits,
        "tables": len(found.config.model.table_rows),
        "rows": sum(found.config.model.table_rows),
        "stored_rows": found.stored_rows,
        "identity": found.identity or None,
    }


def _facts_table(found: "PackedModel") -> str:
    model, quant = found.config.model, found.config.quant
    rows = f"{sum(model.table_rows):,} rows x {model.embedding_dim} in {len(model.table_rows)} tables"
    stored = f"; {found.stored_rows:,} have codes, the others are zero" if found.layout == "sparse" else ""
    checksums = f"{found.num_checksums:,} checksum{'' if found.num_checksums == 1 else 's'}"
    how = f"{checksums} checked" if found.num_checksums else "it has no checksums"
    lines = [
        f"{found.path}",
        f"  file                {found.num_bytes / 1e6:,.3f} MB, read to its end; {how}",
        f"  layout              {found.layout}; {quant.method}, tables INT{quant.embedding_bits}, MLPs "
        f"{'FP32' if quant.mlp_bits == _FP32_BITS else f'INT{quant.mlp_bits}'}",
        f"  rows                {rows}{stored}",
        f"  made for ids of     {found.identity or 'a data set that it does not name'}",
    ]
    return "\n".join(lines)


def _as_json(document: "dict[str, JSON]") -> str:
    from dqrm_cpu.train.metrics_row import strict_json

    return json.dumps(strict_json(document), indent=2, allow_nan=False)
