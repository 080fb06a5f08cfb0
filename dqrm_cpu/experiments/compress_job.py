"""Quantizes a finished FP32 run and scores it: what post-training quantization keeps of a model."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.data.source import open_data
from dqrm_cpu.experiments.experiment import Compression
from dqrm_cpu.experiments.outcome import Outcome
from dqrm_cpu.experiments.row_wise import quantize_rows_, row_wise_bytes
from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.model.size import model_bytes
from dqrm_cpu.train.checkpoint import find_checkpoint
from dqrm_cpu.train.metrics import ClickMetrics
from dqrm_cpu.train.run_folder import checkpoints_folder
from dqrm_cpu.train.session import Session, build_session, load_kernels, load_weights

_BITS = 4


def compress_job(
    config: Config, compression: Compression, trained: Path, folder: Path, transport: Transport
) -> Outcome:
    """`trained` is the FP32 run's folder, with its checkpoints; the outcome goes into `folder`."""
    start_s = time.perf_counter()
    full = Outcome.read(trained)
    assert full is not None, trained
    session, apply, num_bytes = _compressing(config, compression, transport)
    store = checkpoints_folder(trained)
    best = _scored(session, apply, find_checkpoint(store, "best"))
    last = best if full.best_step == full.steps else _scored(session, apply, find_checkpoint(store, "last"))
    found = replace(
        full,
        validation_best=best[0],
        test_best=best[1],
        validation_last=last[0],
        test_last=last[1],
        model_bytes=num_bytes,
        wall_s=time.perf_counter() - start_s,
    )
    folder.mkdir(parents=True, exist_ok=True)
    found.write(folder)
    return found


def _compressing(
    config: Config, compression: Compression, transport: Transport
) -> tuple[Session, Callable[[Session], None], int]:
    """The session that scores, what is done to it after weights were loaded, and the bytes of the packed model."""
    device = torch.device(config.device)
    quant = replace(config.quant, embedding_bits=_BITS)
    if compression is Compression.PER_TABLE:
        config = replace(config, quant=replace(quant, method="ptq", mlp_bits=_BITS))
        num_bytes = model_bytes(config).packed
    else:
        config = replace(config, quant=replace(quant, method="none", mlp_bits=UNQUANTIZED))
        rows, dim = sum(config.model.table_rows), config.model.embedding_dim
        num_bytes = model_bytes(config).fp32 - rows * dim * 4 + row_wise_bytes(rows, dim, _BITS)
    session = build_session(config, load_kernels(config, device), open_data(config), transport, device)
    return session, _by_row if compression is Compression.ROW_WISE else _nothing, num_bytes


def _scored(session: Session, apply: Callable[[Session], None], checkpoint: Path) -> tuple[ClickMetrics, ClickMetrics]:
    """Validation and test."""
    load_weights(session, checkpoint)
    apply(session)
    return session.evaluate(session.loaders.validation), session.evaluate(session.loaders.test)


def _by_row(session: Session) -> None:
    quantize_rows_(session.model.tables.weight, _BITS)


def _nothing(session: Session) -> None:
    """One scale a table is what the method itself scores with."""
