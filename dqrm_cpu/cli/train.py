"""`dqrm-cpu train`: trains a model, or goes on with a run that was interrupted."""

import argparse
import contextlib
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.base.kernel_cache import compiling_ahead
from dqrm_cpu.base.memory import format_size
from dqrm_cpu.cli.options import add_config_options, given_settings, tell, warn
from dqrm_cpu.cli.parser import Subparsers, UsageError, whole_number
from dqrm_cpu.comm.transports.launch import detect_launch
from dqrm_cpu.kernels.collector import without_collector

if TYPE_CHECKING:
    from dqrm_cpu.config import ModelConfig
    from dqrm_cpu.metrics.click import ClickMetrics
    from dqrm_cpu.model.size import ModelBytes
    from dqrm_cpu.train.state import MemberResult, Result
    from dqrm_cpu.train.tuning.record import SearchRecord

_ABOUT = "Trains a click model, or goes on with a run that was interrupted."

_EXAMPLES = """examples:
  dqrm-cpu train                                       INT4 on generated clicks, in about a minute
  dqrm-cpu train --quant.method none                   the same model in FP32, to compare
  dqrm-cpu train --preset kaggle --train.max-steps 1000
  dqrm-cpu train --run-dir runs/a --resume auto        go on with an interrupted run
  dqrm-cpu train --ensemble 4                          four models whose mean is the score
  dqrm-cpu train --data data/mine --tune               find a learning rate for your own data first
  dqrm-cpu train --init-from runs/monday --data data/tuesday --run-dir runs/tuesday
      tomorrow's model, once `prepare --grow-from data/monday` made data/tuesday
  mpirun -n 2 dqrm-cpu train --run-dir runs/b          two processes, the same model"""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command's options."""
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
    parser.add_argument(
        "--tune",
        metavar="N",
        nargs="?",
        const=8,
        type=whole_number(2),
        help="before training, choose those of optimizer, learning rate, weight decay and step width\n"
        "that are not given, by N short trials (8 without N) scored on validation rows (docs/tuning.md)",
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Trains on this process' share of the work; only rank 0 prints."""
    if args.resume == "auto" and args.run_dir is None:
        raise UsageError("--resume auto goes on with the run in --run-dir DIR; give that too")
    # Before torch is imported, which takes as long as a third of the kernels.
    with compiling_ahead(alone=detect_launch(os.environ).size == 1):
        return _train(args)


def _train(args: argparse.Namespace) -> int:
    with without_collector():
        from dqrm_cpu.api.ranks import opened_transport
        from dqrm_cpu.api.training import TrainingOrder, how_to_resume
        from dqrm_cpu.train.state import Interrupted

    order = TrainingOrder(
        given_settings(args), sys.stderr, args.run_dir, args.resume == "auto", args.tune, _show_search
    )
    loaded = order.load(warn)
    with opened_transport(order.most_demanding(loaded), tell) as transport:
        outcome = order.carry_out(loaded, transport)
        if isinstance(outcome, Interrupted):
            if transport.rank == 0:
                with contextlib.suppress(OSError):  # the terminal may be what went away; everything is saved
                    tell(how_to_resume(outcome))
            return 128 + getattr(signal, outcome.signal, signal.SIGTERM)
        if transport.rank == 0:
            print(result_table(outcome, dims_line(loaded.config.model)))
            if line := protocol_line(loaded.config.data.source):
                print(line)
    return 0


def _show_search(record: "SearchRecord", file: Path) -> None:
    from dqrm_cpu.cli.data_tables import table
    from dqrm_cpu.train.tuning.candidates import describe
    from dqrm_cpu.train.tuning.record import reason_of, trial_rows

    tell(table(trial_rows(record), left=1 if record.kept else 2))
    if record.chosen is not None:
        chosen = reason_of(record) if record.kept else describe(record.trials[record.chosen].values)
        tell(f"chosen: {chosen}; all in {file}")


def dims_line(model: "ModelConfig") -> str:
    """Says which tables have another number of values per row; empty where none has."""
    return f"{'table dims':<24}{model.table_dims}; the others {model.embedding_dim}" if model.table_dims else ""


def protocol_line(source: str) -> str:
    """Says by which protocol the rows of a setting data.source are split, and what stands beside; empty: by none."""
    from dqrm_cpu.data.prepare.protocols import beside, protocol_at

    name = protocol_at(source)
    return f"{'protocol':<24}{beside(name)}" if name else ""


def result_table(result: "Result", dims: str = "") -> str:
    """Formats what a run ends with, as aligned text; `dims` is that of `dims_line`."""
    from dqrm_cpu.metrics.click import FIGURE_NAMES

    lines = ["", f"{'':<22}{'AUC':>10}{'accuracy':>11}{'log loss':>11}"]
    for number, member in enumerate(result.members, 1):
        where = f"seed {member.seed}, step {member.best_step:,}"
        lines.append(_metrics_line(f"member {number}, test, best", member.test, where))
    for name, part in (("validation", result.validation), ("test", result.test)):
        for which, metrics in (("best", part.best), ("last", part.last)):
            step = result.best_step if which == "best" else result.steps
            where = f"mean of {len(result.members)}" if result.members else f"step {step:,}"
            lines.append(_metrics_line(f"{name}, {which}", metrics, where))
    if result.best_by != "auc":
        lines.append(f"{'best by':<24}{FIGURE_NAMES[result.best_by]} on validation")
    if result.skipped_batches:
        lines.append(f"{'skipped':<24}{result.skipped_batches:,} batches that were not sound")
    size = _sizes(result.model_bytes, len(result.members))
    lines += ["", f"{'model size':<24}{size}", *([dims] if dims else []), *_packed_lines(result)]
    lines += _price_lines(result.members, result.score_us_per_row)
    if not math.isnan(result.ms_per_step):  # of a process' first step there is no time: it compiles
        lines.append(f"{'step':<24}{result.ms_per_step:.2f} ms (median){_mean_beside(result)}")
    if result.bytes_per_step:
        lines.append(f"{'sent per step':<24}{result.bytes_per_step / 1e3:,.1f} kB by rank 0")
    lines.append(f"{'run folder':<24}{result.run_dir}")
    return "\n".join(lines)


def _mean_beside(result: "Result") -> str:
    """Formats the mean of a step where the median says little about the time that the run took."""
    from dqrm_cpu.report.advice import UNEVEN_RATIO

    uneven = result.mean_ms_per_step > UNEVEN_RATIO * result.ms_per_step
    return f", {result.mean_ms_per_step:.2f} ms on average: others use the cores too" if uneven else ""


def _metrics_line(label: str, metrics: "ClickMetrics", where: str) -> str:
    from dqrm_cpu.metrics.click import defined

    figures = f"{defined(metrics.auc, '>10.4f')}{metrics.accuracy:>11.2%}{metrics.log_loss:>11.4f}"
    left_out = f", {metrics.skipped_rows:,} rows left out" if metrics.skipped_rows else ""
    return f"{label:<22}{figures}   {where}{left_out}"


def _price_lines(members: "Sequence[MemberResult]", score_us_per_row: float) -> list[str]:
    """Says what an ensemble costs: so many times the training of one model, and so many forwards for a score."""
    if not members:
        return []
    steps = sum(member.steps for member in members)
    seconds = sum(member.steps * member.ms_per_step for member in members) / 1e3
    took = "" if math.isnan(seconds) else f", {seconds:,.1f} s of steps"
    return [
        f"{'training':<24}{steps:,} steps of {len(members)} models{took}",
        f"{'score':<24}{score_us_per_row:.2f} us a row by all, {score_us_per_row / len(members):.2f} us by one",
    ]


def _sizes(size: "ModelBytes", models: int) -> str:
    """Formats sizes at the widths that were trained; of a model in FP32, what INT4 would save."""
    fp32 = format_size(size.fp32)
    if models > 1:
        return (
            f"{format_size(size.packed)}, {models} models; one of them in FP32 takes {format_size(size.fp32 // models)}"
        )
    if size.packed == size.fp32:
        return f"{fp32} in FP32; INT4 throughout would take {format_size(size.int4)}"
    how = "in INT4" if size.packed == size.int4 else "as quantized"
    return f"{fp32} in FP32, {format_size(size.packed)} {how} ({size.fp32 / size.packed:.1f}x smaller)"


def _packed_lines(result: "Result") -> list[str]:
    """Describes the files that were written, and how much of them is due to rows that training never saw."""
    files = result.packed_files
    if files is None:
        return []
    sparse = "" if files.sparse is None else f", {format_size(files.sparse)} without rows that are zero"
    lines = [f"{'packed files':<24}{format_size(files.dense)}{sparse}"]
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
        f"{'updated rows alone':<24}{format_size(files.updated_fp32)} in FP32, {format_size(files.updated_sparse)} "
        f"without rows that are zero ({files.updated_fp32 / files.updated_sparse:.1f}x smaller)",
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
