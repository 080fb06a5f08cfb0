"""Compiles the kernels of a training step, in a process of its own, while the run that will need them starts.

The compiler holds a lock: threads would compile one after another. A run compiles what it comes to first, this process
what a step needs last, and each loads from their cache what the other has compiled. What a kernel takes are addresses
and numbers, whose types are the same for every model: a step of two samples brings all of them along.
"""

import contextlib
import os
import sys
import threading

from .collector import without_collector

with without_collector():
    import torch

    from .select import select_kernels
    from .types import UNQUANTIZED, Bags, RowCopy, Tables, UpdateRule
    from .validate import runs_are_finite, validate_bags, validate_rows

_BATCH, _TABLES, _DIM, _BITS = 2, 2, 16, 4


def compile_step() -> None:
    """Compiles what a step of a single rank with one id a table needs, what it needs last first."""
    kernels = select_kernels("numba", torch.device("cpu"))
    tables = Tables(torch.zeros(_TABLES, _DIM), torch.arange(_TABLES + 1))
    bags = Bags(torch.zeros(_TABLES, _BATCH, dtype=torch.int32), None)
    features, of_pairs = torch.zeros(_BATCH, _TABLES + 1, _DIM), torch.zeros(_BATCH, _DIM + 3)
    logits, scale = torch.zeros(_BATCH), torch.ones(_TABLES)
    kernels.update_(tables, bags, features, UpdateRule(0.0, 0.0), None)
    kernels.interaction_backward(features, of_pairs, torch.empty_like(features))
    kernels.rectify_backward_(features[:, 0].contiguous(), None, torch.empty(_DIM), None)
    kernels.click_loss(logits, torch.zeros(_BATCH), 1.0, torch.empty(()), torch.empty(_BATCH))
    kernels.interaction_forward(features, of_pairs)
    kernels.gather_quantize_pool(tables, bags, scale, _BITS, features)
    kernels.make_tracker(tables)
    kernels.row_copier([RowCopy(torch.zeros(1, _DIM), torch.empty(1, _DIM), UNQUANTIZED)])()
    kernels.uniform_scales(torch.ones(_TABLES), _BITS, scale)
    kernels.init_uniform_(tables, 1)
    validate_bags(tables, bags)
    validate_rows(features[:, 0].contiguous(), logits)
    runs_are_finite(scale, torch.tensor([0]), torch.tensor([1]))


def _end_with_parent() -> None:
    """Ends this process once the other end of its standard input is closed, as it is where the parent was killed."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(0)


if __name__ == "__main__" and os.environ.get("NUMBA_CACHE_DIR") == sys.argv[1]:  # else nobody would load it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    compile_step()
