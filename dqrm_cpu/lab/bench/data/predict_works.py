"""Raw rows to a file of probabilities, in a process of its own: `predict`, and polars with a PyTorch model."""

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dqrm_cpu.data.store.schema import CRITEO

if TYPE_CHECKING:
    import torch

    from dqrm_cpu.lab.bench.step.torch_dlrm import TorchDlrm

RAW, DATA, RUN, EXPORTED = "train.txt", "ours_plain", "run", "model.safetensors"
"""The raw rows, the data set that was prepared from them, a run on it, and the file exported from that."""

_TORCH_BATCH = 2048
_LABEL = "label"


@dataclass
class Predicted:
    """The outcome of a prediction."""

    rows: int = 0
    sum_of_probabilities: float = 0.0
    steady_s: float = 0.0  # once everything is loaded, for all rows


def predict_work(model: str, source: str, out: str, threads: int) -> tuple[Callable[[], object], Predicted]:
    """Returns `dqrm-cpu predict MODEL RAW`, and what will hold its outcome.

    Steady is what lies between the first block of rows and the last, in proportion to all rows: those of as many blocks
    as there are threads are taken to be done when the first one is. Of fewer blocks it is the whole.
    """
    import torch

    from dqrm_cpu.data.prepare.request import Advance
    from dqrm_cpu.predict.prediction import PredictRequest, predict

    torch.set_num_threads(threads)
    folder, predicted = Path(source).parent, Predicted()
    reached: list[tuple[float, int]] = []

    def advance(progress: Advance) -> None:
        reached.append((time.perf_counter(), progress.rows))

    def work() -> None:
        began = time.perf_counter()
        path = Path(out).with_suffix(".csv")
        request = PredictRequest(
            folder / model, (source,), path, data=folder / DATA, workers=threads, overwrite=True, advance=advance
        )
        summary = predict(request)
        predicted.rows, predicted.sum_of_probabilities = summary.rows, summary.mean_probability * summary.rows
        (first_s, first), (last_s, last) = reached[0], reached[-1]
        left = last - threads * first
        predicted.steady_s = (last_s - first_s) * last / left if left > 0 else last_s - began

    return work, predicted


def polars_torch_work(source: str, out: str, threads: int) -> tuple[Callable[[], object], Predicted]:
    """Returns the same by polars and PyTorch, and what will hold its outcome: what people write without a toolkit.

    Steady is all but the loading of the model and the vocabulary.
    """
    import torch

    pl: Any = importlib.import_module("polars")
    torch.set_num_threads(threads)
    folder, predicted = Path(source).parent, Predicted()

    def work() -> None:
        model, vocabularies = _torch_model(folder / EXPORTED), _vocabularies(pl, folder / DATA)
        began = time.perf_counter()
        texts = dict.fromkeys(CRITEO.categorical, pl.String)
        schema = {_LABEL: pl.UInt8, **dict.fromkeys(CRITEO.dense, pl.Int32), **texts}
        frame = pl.read_csv(source, separator="\t", has_header=False, schema=schema, quote_char=None)
        dense = frame.select(_logarithm(pl, name) for name in CRITEO.dense).to_numpy()
        ids = [_ids(pl, frame, name, vocabularies[name]) for name in CRITEO.categorical]
        probabilities = _scored(model, torch.from_numpy(dense), torch.from_numpy(np.stack(ids)))
        pl.DataFrame({"probability": probabilities}).write_csv(Path(out).with_suffix(".csv"))
        predicted.steady_s = time.perf_counter() - began
        predicted.rows, predicted.sum_of_probabilities = len(probabilities), float(probabilities.sum(dtype=np.float64))

    return work, predicted


def _logarithm(pl: Any, name: str) -> Any:
    return pl.col(name).clip(0).fill_null(0).cast(pl.Float64).log1p().cast(pl.Float32)


def _vocabularies(pl: Any, data: Path) -> Mapping[str, Any]:
    from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import vocabulary_of
    from dqrm_cpu.data.store.manifest import read_manifest

    saved = vocabulary_of(data, read_manifest(data))
    return {
        name: pl.DataFrame({"key": keys.astype(np.uint32), "id": np.arange(1, keys.size + 1)})
        for name, keys in zip(CRITEO.categorical, saved.keys, strict=True)
    }


def _ids(pl: Any, frame: Any, name: str, vocabulary: Any) -> Any:
    """Looks the hashes of a column up, int64[n]; 0 where one is missing or unknown."""
    keys = frame.select(key=pl.col(name).str.to_integer(base=16, dtype=pl.UInt32))
    found = keys.join(vocabulary, on="key", how="left", maintain_order="left")
    return found["id"].fill_null(0).to_numpy()


def _torch_model(path: Path) -> "TorchDlrm":
    """Builds PyTorch's modules with what an exported file holds, in FP32."""
    import torch

    from dqrm_cpu.export.packed_model import read_packed
    from dqrm_cpu.kernels.types import Tables
    from dqrm_cpu.lab.bench.scoring.score_benchmark import fill_tables, torch_model
    from dqrm_cpu.lab.bench.step.torch_dlrm import EmbeddingBags, flat_interaction
    from dqrm_cpu.serving.mapped_file import MappedFile

    file, config = MappedFile(path), read_packed(path).config
    rows = torch.tensor([0, *config.model.table_rows]).cumsum(0)
    tables = Tables(torch.empty(int(rows[-1]), config.model.embedding_dim), rows)
    fill_tables(file, tables)
    interact = flat_interaction(1 + len(config.model.table_rows))
    return torch_model(file, config, EmbeddingBags(tables, _TORCH_BATCH), interact)


def _scored(model: "TorchDlrm", dense: "torch.Tensor", ids: "torch.Tensor") -> Any:
    """Returns the probabilities f32[n] of dense f32[n, D] and ids int64[T, n]."""
    import torch

    from dqrm_cpu.data.batch import Batch
    from dqrm_cpu.lab.bench.harness.batch_pool import Work

    scored = []
    with torch.inference_mode():
        for first in range(0, len(dense), _TORCH_BATCH):
            few = slice(first, first + _TORCH_BATCH)
            some, longs = dense[few].contiguous(), ids[:, few].contiguous()
            scored.append(torch.sigmoid(model(Work(Batch(some, longs, None, torch.zeros(len(some))), longs))))
    return torch.cat(scored).numpy()
