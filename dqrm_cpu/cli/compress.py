"""`dqrm-cpu compress`: quantizes a trained model, writes it as a packed file, and scores what the file holds."""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.api.settings import config_to_score, recorded_config
from dqrm_cpu.base.memory import format_size
from dqrm_cpu.cli.evaluate import metric_lines
from dqrm_cpu.cli.options import add_config_options, given_settings, tell, warn
from dqrm_cpu.cli.parser import Subparsers, UsageError, require_replaceable
from dqrm_cpu.config.schema import FP32_BITS
from dqrm_cpu.train.working import Working

if TYPE_CHECKING:
    from torch import Tensor

    from dqrm_cpu.base.decode import Json
    from dqrm_cpu.comm.transport import Transport
    from dqrm_cpu.config import Config
    from dqrm_cpu.export.packed_model import PackedModel
    from dqrm_cpu.metrics.click import ClickMetrics
    from dqrm_cpu.model.dlrm import Dlrm

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
    """Adds the command's options."""
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
    """Compresses a model; one without quantization of its own is quantized as `ptq` does."""
    if args.verify is not None:
        return _verify(args)
    if args.run_dir is None:
        raise UsageError("which run? give its folder, or a packed file to --verify")
    require_replaceable("--out", args.out, "packed model", b"{", at=8)
    _choose_method(args)
    config = config_to_score(given_settings(args), args.run_dir, (args.part,), warn)
    if config.train.master_rows != "fp32":
        raise UsageError(
            f"compress reads tables of FP32 rows, and {args.run_dir} has train.master_rows {config.train.master_rows}; "
            "its packed folder has the model in 4 bits already, and dqrm-cpu export writes it for others"
        )
    from dqrm_cpu.api.ranks import opened_transport

    with opened_transport(config, tell) as transport:
        compressed = _compress(config, args, transport)
        if transport.rank == 0:
            print(_as_json(_document(compressed, args.part)) if args.json else _as_table(compressed, args.part))
    return 0


def _choose_method(args: argparse.Namespace) -> None:
    """Has an FP32 run quantized as `ptq` does, before rules between settings are looked at."""
    from dqrm_cpu.config.load import load_config

    method = getattr(args, _METHOD)
    if method is None:
        from_options = args.config or args.preset
        config = load_config(args.preset, args.config, {}) if from_options else recorded_config(args.run_dir)
        method = config.quant.method
    if method == "none":
        setattr(args, _METHOD, "ptq")


def _verify(args: argparse.Namespace) -> int:
    """Reads all of a packed file; whatever is wrong with it is an error."""
    from dqrm_cpu.export.packed_model import verify_packed

    with Working(f"reading {args.verify}"):
        packed = verify_packed(args.verify)
    for text in packed.warnings:
        warn(text)
    print(_as_json(_facts(packed)) if args.json else _facts_table(packed))
    return 0


def _compress(config: "Config", args: argparse.Namespace, transport: "Transport") -> Compressed:
    from dqrm_cpu.comm.coordination import on_first_rank
    from dqrm_cpu.export.read import load_packed
    from dqrm_cpu.model.size import model_bytes
    from dqrm_cpu.train.checkpoint_folder import find_checkpoint, read_state
    from dqrm_cpu.train.run_place import checkpoints_folder
    from dqrm_cpu.train.session import trained_session

    checkpoint = find_checkpoint(checkpoints_folder(args.run_dir), args.checkpoint)
    config = replace(config, comm=replace(config.comm, tables="replicate"))  # rank 0 writes, and reads all of them
    shown = transport.rank == 0
    with Working("reading the checkpoint", shown=shown):
        session = trained_session(config, checkpoint, transport, warn)
    name = f"{config.quant.method}-{config.quant.embedding_bits}-{args.layout}.safetensors"
    path = args.out or args.run_dir / "compressed" / name
    scale = session.scales.for_evaluation()
    identity = str(read_state(checkpoint).get("identity") or "")
    with Working("quantizing and writing", shown=shown):
        on_first_rank(transport, lambda: _write(path, config, session.model, scale, args.layout, identity))
        load_packed(path, session.model, config.quant)
    loader = session.loaders.test if args.part == "test" else session.loaders.validation
    rows = getattr(config.data, f"{args.part}_rows") // transport.size
    with Working("scoring what was written", rows, shown=shown) as work:
        metrics = session.evaluate(loader, quantized=False, advance=work.advance)
    return Compressed(path, path.stat().st_size, model_bytes(config).fp32, metrics)


