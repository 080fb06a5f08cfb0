"""`dqrm-cpu train`: trains a model, or goes on with a run that was interrupted."""

import argparse
import contextlib
import math
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.cli.options import add_config_options, config_from_args, option_texts
from dqrm_cpu.cli.parser import Subparsers
from dqrm_cpu.cli.run_config import config_of_run, has_settings, with_absolute_source

if TYPE_CHECKING:
    from dqrm_cpu.comm.transport import Transport
    from dqrm_cpu.config import Config
    from dqrm_cpu.model.size import ModelBytes
    from dqrm_cpu.train.result import Interrupted, Result

_ABOUT = "Trains a click model, or goes on with a run that was interrupted."

_EXAMPLES = """examples:
  dqrm-cpu train                                       INT4 on generated clicks, in about a minute
  dqrm-cpu train --quant.method none                   the same model in FP32, to compare
  dqrm-cpu train --preset kaggle --train.max-steps 1000
  dqrm-cpu train --run-dir runs/a --resume auto        go on with an interrupted run
  mpirun -n 2 dqrm-cpu train --run-dir runs/b          two processes, the same model"""


def add_parser(subparsers: Subparsers) -> None:
    """The command's options."""
    parser = subparsers.add_parser("train", help="train a model", description=_ABOUT, epilog=_EXAMPLES)
    parser.add_argument(
        "--run-dir", metavar="DIR", type=Path, help="where the run is recorded\ndefault: runs/PRESET-DATE-TIME"
    )
    parser.add_argument(
        "--resume",
        metavar="WHEN",
        choices=("auto", "never"),
        default="never",
        help="auto: go on where the run in --run-dir stopped, start it if there is none\n"
        "never (default): refuse a folder that holds a run",
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Trains on this process' share of the work; only rank 0 prints."""
    config = _configuration(args)
    from dqrm_cpu.cli.ranks import opened_transport

    with opened_transport(config) as transport:
        return _train(config, args, transport)


def _configuration(args: argparse.Namespace) -> "Config":
    """That of the run that is resumed, unless the command line names another to start from."""
    resumed = args.run_dir is not None and args.resume == "auto"
    if resumed and not args.preset and not args.config and has_settings(args.run_dir):
        return with_absolute_source(config_of_run(args, args.run_dir))
    return with_absolute_source(config_from_args(args))


def _train(config: "Config", args: argparse.Namespace, transport: "Transport") -> int:
    from dqrm_cpu.cli.ranks import gathered_environment
    from dqrm_cpu.kernel_cache import must_compile
    from dqrm_cpu.train.result import Interrupted
    from dqrm_cpu.train.run import RunRequest, train

    run_dir = _run_dir(config, args, transport)
    environment = gathered_environment(transport)
    if transport.rank == 0:
        print(_headline(config, transport, run_dir), file=sys.stderr, flush=True)
        if must_compile():
            print("compiling the kernels, once for this machine: about 20 s before the first step", file=sys.stderr)
    request = RunRequest(run_dir, args.resume == "auto", environment, sys.stderr, frozenset(option_texts(args)))
    outcome = train(config, request, transport)
    if isinstance(outcome, Interrupted):
        if transport.rank == 0:
            with contextlib.suppress(OSError):  # the terminal may be what went away; everything is saved
                print(_how_to_resume(outcome), file=sys.stderr)
        return 128 + getattr(signal, outcome.signal, signal.SIGTERM)
    if transport.rank == 0:
        print(result_table(outcome))
    return 0


def _run_dir(config: "Config", args: argparse.Namespace, transport: "Transport") -> Path:
    """One folder for all ranks: that of --run-dir, or a new one that rank 0 names."""
    from dqrm_cpu.cli.ranks import gathered
    from dqrm_cpu.comm.coordination import require_one_folder

    default = Path("runs") / f"{config.preset}-{datetime.now():%Y%m%d-%H%M%S}"
    chosen = Path(str(transport.broadcast_json(str(args.run_dir or default))))
    somebody_chose = any(gathered(transport, args.run_dir is not None))
    mine = args.run_dir or (None if somebody_chose else chosen)
    places = gathered(transport, [str(mine.absolute()), str(mine.resolve())] if mine else ["none", "none"])
    require_one_folder("--run-dir", *zip(*places, strict=True))
    return chosen


def _headline(config: "Config", transport: "Transport", run_dir: Path) -> str:
    quant, model = config.quant, config.model
    rows = sum(model.table_rows)
    kind = "FP32" if quant.method == "none" else f"{quant.method} INT{quant.embedding_bits}"
    ranks = f"{transport.size} ranks over {transport.name}" if transport.size > 1 else "1 process"
    simulated = f", {config.comm.simulated_ranks} simulated ranks" if config.comm.simulated_ranks > 1 else ""
    tables = f"{len(model.table_rows)} tables, {rows:,} rows x {model.embedding_dim}"
    return f"{kind} on {config.data.source} data; {tables}; {ranks}{simulated}; run folder {run_dir}"


def _how_to_resume(outcome: "Interrupted") -> str:
    return (
        f"stopped by {outcome.signal} after step {outcome.step:,}; everything is saved. Go on with:\n"
        f"  dqrm-cpu train --run-dir {outcome.run_dir} --resume auto"
    )


def result_table(result: "Result") -> str:
    """What a run ends with, as aligned text."""
    from dqrm_cpu.train.metrics import defined

    lines = ["", f"{'':<22}{'AUC':>10}{'accuracy':>11}{'log loss':>11}"]
    for name, part in (("validation", result.validation), ("test", result.test)):
        for which, metrics in (("best", part.best), ("last", part.last)):
            step = result.best_step if which == "best" else result.steps
            label = f"{name}, {which}"
            figures = f"{defined(metrics.auc, '>10.4f')}{metrics.accuracy:>11.2%}{metrics.log_loss:>11.4f}"
            left_out = f", {metrics.skipped_rows:,} rows left out" if metrics.skipped_rows else ""
            lines.append(f"{label:<22}{figures}   step {step:,}{left_out}")
    if result.skipped_batches:
        lines.append(f"{'skipped':<24}{result.skipped_batches:,} batches that were not sound")
    lines += ["", f"{'model size':<24}{_sizes(result.model_bytes)}", *_packed_lines(result)]
    if not math.isnan(result.ms_per_step):  # of a process' first step there is no time: it compiles
        lines.append(f"{'step':<24}{result.ms_per_step:.2f} ms (median)")
    if result.bytes_per_step:
        lines.append(f"{'sent per step':<24}{result.bytes_per_step / 1e3:,.1f} kB by rank 0")
    lines.append(f"{'run folder':<24}{result.run_dir}")
    return "\n".join(lines)


def _sizes(size: "ModelBytes") -> str:
    """At the widths that were trained; of a model in FP32, what INT4 would save."""
    fp32 = _megabytes(size.fp32)
    if size.packed == size.fp32:
        return f"{fp32} in FP32; INT4 throughout would take {_megabytes(size.int4)}"
    how = "in INT4" if size.packed == size.int4 else "as quantized"
    return f"{fp32} in FP32, {_megabytes(size.packed)} {how} ({size.fp32 / size.packed:.1f}x smaller)"


def _packed_lines(result: "Result") -> list[str]:
    """The files that were written, and how much of them is due to rows that training never saw."""
    files = result.packed_files
    if files is None:
        return []
    sparse = "" if files.sparse is None else f", {_megabytes(files.sparse)} without rows that are zero"
    lines = [f"{'packed files':<24}{_megabytes(files.dense)}{sparse}"]
    rows = files.rows
    if rows is None:
        return lines
    seen = f"{rows.updated:,} of {rows.rows:,} updated in training"
    if files.sparse is None or files.updated_sparse is None or files.updated_fp32 is None:
        return [*lines, f"{'table rows':<24}{seen}"]
    dead, never_dead = rows.updated - rows.live_updated, rows.never_updated - (rows.live - rows.live_updated)
    return [
        *lines,
        f"{'table rows':<24}{seen}; of these {_share(dead, rows.updated)} are zero, "
        f"of the others {_share(never_dead, rows.never_updated)}",
        f"{'updated rows alone':<24}{_megabytes(files.updated_fp32)} in FP32, {_megabytes(files.updated_sparse)} "
        f"without rows that are zero ({files.updated_fp32 / files.updated_sparse:.1f}x smaller)",
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
