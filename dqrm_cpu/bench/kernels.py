"""`bench kernels`: the kernels of a step one by one, against plain PyTorch, FBGEMM, and what memory allows."""

from dqrm_cpu.bench.arena import Arenas
from dqrm_cpu.bench.benchmark import Benchmark, Group, Ratio
from dqrm_cpu.bench.cases import Case
from dqrm_cpu.bench.embedding import embedding_contestants
from dqrm_cpu.bench.interaction import interaction_contestants
from dqrm_cpu.bench.kernel_material import Material
from dqrm_cpu.bench.lookup import lookup_contestants
from dqrm_cpu.bench.scan import scan_contestants
from dqrm_cpu.bench.update import adagrad_contestants, sgd_contestants

_CASES = ("kaggle_128", "kaggle_2048", "terabyte_2048")

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


def kernel_groups(case: Case, arenas: Arenas) -> list[Group]:
    """A group per kernel: only ways to do the same take turns."""
    material = Material(case, arenas)
    return [Group(name, list(contestants(material)), baseline) for name, contestants, baseline in _GROUPS]


KERNELS = Benchmark(
    "kernels",
    _CASES,
    kernel_groups,
    (),
    (
        *(Ratio(key, "fp32", *names) for key, *names in _COMPARED),
        *(Ratio(key, "fp32", tracked, plain, minus=plain) for key, tracked, plain in _TRACKER_COSTS),
    ),
)
