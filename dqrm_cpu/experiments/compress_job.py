"""Quantizes a finished FP32 run, writes it packed, and scores what the file holds: what PTQ keeps of a model."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.data.source import open_data
from dqrm_cpu.experiments.experiment import Compression
from dqrm_cpu.experiments.outcome import Outcome
from dqrm_cpu.export.read import load_packed
from dqrm_cpu.export.rowwise import write_rowwise
from dqrm_cpu.export.write import write_model
from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.train.checkpoint import find_checkpoint
from dqrm_cpu.train.metrics import ClickMetrics
from dqrm_cpu.train.run_folder import checkpoints_folder
from dqrm_cpu.train.session import Session, build_session, load_kernels, load_weights

_BITS = 4
_LAYOUT = "dense"


def compress_job(
    config: Config, compression: Compression, trained: Path, folder: Path, transport: Transport
) -> Outcome:
    """`trained` is the FP32 run's folder, with its checkpoints; file and outcome go into `folder`."""
    start_s = time.perf_counter()
    full = Outcome.read(trained)
    assert full is not None, trained
    folder.mkdir(parents=True, exist_ok=True)
    config = _quantized(config, compression)
    device = torch.device(config.device)
    data = open_data(config)
    session, identity = build_session(config, load_kernels(config, device), data, transport, device), data.identity
    file, store = folder / "packed.safetensors", checkpoints_folder(trained)

    def scored(which: str) -> tuple[ClickMetrics, ClickMetrics]:
        return _scored(config, compression, session, find_checkpoint(store, which), file, str(identity or ""))

    last = scored("last")
    # The chosen one is written last: it is the file that stays.
    chosen_is_last = full.best_step == full.steps
    best = last if chosen_is_last else scored("best")
    found = replace(
        full,
        validation_best=best[0],
        test_best=best[1],
        validation_last=last[0],
        test_last=last[1],
        model_bytes=file.stat().st_size,
        wall_s=time.perf_counter() - start_s,
    )
    found.write(folder)
    return found


def _quantized(config: Config, compression: Compression) -> Config:
    """As `ptq` scores; production leaves the MLPs in FP32 or INT8, here in FP32."""
    mlp_bits = _BITS if compression is Compression.PER_TABLE else UNQUANTIZED
    return replace(config, quant=replace(config.quant, method="ptq", embedding_bits=_BITS, mlp_bits=mlp_bits))


def _scored(
    config: Config, compression: Compression, session: Session, checkpoint: Path, file: Path, identity: str
) -> tuple[ClickMetrics, ClickMetrics]:
    """Validation and test, of the model read back from the file."""
    load_weights(session, checkpoint)
    if compression is Compression.ROW_WISE:
        write_rowwise(file, config, session.model, identity)
    else:
        write_model(file, config, session.model, session.scales.for_evaluation(), _LAYOUT, identity)
    load_packed(file, session.model, config.quant)
    loaders = session.loaders
    return session.evaluate(loaders.validation, quantized=False), session.evaluate(loaders.test, quantized=False)
