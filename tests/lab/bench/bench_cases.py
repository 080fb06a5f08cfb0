"""A case small enough to be computed by every contestant in a test, and contestants by name."""

from dataclasses import replace

from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.contestant import AbsentError, Contestant
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.kernels.kernel_benchmark import kernel_groups
from dqrm_cpu.lab.bench.step.step_benchmark import step_groups
from tiny import tiny_config

BATCH = 32


def tiny_case() -> Case:
    """FBGEMM takes dims that are multiples of 4 only; a large learning rate makes max|W| move."""
    model = {"table_rows": (40, 3, 500), "embedding_dim": 8, "bottom_mlp": (9, 8), "top_mlp": (11, 1)}
    config = tiny_config(model=model, train={"batch_size": BATCH, "learning_rate": 2.0})
    return replace(Case("tiny", "for tests", config), whole_table=True, from_paper=True)


def make_contestant(name: str) -> Contestant:
    """Makes a contestant of either benchmark, on tables of its own; not set up yet."""
    case = tiny_case()
    shared = SharedTables(case)
    groups = [*step_groups(case, shared), *kernel_groups(case, shared)]
    return next(contestant for group in groups for contestant in group.contestants if contestant.name == name)


def usable(*names: str) -> list[str]:
    """Those that can take part here: their libraries may be missing, and so may BF16.

    Not to be asked about others: to set up one of plain torch takes seconds, whenever tests are collected.
    """
    return [name for name in names if _takes_part(name)]


def _takes_part(name: str) -> bool:
    contestant = make_contestant(name)
    try:
        contestant.setup()
    except AbsentError:
        return False
    contestant.teardown()
    return True
