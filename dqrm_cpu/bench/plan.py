"""What more nodes would bring: a rank's profile, measured here, and the alpha-beta model of a network between them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from dqrm_cpu.bench.cases import CASES, Case, quick
from dqrm_cpu.bench.plan_profile import MERGED, WIRES, Profile, WireProfile
from dqrm_cpu.bench.world import run_ranks
from dqrm_cpu.comm.network import Network

BATCHES = 16
"""Different ones that the measurements take in turn."""

_WORK = "dqrm_cpu.bench.plan_work"
_HEADER_BYTES = {"sparse": 4, "int8-fp32": 8, "int8": 8}  # a table: rows, and the largest magnitude


@dataclass(frozen=True)
class PlanTask:
    """What is planned for: a case of the step benchmark, and how many examples a rank takes in a step."""

    case: str
    batch: int
    threads: int
    quick: bool = False


@dataclass(frozen=True)
class Prediction:
    """One step; seconds, and bytes that a node sends to each other node."""

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
    """Two ranks on this machine: what was measured, and what the model says for the way between them."""

    transport: str
    network: Network
    measured_s: Mapping[str, float]  # by wire
    predicted_s: Mapping[str, float]


def plan_case(task: PlanTask) -> Case:
    """The same on every rank."""
    case = CASES[task.case]()
    case = replace(case, config=replace(case.config, train=replace(case.config.train, batch_size=task.batch)))
    return quick(case) if task.quick else case


def predict(profile: Profile, wire: str, nodes: int, network: Network) -> Prediction:
    """One rank a node, each with the profile's batch; nothing overlaps."""
    found = profile.wires[wire]
    local_s = profile.compute_s + profile.coalesce_s + found.quantize_s + profile.dense_update_s
    local_s += _on_line(found.merge_s, nodes) + _on_line(found.update_s, nodes)
    header_bytes, mlp_bytes = _HEADER_BYTES[wire] * profile.tables, 4.0 * profile.num_parameters
    return Prediction(
        local_s,
        network.gather_s(nodes, header_bytes) + network.gather_s(nodes, found.message_bytes),
        network.reduce_at_destination_s(nodes, mlp_bytes),
        header_bytes + found.message_bytes,
        2 * mlp_bytes / nodes,
    )


def check_here(task: PlanTask, ranks: int = 2) -> Check:
    """Starts two ranks here, and asks the model for what they did, from the profile that they measured themselves."""
    figures = run_ranks(_WORK, asdict(task), ranks, task.threads)
    profile, network = profile_from(figures["profile"]), Network(**figures["network"])
    predicted_s = {wire: predict(profile, wire, ranks, network).step_s for wire in WIRES}
    return Check(figures["transport"], network, figures["step_s"], predicted_s)


def profile_from(plain: Mapping[str, Any]) -> Profile:
    """What `asdict` made of one, through JSON."""
    wires = {
        wire: WireProfile(
            found["message_bytes"], found["quantize_s"], tuple(found["merge_s"]), tuple(found["update_s"])
        )
        for wire, found in plain["wires"].items()
    }
    return Profile(**{**plain, "wires": wires})


def _on_line(measured_s: tuple[float, float], nodes: int) -> float:
    """For another number of ranks than MERGED: what is merged grows with them."""
    (few, many), (few_s, many_s) = MERGED, measured_s
    return max(few_s + (many_s - few_s) * (nodes - few) / (many - few), 0.0)
