"""`dqrm-cpu profile`: where the time of a step goes, beside other ways to train, as a page, figures and a trace."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.base.wording import counted
from dqrm_cpu.cli.options import add_config_options, config_from_args, tell
from dqrm_cpu.cli.parser import Subparsers, UsageError, whole_number

if TYPE_CHECKING:
    from dqrm_cpu.comm.transport import Transport
    from dqrm_cpu.config import Config
    from dqrm_cpu.lab.profiler.profile_files import ProfileContext
    from dqrm_cpu.lab.profiler.result import StepProfile

_WARMUP_STEPS, _STEPS, _ROUNDS = 10, 50, 5

_ABOUT = "Runs some steps of a configuration and shows where their time goes."

_EXAMPLES = """examples:
  dqrm-cpu profile --preset kaggle                    this configuration
  dqrm-cpu profile --preset kaggle --compare          beside FP32, the paper's scans and tracked scales
  mpirun -n 2 dqrm-cpu profile --compare              with the wires between ranks
  vtune -collect hotspots -- dqrm-cpu profile --itt   phases as ITT ranges

How to read the page: docs/profiling.md."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the options of `train` and the command's own."""
    parser = subparsers.add_parser("profile", help="see where a step's time goes", description=_ABOUT, epilog=_EXAMPLES)
    count, positive = whole_number(0), whole_number(1)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder of the results\ndefault: profiles/PRESET-DATE-TIME"
    )
    parser.add_argument("--compare", action="store_true", help="also run what the paper compares, in turns")
    parser.add_argument(
        "--warmup",
        metavar="N",
        type=count,
        default=_WARMUP_STEPS,
        help=f"steps before (default: {_WARMUP_STEPS})",
    )
    parser.add_argument(
        "--steps", metavar="N", type=positive, default=_STEPS, help=f"measured steps of each (default: {_STEPS})"
    )
    parser.add_argument("--rounds", metavar="N", type=positive, default=_ROUNDS, help=f"turns (default: {_ROUNDS})")
    parser.add_argument("--itt", action="store_true", help="mark phases for VTune")
    parser.add_argument(
        "--torch-profiler", action="store_true", help="also record PyTorch's operators, as torch-rankN.json"
    )
    parser.add_argument("--png", action="store_true", help="also write the figures as PNG")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Profiles on every rank; rank 0 writes the files and prints what it wrote."""
    config = config_from_args(args)
    if config.device != "cpu":
        raise UsageError("profile shows CPU runs; leave out --device")
    from dqrm_cpu.api.ranks import opened_transport
    from dqrm_cpu.report.paper import load_matplotlib

    if args.png:
        load_matplotlib()
    with opened_transport(config, tell) as transport:
        return _profile(config, args, transport)


def _profile(config: "Config", args: argparse.Namespace, transport: "Transport") -> int:
    from dqrm_cpu.api.ranks import gathered_environment
    from dqrm_cpu.comm.coordination import on_first_rank
    from dqrm_cpu.lab.profiler.bandwidth import bandwidths
    from dqrm_cpu.lab.profiler.profile_files import ProfileContext, make_folder
    from dqrm_cpu.lab.profiler.result import ProfilePlan
    from dqrm_cpu.lab.profiler.run import take_profile, torch_file

    default = Path("profiles") / f"{config.preset}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(str(transport.broadcast_json(str(args.out or default))))
    # Before minutes of measuring: whatever is wrong with the folder is said at once.
    on_first_rank(transport, lambda: make_folder(folder))
    environment = gathered_environment(transport)
    torch_folder = folder if args.torch_profiler else None
    plan = ProfilePlan(args.warmup, args.steps, min(args.rounds, args.steps), args.compare, args.itt, torch_folder)
    profile = take_profile(config, plan, transport, _show if transport.rank == 0 else _say_nothing)
    if transport.rank > 0:
        return 0
    now = datetime.now(UTC).isoformat(timespec="seconds")
    context = ProfileContext(now, config, plan, environment, bandwidths(profile))
    of_torch = (folder / torch_file(rank) for rank in range(transport.size) if args.torch_profiler)
    # Those of ranks on other hosts are there, unless they share a disk.
    for path in (*_written(folder, profile, context, args.png), *(path for path in of_torch if path.exists())):
        print(path)
    return 0


def _written(folder: Path, profile: "StepProfile", context: "ProfileContext", png: bool) -> list[Path]:
    from dqrm_cpu.lab.profiler.profile_files import write_files
    from dqrm_cpu.lab.profiler.sections import profile_sections
    from dqrm_cpu.report.page import write_page

    ranks = len(profile.timelines)
    title = f"Profile of {context.config.preset}, batch {context.config.train.batch_size:,}"
    subtitle = f"{context.environment['machine']['cpu_model']}, {counted(ranks, 'rank')}, {context.taken_at}"
    sections = profile_sections(profile, context)
    written = write_files(folder, profile, context)
    return written + write_page(title, subtitle, sections, folder / "report.html", folder / "figures" if png else None)


def _show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say_nothing(text: str) -> None:
    """Ignores a line of output: rank 0 speaks for all."""
