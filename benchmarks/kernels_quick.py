"""Times every kernel against plain torch in one interleaved run and prints medians and ratios.

    python benchmarks/kernels_quick.py [--threads N] [--rounds N] [--gigabytes N]

Kaggle: the paper's tables, D = 16. Terabyte-like: 26 tables of one size, D = 64, capped by --gigabytes. Ids follow a
Zipf law (exponent 1.05). Times are of this machine, under whatever load it has.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import dqrm_cpu
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.types import Bags
from dqrm_cpu.model.tables import allocate_tables
from dqrm_cpu.openmp import set_threads

KAGGLE_ROWS = [
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
]  # fmt: skip
LR = 0.1
Run = Callable[[], object]


def zipf_ids(rows: list[int], batch: int, exponent: float = 1.05) -> Tensor:
    """int32[T, B]: inverse of the continuous Zipf distribution, popular ids scattered over the table."""
    ids = []
    for n in rows:
        u = torch.rand(batch, dtype=torch.float64)
        rank = ((u * (n ** (1 - exponent) - 1) + 1) ** (1 / (1 - exponent))).long().clamp(1, n) - 1
        ids.append((rank * 2654435761) % n)
    return torch.stack(ids).int()


def interleaved(runs: dict[str, Run], rounds: int, prepare: dict[str, Run] | None = None) -> dict[str, float]:
    """Median microseconds of each, one after the other in every round; what `prepare` names is not timed."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 2):
        for name, run in runs.items():
            if prepare and name in prepare:
                prepare[name]()
            start = time.perf_counter()
            run()
            if round_number >= 2:
                times[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, medians: dict[str, float], against: str, target: str = "") -> None:
    line = "  ".join(f"{name} {median:.0f} us" for name, median in medians.items())
    ratios = "  ".join(f"{medians[against] / medians[name]:.1f}x" for name in medians if name != against)
    print(f"{title:28} {line}   -> {ratios} {target}", flush=True)


class Workload:
    """Tables, several batches to walk through (so that rows are not all in the cache), and both sides' kernels."""

    def __init__(self, rows: list[int], dim: int, batch: int, num_batches: int = 16) -> None:
        self.rows, self.dim, self.batch = rows, dim, batch
        self.kernels = select_kernels("numba", torch.device("cpu"))
        self.tables = allocate_tables(rows, dim, torch.device("cpu"))
        self.kernels.init_uniform_(self.tables, 1)
        self.batches = [zipf_ids(rows, batch) for _ in range(num_batches)]
        self.longs = [ids.long() for ids in self.batches]
        self.features = torch.randn(batch, 1 + len(rows), dim)
        self.grad = torch.randn_like(self.features) * 1e-3
        self.views = list(self.tables.weight.split(rows))
        self.sums = torch.zeros(self.tables.weight.shape[0])
        self._at = 0

    def next(self) -> int:
        self._at = (self._at + 1) % len(self.batches)
        return self._at

    def gather(self, rounds: int) -> None:
        step = self.kernels.scan_absmax(self.tables) / 7
        out, steps = self.features, step.tolist()

        def plain() -> None:
            ids = self.longs[self.next()]
            for t, view in enumerate(self.views):
                rows = view.index_select(0, ids[t])
                out[:, 1 + t] = torch.clamp(torch.round(rows / steps[t]), -8, 7) * steps[t]

        def fused() -> None:
            bags = Bags(self.batches[self.next()], None)
            self.kernels.gather_quantize_pool(self.tables, bags, step, 4, out)

        report("gather+quantize", interleaved({"torch": plain, "numba": fused}, rounds), "torch", "(5x, 8x)")

    def update(self, rounds: int) -> None:
        """The backward of sparse bags and the optimizer's step, against the fused update; the forward is not timed.

        All change the same tables, so that the tracker's bounds go stale here: its cost is right, its maximum is not.
        """
        k, tables, grad = self.kernels, self.tables, self.grad
        tracker = k.make_tracker(tables)
        plain = PlainUpdate(self)

        def bags() -> Bags:
            return Bags(self.batches[self.next()], None)

        runs: dict[str, Run] = {
            "torch": plain.sgd,
            "untracked": lambda: k.update_sgd_(tables, bags(), grad, LR, 0.0, None),
            "tracked": lambda: k.update_sgd_(tables, bags(), grad, LR, 0.0, tracker),
        }
        prepare: dict[str, Run] = {"torch": plain.forward}
        report("SGD", interleaved(runs, rounds, prepare), "torch", "(tracked 7x, 12x)")
        runs = {
            "torch": plain.rowwise_adagrad,
            "untracked": lambda: k.update_rowwise_adagrad_(tables, self.sums, bags(), grad, LR, 1e-8, 0.0, None),
            "tracked": lambda: k.update_rowwise_adagrad_(tables, self.sums, bags(), grad, LR, 1e-8, 0.0, tracker),
        }
        report("row-wise Adagrad", interleaved(runs, rounds, prepare), "torch", "(tracked 12x, 20x)")

    def interaction(self, rounds: int) -> None:
        num_features, dim = self.features.shape[1:]
        i, j = torch.tril_indices(num_features, num_features, -1)
        flat = i * num_features + j
        width = dim + flat.numel()
        out, grad_out = torch.empty(self.batch, width), torch.randn(self.batch, width)
        grad = torch.empty_like(self.features)
        features = self.features.clone().requires_grad_()

        def plain(select: Callable[[Tensor], Tensor]) -> Run:
            def run() -> None:
                gram = torch.bmm(features, features.transpose(1, 2))
                torch.autograd.grad(torch.cat((features[:, 0], select(gram)), 1), features, grad_out)

            return run

        def fused() -> None:
            self.kernels.interaction_forward(self.features, out)
            self.kernels.interaction_backward(self.features, grad_out, grad)

        runs: dict[str, Run] = {
            "Z[:, i, j]": plain(lambda z: z[:, i, j]),
            "flat": plain(lambda z: z.flatten(1).index_select(1, flat)),
            "numba": fused,
        }
        medians = interleaved(runs, rounds)
        report("interaction", medians, "Z[:, i, j]", "(7x)")
        report("interaction", medians, "flat", "(4x)")

    def scan(self) -> None:
        weight = self.tables.weight
        runs: dict[str, Run] = {
            "torch aminmax": lambda: [torch.aminmax(view) for view in self.views],
            "torch sum": lambda: weight.sum(),
            "numba": lambda: self.kernels.scan_absmax(self.tables),
        }
        medians = interleaved(runs, 5)
        report("scan", medians, "torch aminmax")
        gigabytes = weight.numel() * 4e-3
        speeds = "  ".join(f"{name} {gigabytes / median:.1f} GB/s" for name, median in medians.items())
        print(f"{'':28} {speeds}", flush=True)


