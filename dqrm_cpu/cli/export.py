"""`dqrm-cpu export`: a trained run as one file that scores raw rows by itself."""

import argparse
import sys
from functools import partial
from pathlib import Path

from dqrm_cpu.cli.parser import Subparsers

_ABOUT = """Writes a trained run as one file that scores raw rows by itself: INT4 weights, names and transforms of its
columns, the vocabulary, calibration. `dqrm_cpu.serving` reads it with NumPy alone: docs/serving.md."""

EXPORTED_NAME = "model.safetensors"
"""Of the packed file in the folder of its run, unless another name is given."""

_EXAMPLES = """examples:
  dqrm-cpu export runs/a                                  runs/a/model.safetensors
  dqrm-cpu export runs/a --layout sparse --out model.safetensors
  dqrm-cpu export runs/a --calibrate platt
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


def run(args: argparse.Namespace) -> int:
    """Exports a run; says what the file holds and how it was checked."""
    from dqrm_cpu.predict.exporting import SUFFIXES, ExportRequest, export
    from dqrm_cpu.train.working import working_on

    written = export(
        ExportRequest(
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
    )
    rest = f", {written.vocabulary_bytes / 1e6:,.3f} MB of them vocabulary" if written.vocabulary_bytes else ""
    print(f"{written.path}\n  file                {written.num_bytes / 1e6:,.3f} MB{rest}")
    if written.checked_rows:
        difference = f"logits differ by {written.largest_difference:.1g} at most"
        print(f"  read back           every byte; on {written.checked_rows:,} rows {difference}")
    return 0
