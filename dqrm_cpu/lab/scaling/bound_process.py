"""What a process does that measures one case under one binding: its cores and libraries are chosen by its parent.

python -m dqrm_cpu.lab.scaling.bound_process TASK FILE
"""

import ctypes
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dqrm_cpu.errors import DeviceError
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.contestant import Contestant
from dqrm_cpu.lab.bench.harness.document import group_document
from dqrm_cpu.lab.bench.harness.runner import Group, TurnPlan, run_case
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.step.floor import StepFloor
from dqrm_cpu.lab.bench.step.our_step import OurStep
from dqrm_cpu.lab.scaling.scaling_cases import case_precisions, scaling_case

CONTESTANTS = ("ours", "ours_int4_exact", "floor")
"""The beginnings of the names of what is measured; the precision follows each."""

_SET_MEMPOLICY, _INTERLEAVE = {"x86_64": 238, "aarch64": 237}, 3
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BoundTask:
    """The task of one process. `nodes`: memory nodes that its pages come from in turn; none: from who touches them."""

    case: str
    quick: bool
    limit_bytes: int  # of the tables
    rounds: int
    turn_s: float
    threads: int
    nodes: Sequence[int] = ()


def run_task(task: BoundTask) -> dict[str, Any]:
    """Returns the figures of the contestants, and what the case is."""
    if task.nodes:
        interleave_memory(task.nodes)
    torch.set_num_threads(task.threads)
    case = scaling_case(task.case, task.quick, task.limit_bytes)
    plan = TurnPlan(task.rounds, task.turn_s, warmup_rounds=1)
    result = run_case(case, lambda *given: [_group(*given)], (), plan, lambda progress: None)
    return {"about": result.about, "facts": dict(result.facts), **group_document(result.groups[0])}


def _group(case: Case, shared: SharedTables) -> Group:
    contestants = [one for precision in case_precisions(case.name) for one in _contestants(case, shared, precision)]
    return Group("step", contestants, contestants[-1].name)


def _contestants(case: Case, shared: SharedTables, precision: str) -> Iterator[Contestant]:
    config = replace(case.config, train=replace(case.config.train, precision=precision))
    plain = replace(config, quant=replace(config.quant, method="none", scale_finder="scan"))
    exact = replace(config, quant=replace(config.quant, method="dqrm", scale_finder="track", scale_period=1))
    ours, int4, floor = (f"{name}_{precision}" for name in CONTESTANTS)
    yield OurStep(ours, "not quantized", plain, shared)
    yield OurStep(int4, "INT4 tables and MLPs, scales exact at every step", exact, shared)
    yield StepFloor(floor, case, shared, _DTYPES[precision])


def interleave_memory(nodes: Sequence[int]) -> None:
    """Makes pages that this process and its later threads touch come from the memory nodes in turn, as numactl does.

    :raises DeviceError: when the kernel does not allow it, as in some containers.
    """
    number = _SET_MEMPOLICY.get(os.uname().machine)
    words = (ctypes.c_ulong * (max(nodes) // 64 + 1))()
    for node in nodes:
        words[node // 64] |= 1 << node % 64
    if number is None or ctypes.CDLL(None, use_errno=True).syscall(number, _INTERLEAVE, words, 64 * len(words) + 1):
        raise DeviceError(f"set_mempolicy: {os.strerror(ctypes.get_errno())}; memory cannot be interleaved here")


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run_task(BoundTask(**json.loads(sys.argv[1])))))
