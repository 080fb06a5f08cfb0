"""What more nodes would bring: a rank's costs, measured here, and the alpha-beta model of a network between them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from dqrm_cpu.lab.bench.harness.cases import CASES, Case, quick
from dqrm_cpu.lab.bench.harness.start_ranks import run_ranks
from dqrm_cpu.lab.planning.network import Network
from dqrm_cpu.lab.planning.rank_costs import MERGED, WIRES, RankCosts, WireCosts
from dqrm_cpu.lab.planning.sharded_tables import rows_of_message

BATCHES = 16
"""How many batches the measurements take in turn."""

SHARDED = "int8, sharded"
"""The name of a step with sharded tables and INT8 gradients, among those of wires."""

_WORK = "dqrm_cpu.lab.planning.measured_ranks"
_HEADER_BYTES = {"sparse": 4, "int8-fp32": 8, "int8": 8}  # a table: rows, and the largest magnitude


@dataclass(frozen=True)
class PlanTask:
    """The task of a plan: a case of the step benchmark, and how many examples a rank takes in a step."""

    case: str
    batch: int
    threads: int
    quick: bool = False


@dataclass(frozen=True)
class Prediction:
    """The parts of one step; seconds, and bytes that a node sends to each other node."""

    local_s: float  # everything but the network
    wire_s: float  # table gradients
    mlp_wire_s: float
    table_bytes: float
    mlp_bytes: float

    @property
    def step_s(self) -> float:
        return self.local_s + self.wire_s + self.mlp_wire_s


@dataclass(frozen=True)
class Check:
    """Ranks on this machine: what was measured, and what the model says for the way between them."""

    ranks: int
    transport: str
    network: Network
    measured_s: Mapping[str, float]  # by wire
    predicted_s: Mapping[str, float]


def plan_case(task: PlanTask) -> Case:
    """Makes the same case on every rank."""
    case = CASES[task.case]()
    case = replace(case, config=replace(case.config, train=replace(case.config.train, batch_size=task.batch)))
    return quick(case) if task.quick else case


def predict(costs: RankCosts, wire: str, nodes: int, network: Network) -> Prediction:
    """Predicts a step of one rank a node, each with the batch that was measured; nothing overlaps."""
    of_wire = costs.wires[wire]
    local_s = costs.compute_s + costs.coalesce_s + of_wire.quantize_s + costs.dense_update_s
    local_s += _on_line(of_wire.merge_s, nodes) + _on_line(of_wire.update_s, nodes)
    header_bytes, mlp_bytes = _HEADER_BYTES[wire] * costs.tables, 4.0 * costs.num_parameters
    return Prediction(
        local_s,
        network.gather_s(nodes, header_bytes) + network.gather_s(nodes, of_wire.message_bytes),
        network.reduce_at_destination_s(nodes, mlp_bytes),
        header_bytes + of_wire.message_bytes,
        2 * mlp_bytes / nodes,
    )


def predict_sharded(costs: RankCosts, nodes: int, network: Network) -> Prediction:
    """Predicts a step with sharded tables, rows in 4 bits and INT8 gradients; rows lie evenly on the nodes."""
    rows = rows_of_message(costs.wires["int8"].message_bytes, costs.dim) / nodes  # of each node
    counts, ids, codes, gradients = 4 * costs.tables, 4 * rows, costs.dim / 2 * rows, costs.dim * rows
    header_bytes, mlp_bytes = _HEADER_BYTES["int8"] * costs.tables, 4.0 * costs.num_parameters
    parts = counts, ids, codes, gradients
    return Prediction(
        costs.sharded_s,
        network.gather_s(nodes, header_bytes) + sum(network.all_to_all_s(nodes, part) for part in parts),
        network.reduce_at_destination_s(nodes, mlp_bytes),
        header_bytes + sum(parts),
        2 * mlp_bytes / nodes,
    )


def check_here(task: PlanTask, ranks: int = 2) -> Check:
    """Starts ranks here, and asks the model for what they did, from the costs that they measured themselves.

    More ranks than cores share them in what is measured and in what is predicted alike.
    """
    figures = run_ranks(_WORK, asdict(task), ranks, task.threads)
    costs, network = costs_from(figures["costs"]), Network(**figures["network"])
    predicted_s = {wire: predict(costs, wire, ranks, network).step_s for wire in WIRES}
    predicted_s[SHARDED] = predict_sharded(costs, ranks, network).step_s
    return Check(ranks, figures["transport"], network, figures["step_s"], predicted_s)


def costs_from(plain: Mapping[str, Any]) -> RankCosts:
    """Reads costs that went through `asdict` and JSON."""
    wires = {
        wire: WireCosts(
            figures["message_bytes"], figures["quantize_s"], tuple(figures["merge_s"]), tuple(figures["update_s"])
        )
        for wire, figures in plain["wires"].items()
    }
    return RankCosts(**{**plain, "wires": wires})


def _on_line(measured_s: tuple[float, float], nodes: int) -> float:
    """Returns the seconds for another number of ranks than MERGED: what is merged grows with them."""
    (few, many), (few_s, many_s) = MERGED, measured_s
    return max(few_s + (many_s - few_s) * (nodes - few) / (many - few), 0.0)