class PlainUpdate:
    """Sparse EmbeddingBags of plain torch, one per table, and their optimizers."""

    def __init__(self, work: Workload) -> None:
        self._work = work
        self._parameters = [torch.nn.Parameter(view) for view in work.views]
        self._optimizer = torch.optim.SGD(self._parameters, lr=LR)
        self._offsets = torch.arange(work.batch)
        self._grads = [work.grad[:, 1 + t].contiguous() for t in range(len(work.views))]
        self._outs: list[Tensor] = []

    def forward(self) -> None:
        ids = self._work.longs[self._work.next()]
        bag = torch.nn.functional.embedding_bag
        self._outs = [
            bag(ids[t], weight, self._offsets, mode="sum", sparse=True) for t, weight in enumerate(self._parameters)
        ]

    def sgd(self) -> None:
        torch.autograd.backward(self._outs, self._grads)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def rowwise_adagrad(self) -> None:
        torch.autograd.backward(self._outs, self._grads)
        for t, weight in enumerate(self._parameters):
            assert weight.grad is not None
            grad = weight.grad.coalesce()
            rows, values = grad.indices()[0], grad.values()
            sums = self._work.sums[self._work.tables.row_offset[t] :].index_add_(0, rows, values.square().mean(1))
            weight.data.index_add_(0, rows, values / (sums[rows].sqrt() + 1e-8)[:, None], alpha=-LR)
            weight.grad = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--only", choices=["gather", "update", "interaction", "scan"])
    options = parser.parse_args()
    set_threads(options.threads)
    torch.manual_seed(0)
    print(f"dqrm-cpu {dqrm_cpu.__version__}, torch {torch.__version__}, {options.threads} threads")
    terabyte = [int(options.gigabytes * 1e9 / (26 * 64 * 4))] * 26
    for title, rows, dim, batch in (
        ("Kaggle, D 16, B 128", KAGGLE_ROWS, 16, 128),
        ("Kaggle, D 16, B 2048", KAGGLE_ROWS, 16, 2048),
        ("Terabyte-like, D 64, B 2048", terabyte, 64, 2048),
    ):
        print(title)
        work = Workload(rows, dim, batch)
        if options.only in (None, "gather"):
            work.gather(options.rounds)
        if options.only in (None, "update"):
            work.update(options.rounds)
        if options.only in (None, "interaction"):
            work.interaction(options.rounds)
        if options.only in (None, "scan") and batch > 128:
            work.scan()


if __name__ == "__main__":
    main()
