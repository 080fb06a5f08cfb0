"""Quantizes a finished FP32 run, writes it packed, and scores what the file holds: what PTQ keeps of a model."""

import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.data.source import open_data
from dqrm_cpu.export.model_files import write_model, write_rowwise
from dqrm_cpu.export.read import load_packed
from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.lab.reproduce.experiments.definition import Compression
from dqrm_cpu.lab.reproduce.outcome import RunOutcome
from dqrm_cpu.lab.reproduce.pareto.scores import Scores
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.session import build_session, load_kernels, load_weights

_BITS = 4
_LAYOUT = "dense"


def compress_job(
    config: Config,
    compression: Compression,
    trained: Path,
    folder: Path,
    transport: Transport,
    *,
    keeps_scores: bool = False,
) -> RunOutcome:
    """Quantizes the FP32 run in `trained`, which has its checkpoints; file and outcome go into `folder`."""
    start_s = time.perf_counter()
    full = RunOutcome.read(trained)
    assert full is not None, trained
    folder.mkdir(parents=True, exist_ok=True)
    config = _quantized(config, compression)
    device = torch.device(config.device)
    data = open_data(config)
    session = build_session(config, load_kernels(config, device), data, transport, device)
    file = folder / "packed.safetensors"

    def scored(which: str) -> Scores:
        """Scores validation and test rows by the model that is read back from the file."""
        load_weights(session, find_checkpoint(checkpoints_folder(trained), which))
        identity = str(data.identity or "")
        if compression is Compression.ROW_WISE:
            write_rowwise(file, config, session.model, identity)
        else:
            write_model(file, config, session.model, session.scales.for_evaluation(), _LAYOUT, identity)
        load_packed(file, session.model, config.quant)
        parts = session.loaders
        predictions = partial(session.evaluate.predictions, quantized=False)
        return Scores.of(predictions(parts.validation), predictions(parts.test))

    last = scored("last")
    # The chosen one is written last: it is the file that stays.
    chosen_is_last = full.best_step == full.steps
    best = last if chosen_is_last else scored("best")
    if keeps_scores:
        best.write(folder)
    num_bytes = file.stat().st_size
    outcome = replace(
        full,
        validation_best=best.validation.metrics(),
        test_best=best.test.metrics(),
        validation_last=last.validation.metrics(),
        test_last=last.test.metrics(),
        model_bytes=num_bytes,
        written_bytes=float(num_bytes) if keeps_scores else math.nan,
        wall_s=time.perf_counter() - start_s,
    )
    outcome.write(folder)
    return outcome


def _quantized(config: Config, compression: Compression) -> Config:
    """Returns the configuration that `ptq` scores; production leaves the MLPs in FP32 or INT8, here in FP32."""
    mlp_bits = _BITS if compression is Compression.PER_TABLE else UNQUANTIZED
    return replace(config, quant=replace(config.quant, method="ptq", embedding_bits=_BITS, mlp_bits=mlp_bits))
