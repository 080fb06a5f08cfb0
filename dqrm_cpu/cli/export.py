"""`dqrm-cpu export`: a trained run as one file that scores raw rows by itself."""

import argparse
import re
import sys
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.cli.parser import Subparsers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dqrm_cpu.predict.banded_export import BandedFiles
    from dqrm_cpu.predict.exporting import ExportRequest

_ABOUT = """Writes a trained run as one file that scores raw rows by itself: INT4 weights, names and transforms of its
columns, the vocabulary, calibration. `dqrm_cpu.serving` reads it with NumPy alone: docs/serving.md."""

EXPORTED_NAME = "model.safetensors"
"""Of the packed file in the folder of its run, unless another name is given."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}

_SUBSTITUTES = {
    "unseen": "ids that training never saw",
    "zero": "nothing, a row of zeros",
    "mean": "the mean of rare ids",
}

_EXAMPLES = """examples:
  dqrm-cpu export runs/a                                  runs/a/model.safetensors
  dqrm-cpu export runs/a --layout sparse --out model.safetensors
  dqrm-cpu export runs/a --calibrate platt
  dqrm-cpu export runs/a --budget 20MB                    frequent ids in more bits, rare ones in fewer or none
  dqrm-cpu export runs/a --budget 5MB,10MB,20MB           a file for each: runs/a/model-5MB.safetensors, ...
  dqrm-cpu export runs/a --format onnx                    runs/a/model.onnx, for ONNX Runtime or OpenVINO
  dqrm-cpu export runs/a --format openvino                runs/a/model.xml and model.bin
  dqrm-cpu export runs/a --format pte                     runs/a/model.pte, for phones

In Python, dqrm_cpu.serving.Model.open(FILE).predict(rows) reads it; over HTTP, dqrm-cpu serve FILE."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command's options."""
    parser = subparsers.add_parser(
        "export", help="write a trained model as one file to serve", description=_ABOUT, epilog=_EXAMPLES
    )
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="the folder of the run")
    parser.add_argument(
        "--format",
        metavar="NAME",
        choices=("packed", "onnx", "openvino", "pte"),
        default="packed",
        help="packed (default): for dqrm_cpu.serving, a raw row in, a probability out\n"
        "onnx, openvino (.xml and .bin), pte (of ExecuTorch): numbers and ids in;\n"
        "need pip install 'dqrm-cpu[export]', [openvino], [executorch]",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: RUN/model.safetensors, .onnx, .xml or .pte")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")
    parser.add_argument(
        "--layout",
        metavar="NAME",
        choices=("dense", "sparse"),
        default="dense",
        help="dense (default): the codes of all rows; sparse: of rows that are not zero",
    )
    parser.add_argument(
        "--checkpoint", metavar="WHICH", default="best", help="best, last, or the folder of one\ndefault: best"
    )
    parser.add_argument(
        "--data", metavar="DIR", type=Path, help="a data set with the run's vocabulary\ndefault: that of the run"
    )
    parser.add_argument(
        "--calibrate",
        metavar="HOW",
        choices=("platt", "isotonic"),
        help="platt | isotonic: correct the probabilities by what the run's validation rows tell",
    )
    parser.add_argument(
        "--budget",
        metavar="SIZE",
        type=budgets,
        default=(),
        help="such as 20MB, 1.5MB, 800kB or bytes, for the whole file: rows get more bits the more often training met\n"
        "them, or none; several, 5MB,10MB: a file for each. The rest of the vocabulary scores as unseen",
    )


def budgets(text: str) -> tuple[tuple[str, int], ...]:
    """Reads sizes of files, `5MB,10MB`: each as it was written, and its bytes; MB are millions."""
    found = []
    for part in text.split(","):
        size = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(B|kB|KB|MB|GB|)", part.strip(), re.ASCII)
        if size is None:
            raise argparse.ArgumentTypeError(f"{part!r} is no size; write 20MB, 1.5MB, 800kB or a number of bytes")
        found.append((part.strip().replace(" ", ""), int(Decimal(size[1]) * _UNITS[size[2].upper()])))
    if len({size for _, size in found}) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} has a size twice")
    return tuple(found)


def _run_in_bands(request: "ExportRequest", sizes: tuple[tuple[str, int], ...]) -> int:
    from dqrm_cpu.predict.banded_export import export_in_bands

    out = request.out
    outs = [out if len(sizes) == 1 else out.with_name(f"{out.stem}-{text}{out.suffix}") for text, _ in sizes]
    written = export_in_bands(request, [size for _, size in sizes], outs)
    print("\n".join(_front(written)))
    for file in written.files:
        left_out = (
            f"{file.left_out:,} of {written.rows:,} ids left out, {file.cells_left_out:.2%} of the training cells"
        )
        tried = ", ".join(f"{name} {loss:.5f}" for name, loss in file.tried.items())
        print(f"{file.path}\n  rows                {left_out}; {_by_bits(file.rows_by_bits)}")
        print(f"  ids left out        as {_SUBSTITUTES[file.substitute]} (validation log loss: {tried})")
    return 0


def _front(written: "BandedFiles") -> "Iterator[str]":
    """Yields a table of bytes against metrics of the validation rows."""
    width = max(len("all rows"), *(len(file.path.name) for file in written.files))
    rows = f"({written.whole.examples:,} validation rows)"
    yield f"{'file':<{width}}         bytes  estimated error   log loss       AUC   {rows}"
    lines = [(file.path.name, file.num_bytes, f"{file.estimated_error:.4g}", file.validation) for file in written.files]
    for name, size, error, metrics in [*lines, ("all rows", written.whole_bytes, "", written.whole)]:
        yield f"{name:<{width}} {size:>13,} {error:>16} {metrics.log_loss:>10.5f} {metrics.auc:>9.5f}"


def _by_bits(rows: dict[int, int]) -> str:
    return ", ".join(f"{count:,} in {bits} bits" for bits, count in rows.items())


def run(args: argparse.Namespace) -> int:
    """Exports a run; says what the file holds and how it was checked."""
    from dqrm_cpu.predict.exporting import SUFFIXES, ExportRequest, export
    from dqrm_cpu.train.working import working_on

    request = ExportRequest(
        run_dir=args.run_dir,
        out=args.out or args.run_dir / f"model{SUFFIXES[args.format]}",
        format=args.format,
        layout=args.layout,
        checkpoint=args.checkpoint,
        data=args.data,
        calibrate=args.calibrate,
        overwrite=args.overwrite,
        note=lambda text: print(text, file=sys.stderr),
        show_work=partial(working_on, sys.stderr),
    )
    if args.budget:
        return _run_in_bands(request, args.budget)
    written = export(request)
    rest = f", {written.vocabulary_bytes / 1e6:,.3f} MB of them vocabulary" if written.vocabulary_bytes else ""
    print(f"{written.path}\n  file                {written.num_bytes / 1e6:,.3f} MB{rest}")
    if written.checked_rows:
        difference = f"logits differ by {written.largest_difference:.1g} at most"
        print(f"  read back           every byte; on {written.checked_rows:,} rows {difference}")
    return 0
