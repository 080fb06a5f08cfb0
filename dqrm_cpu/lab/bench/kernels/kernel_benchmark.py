"""`bench kernels`: the kernels of a step one by one, against plain PyTorch, FBGEMM, and what memory allows."""

from dqrm_cpu.lab.bench.harness.benchmark import model_benchmark
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.result import Ratio
from dqrm_cpu.lab.bench.harness.runner import Group
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.kernels.dot_interaction import interaction_contestants
from dqrm_cpu.lab.bench.kernels.kernel_inputs import KernelInputs
from dqrm_cpu.lab.bench.kernels.lookup_and_scan import lookup_contestants, scan_contestants
from dqrm_cpu.lab.bench.kernels.updates import adagrad_contestants, embedding_contestants, sgd_contestants
from dqrm_cpu.lab.bench.step.fbgemm import PACKAGE as FBGEMM

_GROUPS = (
    ("lookup", lookup_contestants, "torch_lookup"),
    ("sgd", sgd_contestants, "torch_sgd"),
    ("adagrad", adagrad_contestants, "torch_adagrad"),
    ("interaction", interaction_contestants, "torch_interaction"),
    ("scan", scan_contestants, "torch_aminmax"),
    ("embedding", embedding_contestants, "torch_embedding"),
)

_COMPARED = (
    ("lookup_over_torch", "ours_lookup", "torch_lookup"),
    ("lookup_over_torch_at_once", "ours_lookup", "torch_lookup_at_once"),
    ("lookup_over_floor", "ours_lookup", "lookup_floor"),
    ("sgd_over_torch", "ours_sgd", "torch_sgd"),
    ("sgd_tracked_over_torch", "ours_sgd_tracked", "torch_sgd"),
    ("sgd_tracked_over_torch_alone", "ours_sgd_tracked", "torch_sgd_alone"),
    ("sgd_tracked_over_floor", "ours_sgd_tracked", "update_floor"),
    ("adagrad_over_torch", "ours_adagrad", "torch_adagrad"),
    ("adagrad_tracked_over_torch", "ours_adagrad_tracked", "torch_adagrad"),
    ("interaction_over_torch", "ours_interaction", "torch_interaction"),
    ("interaction_over_torch_flat", "ours_interaction", "torch_interaction_flat"),
    ("interaction_over_floor", "ours_interaction", "interaction_floor"),
    ("scan_over_aminmax", "ours_scan", "torch_aminmax"),
    ("scan_over_floor", "ours_scan", "read_floor"),
    ("embedding_fp32_over_fbgemm", "ours_embedding_fp32", "fbgemm_embedding"),
    ("embedding_int4_over_fbgemm", "ours_embedding_int4", "fbgemm_embedding"),
    ("embedding_fp32_over_torch", "ours_embedding_fp32", "torch_embedding"),
    ("embedding_int4_over_torch", "ours_embedding_int4", "torch_embedding"),
)

_TRACKER_COSTS = (
    ("tracker_cost_over_sgd", "ours_sgd_tracked", "ours_sgd"),
    ("tracker_cost_over_adagrad", "ours_adagrad_tracked", "ours_adagrad"),
)


def kernel_groups(case: Case, shared: SharedTables) -> list[Group]:
    """Makes a group per kernel: only ways to do the same take turns."""
    inputs = KernelInputs(case, shared)
    return [Group(name, list(contestants(inputs)), baseline) for name, contestants, baseline in _GROUPS]


KERNELS = model_benchmark(
    "kernels",
    ("kaggle_128", "kaggle_2048", "terabyte_2048"),
    kernel_groups,
    (
        *(Ratio(key, "fp32", *names) for key, *names in _COMPARED),
        *(Ratio(key, "fp32", tracked, plain, minus=plain) for key, tracked, plain in _TRACKER_COSTS),
    ),
    (FBGEMM,),
)
