"""`bench scaling`: the same steps on 1 to all cores of a machine, a process for each case and binding."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dqrm_cpu.errors import DeviceError
from dqrm_cpu.lab.bench.harness.benchmark import Benchmark, RunEnvironment
from dqrm_cpu.lab.bench.harness.result import CaseResult, ContestantResult, GroupResult, Ratio, Timing
from dqrm_cpu.lab.bench.harness.runner import BenchProgress, ProgressObserver
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.scaling.bound_process import CONTESTANTS, BoundTask
from dqrm_cpu.lab.scaling.core_bindings import CoreBinding, core_bindings, core_places, installed_libraries
from dqrm_cpu.lab.scaling.scaling_cases import SCALING_CASES, flops_per_sample, scaling_case

NAME = "scaling"
PRECISIONS = ("fp32", "bf16")

_MODULE = "dqrm_cpu.lab.scaling.bound_process"
_LINES_SHOWN = 4
_BESIDE_TABLES_BYTES = 6_000_000_000
_NOTES = (
    "Each binding of cores is a process of its own, bound to its cores; contestants take turns within it.",
    "efficiency is samples_per_s over cores times those of one core; over_floor a step over its matrix products and "
    "bytes alone, measured on the same cores.",
    "gflops_per_core counts the products of the MLPs that a step needs, and nothing else.",
)


def scaling_benchmark(environment: RunEnvironment) -> Benchmark:
    """Makes the benchmark of this machine, on up to as many cores as the environment has threads."""
    bindings = machine_bindings(environment)

    def run(case: str, environment: RunEnvironment, observe: ProgressObserver) -> CaseResult:
        return _run(case, bindings, environment, observe)

    return Benchmark(NAME, tuple(SCALING_CASES), tuple(SCALING_CASES), run, scaling_ratios(bindings), _NOTES)


def machine_bindings(environment: RunEnvironment) -> tuple[CoreBinding, ...]:
    """Returns the settings of this machine; a quick look takes numbers of cores only."""
    places = core_places(environment.machine.affinity)[: environment.threads]
    if environment.quick:
        return core_bindings(places, (), 1)
    return core_bindings(places, tuple(installed_libraries()), len(environment.machine.numa_nodes))


def contestant_names() -> list[str]:
    """Returns what stands in each binding, without the binding's name behind it."""
    return [f"{name}_{precision}" for precision in PRECISIONS for name in CONTESTANTS]


def scaling_ratios(bindings: Sequence[CoreBinding]) -> tuple[Ratio, ...]:
    """Returns what is compared with what, within each binding."""
    ours, int4, floor = CONTESTANTS
    found: list[Ratio] = []
    for binding in bindings:
        for precision in PRECISIONS:
            plain, quantized, least = (f"{name}_{precision}_{binding.name}" for name in (ours, int4, floor))
            variant = f"{binding.name}_{precision}"
            found += [
                Ratio("over_floor", variant, plain, least),
                Ratio("int4_exact_over_floor", variant, quantized, least),
                Ratio("int4_exact_over_ours", variant, quantized, plain),
            ]
    return tuple(found)


def _run(
    name: str, bindings: Sequence[CoreBinding], environment: RunEnvironment, observe: ProgressObserver
) -> CaseResult:
    """Raises DeviceError where a binding without preloaded libraries fails."""
    spare = environment.machine.memory_available_bytes - _BESIDE_TABLES_BYTES
    limit = max(spare // SharedTables.COUNT, 100_000_000)
    groups: list[GroupResult] = []
    for number, binding in enumerate(bindings):
        observe(BenchProgress(name, binding.name, number, len(bindings)))
        nodes = [node.number for node in environment.machine.numa_nodes] if binding.interleaved else []
        plan = environment.plan
        task = BoundTask(name, environment.quick, limit, plan.rounds, plan.turn_s, binding.cores, nodes)
        try:
            found = run_bound(task, binding)
        except DeviceError as error:
            if binding.is_usual:
                raise
            groups.append(GroupResult(binding.name, "", (), {binding.name: str(error)}))
            continue
        groups.append(_group_result(binding, found))
    observe(BenchProgress(name, "", len(bindings), len(bindings)))
    case = scaling_case(name, environment.quick, limit)
    facts = {**found["facts"], "flops_per_sample": flops_per_sample(case.config), "bindings": _facts(bindings)}
    return with_summaries(CaseResult(name, case.about, facts, tuple(groups)), bindings)


def _facts(bindings: Sequence[CoreBinding]) -> dict[str, Any]:
    return {one.name: {"cores": one.cores, "sockets": one.sockets, "preload": one.preload} for one in bindings}


def run_bound(task: BoundTask, binding: CoreBinding) -> dict[str, Any]:
    """Measures a case in a process on the binding's cores; raises DeviceError with its last lines if it fails."""
    with tempfile.TemporaryDirectory(prefix="dqrm-cpu-scaling-") as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, "-m", _MODULE, json.dumps(asdict(task)), str(figures)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads)}
        if binding.preload:
            environment["LD_PRELOAD"] = binding.preload
        before = os.sched_getaffinity(0)
        # A process inherits the cores of the thread that starts it, before any library in it counts them.
        os.sched_setaffinity(0, binding.cpus)
        try:
            done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        finally:
            os.sched_setaffinity(0, before)
        if done.returncode or not figures.exists():
            last = "\n  ".join(done.stderr.strip().splitlines()[-_LINES_SHOWN:]) or "it printed nothing"
            raise DeviceError(f"{task.case} on {binding.name} ended with status {done.returncode}:\n  {last}")
        plain: dict[str, Any] = json.loads(figures.read_text())
        return plain


def _group_result(binding: CoreBinding, found: Mapping[str, Any]) -> GroupResult:
    entries = [
        ContestantResult(
            f"{name}_{binding.name}", figures["about"], Timing(tuple(figures["samples_s"]), figures["steps_per_turn"])
        )
        for name, figures in found["contestants"].items()
    ]
    absent = {f"{name}_{binding.name}": reason for name, reason in found["absent"].items()}
    return GroupResult(binding.name, entries[-1].name, tuple(entries), absent)


def with_summaries(result: CaseResult, bindings: Sequence[CoreBinding]) -> CaseResult:
    """Returns the result with what follows from its times: rates, rates of a core, and how well cores add up."""
    batch, flops, medians_s = result.facts["batch_size"], result.facts["flops_per_sample"], result.medians_s()
    rates: dict[str, float] = {}
    of_core: dict[str, float] = {}
    efficiency: dict[str, float] = {}
    for binding in bindings:
        for kind in contestant_names():
            name = f"{kind}_{binding.name}"
            if name in medians_s:
                rates[name] = batch / medians_s[name]
                of_core[name] = rates[name] / binding.cores
                efficiency[name] = of_core[name] / of_core[f"{kind}_{bindings[0].name}"]
    gflops = {name: rate * flops * 1e-9 for name, rate in of_core.items()}
    summaries = {
        "samples_per_s": rates,
        "samples_per_s_per_core": of_core,
        "gflops_per_core": gflops,
        "efficiency": efficiency,
    }
    return replace(result, summaries=summaries)
