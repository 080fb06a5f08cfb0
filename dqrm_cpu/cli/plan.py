"""`dqrm-cpu plan`: what more nodes and another network would bring, from a quick measurement of this machine."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dqrm_cpu.base.wording import counted
from dqrm_cpu.cli.parser import Subparsers, UsageError, whole_number
from dqrm_cpu.config.presets import PRESETS, preset_config

if TYPE_CHECKING:
    from dqrm_cpu.lab.planning.prediction import Check, PlanTask
    from dqrm_cpu.lab.planning.rank_costs import RankCosts

_CASES = ("kaggle_2048", "terabyte_2048")
_MOST_NODES = 4096
_MOST_RANKS_HERE = 64
_MOST_LATENCY_US = 1_000_000

_EPILOG = """\
examples:
  dqrm-cpu plan --nodes 2,8,64 --gbps 10,25,100
  dqrm-cpu plan --case kaggle_2048 --batch 512 --latency-us 5
  dqrm-cpu plan --preset mlperf-dcnv2 --nodes 2,4,8,16,32,64

Takes about a minute: one rank's step and the local phases of an exchange are measured, the network
is computed. docs/planning.md says how, and how far to trust it."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command's options."""
    about = "what more nodes and another network would bring"
    parser = subparsers.add_parser("plan", help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=_EPILOG)
    parser.add_argument("--nodes", metavar="N,...", default="2,8,64", help="one rank on each (default: 2,8,64)")
    parser.add_argument("--gbps", metavar="G,...", default="10,25,100", help="of a node's link (default: 10,25,100)")
    parser.add_argument("--latency-us", metavar="US", type=float, default=20.0, help="of a message (default: 20)")
    parser.add_argument("--case", metavar="NAME", choices=_CASES, default="terabyte_2048", help=" or ".join(_CASES))
    parser.add_argument("--batch", metavar="N", type=whole_number(1), default=2048, help="examples of a node in a step")
    parser.add_argument(
        "--threads", metavar="N", type=whole_number(1), help="of the rank of a node (default: every core)"
    )
    parser.add_argument(
        "--check-ranks", metavar="N,...", default="2", help="ranks of this machine to check the model with (default: 2)"
    )
    parser.add_argument(
        "--preset", metavar="NAME", choices=tuple(PRESETS), help="only where the tables of a preset would lie, at once"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small tables and batch, half a minute; the figures mean nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Measures, then prints; the exit status does not judge."""
    nodes = [_number(text, "--nodes", 2, _MOST_NODES) for text in args.nodes.split(",")]
    links = [_number(text, "--gbps", 1, 100_000) for text in args.gbps.split(",")]
    if not 0 <= args.latency_us < _MOST_LATENCY_US:
        raise UsageError(f"--latency-us {args.latency_us:g}: a number from 0 to {_MOST_LATENCY_US:,}")
    if args.preset:
        print(format_placement(args.preset, nodes))
        return 0
    checked = [_number(text, "--check-ranks", 2, _MOST_RANKS_HERE) for text in args.check_ranks.split(",")]
    from dqrm_cpu.base.hardware import fingerprint
    from dqrm_cpu.lab.planning.prediction import PlanTask, check_here
    from dqrm_cpu.train.working import Working

    cores = fingerprint().usable_cores
    task = PlanTask(args.case, args.batch, args.threads or cores, args.quick)
    with Working("measuring one rank"):
        costs = _measure(task)
    if args.quick:
        print(f"quick: small tables and {costs.batch} examples in a step; the figures mean nothing\n")
    print(format_plan(costs, nodes, links, args.latency_us))
    print(format_sharding(costs, nodes, args.case))
    for ranks in checked:
        threads = max(1, cores // ranks)
        with Working(f"measuring {ranks} ranks beside each other"):
            check = check_here(PlanTask(args.case, args.batch, threads, args.quick), ranks)
        print(format_check(check, threads, cores))
    return 0


def _measure(task: "PlanTask") -> "RankCosts":
    import torch

    from dqrm_cpu.lab.bench.exchange.rank_steps import step_case
    from dqrm_cpu.lab.bench.harness.batch_pool import make_pool
    from dqrm_cpu.lab.planning.prediction import BATCHES, plan_case
    from dqrm_cpu.lab.planning.rank_costs import measure_costs

    torch.set_num_threads(task.threads)
    case = step_case(plan_case(task))
    return measure_costs(case, make_pool(case.config.model, case.batch_size, BATCHES, case.config.seed))


def _number(text: str, option: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise UsageError(f"{option} {text}: whole numbers from {least} to {most}, separated by commas")
    return value


def format_plan(costs: "RankCosts", nodes: list[int], links: list[int], latency_us: float) -> str:
    """Formats what was measured, and a row for each number of nodes, link and wire."""
    return "\n".join([*_measured(costs), "", *_predicted(costs, nodes, links, latency_us), ""])


def _measured(costs: "RankCosts") -> Iterator[str]:
    from dqrm_cpu.lab.planning.rank_costs import MERGED

    yield f"measured here: one rank, {counted(costs.threads, 'thread')}, {costs.batch} examples in a step; milliseconds"
    yield f"  forward and backward {costs.compute_s * 1e3:.2f}, coalesce {costs.coalesce_s * 1e3:.2f}"
    few, many = MERGED
    for wire, cost in costs.wires.items():
        (merge_few, merge_many), (update_few, update_many) = cost.merge_s, cost.update_s
        yield (
            f"  {wire:<9}  quantize {cost.quantize_s * 1e3:.2f}, merge of {few} ranks {merge_few * 1e3:.2f}, "
            f"of {many} {merge_many * 1e3:.2f}, update {update_few * 1e3:.2f} and {update_many * 1e3:.2f}; "
            f"a message of {cost.message_bytes / 1e6:.2f} MB"
        )


def _predicted(costs: "RankCosts", nodes: list[int], links: list[int], latency_us: float) -> Iterator[str]:
    from dqrm_cpu.lab.planning.network import Network
    from dqrm_cpu.lab.planning.prediction import predict

    yield f"computed: {costs.batch} examples on every node, messages of {latency_us:g} us, MLP gradients in FP32"
    yield "  nodes   Gb/s  wire        ms/step   of which network   MB to each node   examples/s"
    for count in nodes:
        for link in links:
            network = Network(latency_us * 1e-6, link * 1e9 / 8)
            for wire in costs.wires:
                prediction = predict(costs, wire, count, network)
                yield (
                    f"  {count:>5}  {link:>5}  {wire:<9}  {prediction.step_s * 1e3:>8.2f}   "
                    f"{(prediction.wire_s + prediction.mlp_wire_s) * 1e3:>16.2f}   "
                    f"{(prediction.table_bytes + prediction.mlp_bytes) / 1e6:>15.2f}   "
                    f"{count * costs.batch / prediction.step_s:>10,.0f}"
                )


def format_sharding(costs: "RankCosts", nodes: list[int], case: str) -> str:
    """Formats where the tables of the whole model would lie, what they take, and when to shard them."""
    from dqrm_cpu.lab.planning.sharded_tables import advice, model_of_case, rows_of_message, shard_tables

    model = model_of_case(case)
    rows = rows_of_message(costs.wires["int8"].message_bytes, model.embedding_dim)
    plans = [shard_tables(model, rows, costs.batch, count) for count in nodes]
    lines = [
        f"computed: all tables of the model, not cut; {rows:,.0f} different rows in a batch of {costs.batch}, INT8 "
        "gradients",
        "  nodes   GB on a node   sharded   MB that it receives   sharded (rows in 4 bits)",
    ]
    for plan in plans:
        lines.append(
            f"  {plan.nodes:>5}   {plan.replicated_bytes / 1e9:>12.2f}   {plan.held_bytes / 1e9:>7.2f}   "
            f"{plan.received_replicated / 1e6:>19.2f}   {plan.received_sharded / 1e6:>7.2f}"
        )
    return "\n".join([*lines, f"  {advice(plans)}", ""])


def format_placement(preset: str, nodes: list[int]) -> str:
    """Formats where the tables of a preset would lie on so many nodes, one rank on each."""
    from dqrm_cpu.comm.sharding.placement import table_loads
    from dqrm_cpu.lab.planning.sharded_tables import placement_table

    config = preset_config(preset)
    optimizer_bytes = 4 if config.train.optimizer == "rowwise-adagrad" else 0
    lookups = max(load.lookups for load in table_loads(config))
    return "\n".join([*placement_table(config.model, optimizer_bytes, lookups, nodes), ""])


def format_check(check: "Check", threads: int, cores: int) -> str:
    """Formats the model's prediction beside the times of real ranks."""
    lines = [
        f"checked here: {check.ranks} ranks over {check.transport}, {counted(threads, 'thread')} each, "
        f"{counted(cores, 'core')} in all; between them "
        f"{check.network.latency_s * 1e6:.0f} us and {check.network.bytes_per_s * 8e-9:.1f} Gb/s, as measured",
        "  wire             measured    predicted   predicted / measured",
    ]
    for wire, measured_s in check.measured_s.items():
        predicted_s = check.predicted_s[wire]
        lines.append(
            f"  {wire:<13}  {measured_s * 1e3:>7.2f} ms   {predicted_s * 1e3:>7.2f} ms   {predicted_s / measured_s:.2f}"
        )
    return "\n".join(lines)
