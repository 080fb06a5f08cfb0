"""How the weights of one table spread while it is trained, and what the quantizer makes of them (figures 6 and 7)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.base.files import replace_file
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.data.source import open_data
from dqrm_cpu.errors import ConfigError, TrainingError
from dqrm_cpu.kernels.master_rows import row_values
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.session import Session, build_session, load_kernels, load_weights

_TABLE = 6  # the paper's choice, a table of middle size, counted from 0; the last one where there are fewer
_MOMENTS = (0.0, 0.4, 0.6, 1.0)  # shares of training: the paper looks before it, and after epochs 2, 3 and 5 of 5
_BINS = 81  # odd: zero gets a bin of its own
_FILE_NAME = "histograms.json"


@dataclass(frozen=True)
class Histogram:
    """Densities over bins of equal width between -limit and limit; `quantized` is empty in FP32."""

    epoch: int  # 0: before training
    limit: float
    weights: tuple[float, ...]
    quantized: tuple[float, ...]


def write_histograms(config: Config, folder: Path, epoch_steps: Sequence[int], transport: Transport) -> None:
    """Makes histograms of the checkpoints that the run at `folder` left at the ends of its epochs."""
    device = torch.device(config.device)
    session = build_session(config, load_kernels(config, device), open_data(config), transport, device)
    histograms = []
    for moment in _MOMENTS:
        epoch = round(moment * len(epoch_steps))
        if epoch > 0:
            load_weights(session, checkpoints_folder(folder) / f"step-{epoch_steps[epoch - 1]:09d}")
        histograms.append(_histogram(session, epoch))
    text = json.dumps([asdict(histogram) for histogram in histograms], allow_nan=False) + "\n"
    replace_file(folder / _FILE_NAME, [text.encode()], TrainingError)


def read_histograms(folder: Path) -> list[Histogram]:
    """Reads what `write_histograms` wrote."""
    path = folder / _FILE_NAME
    try:
        return decoded(read_json(path), list[Histogram])
    except (FileNotFoundError, UnreadableError) as error:
        raise ConfigError(f"{path} holds no histograms ({error}); remove {folder} to train it again") from error


def _histogram(session: Session, epoch: int) -> Histogram:
    groups, formula = session.model.groups, session.model.table_formula
    number = min(_TABLE, groups.num_tables - 1)
    weight = row_values(groups.weights[number])
    quantized: tuple[float, ...] = ()
    limit = float(weight.abs().max())
    if formula is not None:
        scale = session.scales.for_evaluation()[number].view(1, 1)
        quantized = _density(formula.values(weight, scale).numpy(), limit)
    return Histogram(epoch, limit, _density(weight.numpy(), limit), quantized)


def _density(values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]", limit: float) -> tuple[float, ...]:
    counts, _ = np.histogram(np.clip(values, -limit, limit), bins=_BINS, range=(-limit, limit), density=True)
    return tuple(map(float, counts))