def _write(path: Path, config: "Config", model: "Dlrm", scale: "Tensor", layout: str, identity: str) -> int:
    from dqrm_cpu.errors import ConfigError
    from dqrm_cpu.export.model_files import write_model, write_rowwise
    from dqrm_cpu.export.write import has_sparse_layout

    if layout == "rowwise":
        return write_rowwise(path, config, model, identity)
    if layout == "sparse" and not has_sparse_layout(model.table_formula):
        raise ConfigError(f"{config.quant.method} has no code for zero, so no row can be left out; use --layout dense")
    return write_model(path, config, model, scale, layout, identity)


def _as_table(compressed: Compressed, part: str) -> str:
    metrics, ratio = compressed.metrics, compressed.fp32_bytes / compressed.num_bytes
    lines = [
        f"{compressed.file}",
        f"  file                {format_size(compressed.num_bytes)}, FP32 {format_size(compressed.fp32_bytes)} "
        f"({ratio:.1f}x smaller)",
        f"  read back, on {metrics.examples:,} {part} rows:",
        *metric_lines(metrics),
    ]
    return "\n".join(lines)


def _document(compressed: Compressed, part: str) -> "dict[str, Json]":
    return {
        "file": str(compressed.file),
        "bytes": compressed.num_bytes,
        "fp32_bytes": compressed.fp32_bytes,
        "part": part,
        **compressed.metrics.as_dict(),
    }


def _facts(packed: "PackedModel") -> "dict[str, Json]":
    return {
        "file": str(packed.path),
        "bytes": packed.num_bytes,
        "checksums": packed.num_checksums,
        "layout": packed.layout,
        "method": packed.config.quant.method,
        "embedding_bits": packed.config.quant.embedding_bits,
        "mlp_bits": packed.config.quant.mlp_bits,
        "tables": len(packed.config.model.table_rows),
        "rows": sum(packed.config.model.table_rows),
        "stored_rows": packed.stored_rows,
        "identity": packed.identity or None,
        "corrected_for_keep_rate": packed.config.data.trained_keep_rate if packed.is_corrected else None,
    }


def _facts_table(packed: "PackedModel") -> str:
    model, quant = packed.config.model, packed.config.quant
    rows = f"{sum(model.table_rows):,} rows x {model.dims_text} in {len(model.table_rows)} tables"
    stored = {
        "sparse": f"; {packed.stored_rows:,} have codes, the others are zero",
        "bands": f"; {packed.stored_rows:,} have codes, the others are scored as unseen ids",
    }.get(packed.layout, "")
    of_tables = "in bands" if packed.layout == "bands" else f"INT{quant.embedding_bits}"
    checksums = f"{packed.num_checksums:,} checksum{'' if packed.num_checksums == 1 else 's'}"
    how = f"{checksums} checked" if packed.num_checksums else "it has no checksums"
    lines = [
        f"{packed.path}",
        f"  file                {format_size(packed.num_bytes)}, read to its end; {how}",
        f"  layout              {packed.layout}; {quant.method}, tables {of_tables}, MLPs "
        f"{'FP32' if quant.mlp_bits == FP32_BITS else f'INT{quant.mlp_bits}'}",
        f"  rows                {rows}{stored}",
        f"  made for ids of     {packed.identity or 'a data set that it does not name'}",
    ]
    if packed.is_corrected:
        kept = packed.config.data.trained_keep_rate
        lines.append(f"  probabilities       of all rows; training saw {kept:.4g} of those without a click")
    return "\n".join(lines)


def _as_json(document: "dict[str, Json]") -> str:
    from dqrm_cpu.train.metrics_row import strict_json

    return json.dumps(strict_json(document), indent=2, allow_nan=False)
