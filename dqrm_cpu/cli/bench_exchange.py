"""`dqrm-cpu bench exchange`: times and weighs what travels between ranks, which it starts itself."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from dqrm_cpu.cli.bench_against import earlier_of, print_changes
from dqrm_cpu.cli.parser import UsageError

if TYPE_CHECKING:
    from dqrm_cpu.bench.document import Circumstances
    from dqrm_cpu.bench.exchange import ExchangeTask
    from dqrm_cpu.bench.exchange_run import ExchangeEntry, ExchangeGroup, ExchangeResult

_PHASES_SHOWN = ("coalesce", "quantize_gradients", "wire", "merge")


def run_bench_exchange(args: argparse.Namespace, around: "Circumstances") -> int:
    """Prints a table per case; the exit status does not judge."""
    from dqrm_cpu.bench.exchange_document import exchange_document, timed_groups
    from dqrm_cpu.bench.exchange_run import run_exchange_case

    earlier, results = earlier_of(args, "exchange"), []
    for task in _tasks(args, around):
        print(f"{task.case}: starting ranks, over {', '.join(task.transports)}", file=sys.stderr, flush=True)
        results.append(run_exchange_case(task))
        print(format_exchange_case(results[-1]), flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps(exchange_document(around, results), indent=1) + "\n")
    print_changes(earlier, timed_groups(results), around)
    return 0


def _tasks(args: argparse.Namespace, around: "Circumstances") -> "list[ExchangeTask]":
    from dqrm_cpu.bench.exchange import CASES, RANKS, TRANSPORTS, ExchangeTask, usable_transports

    transports = _names(args.transports, usable_transports())
    for name in transports:
        if name not in TRANSPORTS:
            raise UsageError(f"--transports {name}: no such transport; there are {', '.join(TRANSPORTS)}")
    cases = _names(args.cases, tuple(CASES))
    for name in cases:
        if name not in CASES:
            raise UsageError(f"--cases {name}: no such case of bench exchange; there are {', '.join(CASES)}")
    plan, threads = around.plan, args.threads or max(1, around.machine.usable_cores // RANKS)
    return [ExchangeTask(name, args.quick, transports, plan.rounds, plan.turn_s, threads) for name in cases]


def _names(given: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    return default if given is None else tuple(name.strip() for name in given.split(","))


def format_exchange_case(result: "ExchangeResult") -> str:
    """A table of all contestants, each against the baseline of its group; bytes, phases, efficiency."""
    from dqrm_cpu.bench.exchange_document import baseline, bytes_over_sparse_int64, efficiencies

    weights, efficiency = bytes_over_sparse_int64(result), efficiencies(result)
    lines = [f"{result.case}: {result.about}; {result.ranks} ranks"]
    for group in result.groups:
        against = baseline(group, result.transports)
        lines += ["", *_group_lines(group, against, result.medians_s().get(against))]
    lines += ["", "  bytes over FP32 with int64 rows, median step of one rank over ranks times that of all:"]
    lines += [f"  {name:<22}  {value:6.3f}" for name, value in (weights | efficiency).items()]
    return "\n".join([*lines, ""])


def _group_lines(group: "ExchangeGroup", against: str, baseline_s: float | None) -> list[str]:
    over = f"over {against}" if baseline_s else ""
    phases = "  ".join(f"{name.partition('_')[0]:>8}" for name in _PHASES_SHOWN) if group.name == "tables" else ""
    heading = f"  {group.name:<22}  {'median':>10}  {'quartiles':>19}  {'bytes':>10}  {phases}  {over}"
    lines = [heading.rstrip(), *(f"  {_row(entry, baseline_s)}" for entry in group.entries)]
    return lines + [f"  {name:<22}  absent: {reason}" for name, reason in group.absent.items()]


def _row(entry: "ExchangeEntry", baseline_s: float | None) -> str:
    median_s, (lower_s, upper_s) = entry.timing.median_s, entry.timing.quartiles_s
    row = f"{entry.name:<22}  {median_s * 1e3:>7.2f} ms  {lower_s * 1e3:>7.2f} -{upper_s * 1e3:>7.2f} ms"
    row += f"  {entry.bytes_in_all:>10,.0f}"
    phases = [entry.phases_s.get(name) for name in _PHASES_SHOWN]
    row += "".join(f"  {'' if seconds is None else f'{seconds * 1e3:5.2f} ms':>8}" for seconds in phases)
    return f"{row}  {median_s / baseline_s:.3f}" if baseline_s else row
