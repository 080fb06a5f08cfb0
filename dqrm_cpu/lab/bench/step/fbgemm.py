"""FBGEMM's table-batched embeddings on a CPU, which fuse the backward with the update (what TorchRec trains with)."""

import importlib
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.lab.bench.harness.batch_pool import Work
from dqrm_cpu.lab.bench.harness.contestant import AbsentError
from dqrm_cpu.lab.bench.step.torch_dlrm import TorchDlrm
from dqrm_cpu.lab.bench.step.torch_step import TorchStep, make_dlrm

PACKAGE = "fbgemm-gpu-cpu"
_TRAINING = "fbgemm_gpu.split_table_batched_embeddings_ops_training"


class TableBatchedBags:
    """Pooled rows of all tables by one operator, EXACT_SGD: `backward` of what it returns changes the tables."""

    def __init__(self, tables: Tables, batch_size: int, lr: float) -> None:
        training = load_fbgemm()
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
        """Returns one f32[B, T * D]."""
        ids = work.long_ids.view(-1)
        return [self._embeddings(ids, self._offsets[: ids.numel() + 1])]


class FbgemmStep(TorchStep):
    """FBGEMM's embeddings, which train their tables themselves; everything else is plain PyTorch."""

    def _make_model(self) -> tuple[TorchDlrm, list[Tensor]]:
        lr = self._case.config.train.learning_rate
        bags = TableBatchedBags(self._shared.untracked(), self._case.batch_size, lr)
        return make_dlrm(self._case, bags, self._recipe), []


def load_fbgemm(module: str = _TRAINING) -> Any:
    """Imports a module of FBGEMM; raises AbsentError unless it loads beside this torch."""
    try:
        metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise AbsentError(f"{PACKAGE} is not installed; pip install 'dqrm-cpu[bench]'") from None
    try:
        with warnings.catch_warnings():
            # It warns of optional parts that its CPU build leaves out.
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(module)
    # A build for another torch fails in its own ways while it registers operators.
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AbsentError(
            f"{PACKAGE} {metadata.version(PACKAGE)} does not load beside torch {torch.__version__}: {reason}"
        ) from error
