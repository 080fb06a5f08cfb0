"""FBGEMM's table-batched embeddings on a CPU, which fuse the backward with the update (what TorchRec trains with)."""

import importlib
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from dqrm_cpu.bench.arena import Arenas
from dqrm_cpu.bench.cases import Case
from dqrm_cpu.bench.contestant import AbsentError
from dqrm_cpu.bench.pool import Work
from dqrm_cpu.bench.torch_dlrm import TorchDlrm
from dqrm_cpu.bench.torch_step import Recipe, backward_of, make_dlrm
from dqrm_cpu.kernels.types import Tables

PACKAGE = "fbgemm-gpu-cpu"
_TRAINING = "fbgemm_gpu.split_table_batched_embeddings_ops_training"


class TableBatchedBags:
    """All tables behind one operator, EXACT_SGD: `backward` of what it returns has changed the tables already."""

    def __init__(self, tables: Tables, batch_size: int, lr: float) -> None:
        training = _load()
        place = (training.EmbeddingLocation.HOST, training.ComputeDevice.CPU)
        self._embeddings: Any = training.SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, tables.dim, *place) for rows in tables.row_offset.diff().tolist()],
            optimizer=importlib.import_module("fbgemm_gpu.split_embedding_configs").EmbOptimType.EXACT_SGD,
            learning_rate=lr,
            bounds_check_mode=training.BoundsCheckMode.NONE,
            preallocated_host_buffers={"weights": tables.weight.view(-1)},
        )
        self._offsets = torch.arange(tables.num_tables * batch_size + 1)

    def __call__(self, work: Work) -> Sequence[Tensor]:
        """One f32[B, T * D]."""
        ids = work.long_ids.view(-1)
        return [self._embeddings(ids, self._offsets[: ids.numel() + 1])]


class FbgemmStep:
    """FBGEMM's embeddings, everything else plain PyTorch with the faster interaction."""

    def __init__(self, name: str, about: str, case: Case, arenas: Arenas) -> None:
        self.name, self.about = name, about
        self._case, self._arenas = case, arenas
        self._model: TorchDlrm | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def setup(self) -> None:
        require_fbgemm()
        lr = self._case.config.train.learning_rate
        bags = TableBatchedBags(self._arenas.shared(), self._case.batch_size, lr)
        self._model = make_dlrm(self._case, bags, Recipe())
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=lr)

    def step(self, work: Work) -> Tensor:
        """The loss of the batch before the update."""
        assert self._model is not None
        assert self._optimizer is not None
        loss = backward_of(self._model, work, autocast=False)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def teardown(self) -> None:
        self._model = self._optimizer = None


def require_fbgemm() -> None:
    """Raises AbsentError unless FBGEMM loads beside this torch."""
    _load()


def _load() -> Any:
    try:
        metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise AbsentError(f"{PACKAGE} is not installed; pip install 'dqrm-cpu[bench]'") from None
    try:
        with warnings.catch_warnings():
            # It warns of optional parts that its CPU build leaves out.
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(_TRAINING)
    # A build for another torch fails in its own ways while it registers operators.
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AbsentError(
            f"{PACKAGE} {metadata.version(PACKAGE)} does not load beside torch {torch.__version__}: {reason}"
        ) from error
