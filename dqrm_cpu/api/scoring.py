"""`dqrm_cpu.evaluate` and `dqrm_cpu.predict`: metrics of a trained model, and its probabilities."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.api.arguments import PathLike, given_settings, path_of, require_choice, warn, whole_number
from dqrm_cpu.api.evaluation import Evaluation, EvaluationOrder
from dqrm_cpu.api.evaluation import evaluate as carry_out_evaluation
from dqrm_cpu.api.file_evaluation import FileEvaluationOrder, evaluate_file, open_rows, require_options_of_files
from dqrm_cpu.api.frames import are_paths, files_of
from dqrm_cpu.api.progress import CallProgress
from dqrm_cpu.api.ranks import opened_transport, threads_of_torch
from dqrm_cpu.base.cgroup import default_threads, usable_cores
from dqrm_cpu.base.precision import FP32, PRODUCTS
from dqrm_cpu.data.predictions.writers import PROBABILITY, ArrayWriter
from dqrm_cpu.data.store.manifest import PART_NAMES
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.metrics.calibration import FITS
from dqrm_cpu.predict.prediction import ALL_PARTS, PredictionSummary, PredictRequest
from dqrm_cpu.predict.prediction import predict as carry_out_prediction

Columns = dict[str, NDArray[Any]]
"""Arrays of one length by the names of their columns, as pandas.DataFrame and polars.DataFrame take them."""


def evaluate(
    run: PathLike,
    data: PathLike | None = None,
    *,
    part: str = "test",
    checkpoint: PathLike = "best",
    group_by: str | None = None,
    slice_by: str | None = None,
    slices: int = 10,
    calibrate: str | None = None,
    **settings: Any,
) -> Evaluation:
    """Computes the metrics of a trained model on a part of its data set, or of another with the same vocabulary.

    :param run: the folder of a run, a Run, or a packed file: scored as it was exported, calibrated or not
    :param data: the folder of a prepared data set; None: that of the run
    :param part: train, validation, test or all
    :param checkpoint: of a run: best, last, or the folder of one
    :param group_by: a category: the AUC within its values too (GAUC)
    :param slice_by: a category: all metrics for each of its most frequent values too
    :param slices: how many of those values
    :param calibrate: of a run: platt or isotonic: corrects the probabilities by its validation rows
    :param settings: other settings than those of the run, by their dotted keys or as sections
    """
    path, count = path_of(run, "run"), whole_number(slices, "slices", 1)
    if path.is_file():
        require_options_of_files(settings, str(checkpoint), calibrate)
        folder = None if data is None else path_of(data, "data")
        file = FileEvaluationOrder(path, folder, part, group_by, slice_by, count)
        return evaluate_file(file, open_rows(file, warn))
    order = EvaluationOrder(
        path,
        given_settings(data, None, None, settings),
        part,
        str(checkpoint),
        group_by,
        slice_by,
        count,
        calibrate,
    )
    config = order.load(warn)
    with opened_transport(config) as transport:
        return carry_out_evaluation(order, config, transport, warn)


def predict(
    model: PathLike,
    inputs: Any,
    out: PathLike | None = None,
    *,
    keys: Sequence[str] | None = None,
    data: PathLike | None = None,
    checkpoint: PathLike = "best",
    part: str = ALL_PARTS,
    calibrate: str | None = None,
    products: str = FP32,
    bad_rows: str = "stop",
    max_bad_rows: int = 1000,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> NDArray[np.float32] | Columns | PredictionSummary:
    """Scores raw or prepared rows with a trained model.

    Without `out` the probabilities are returned in the order of the rows: float32[N], or with `keys` a dict of arrays,
    those of the keys and `probability`. Of rows in memory a bad row that is skipped has NaN.

    :param model: the folder of a run, a Run, or a packed file
    :param inputs: a DataFrame of pandas or polars, a pyarrow.Table, a dict of columns, a list of dicts; the path of a
        raw file, several of them, or the folder of a prepared data set
    :param out: a file for the predictions, .csv or .parquet: a summary is returned; None: they are returned themselves
    :param keys: columns that name a row, kept beside its probability; None: with `out` those of the schema, else none
    :param data: a data set with the model's vocabulary; None: that of the run
    :param checkpoint: of a run: best, last, or the folder of one
    :param part: of a prepared data set: train, validation, test or all
    :param calibrate: platt or isotonic: corrects the probabilities by the run's validation rows
    :param products: of an exported file: fp32, the logits of its run; int8: whole numbers, quicker and a little rounded
    :param bad_rows: stop, skip: leave out rows that cannot be read, or quarantine: keep them in a file beside `out`
    :param max_bad_rows: stop after so many
    :param overwrite: replace `out` where it exists
    :param workers: threads; None: one for each core that this process may use
    :param progress: show how far it is
    """
    require_choice(part, "part", (*PART_NAMES, ALL_PARTS))
    require_choice(products, "products", PRODUCTS)
    require_choice(bad_rows, "bad_rows", ("stop", "skip", "quarantine"))
    if calibrate is not None:
        require_choice(calibrate, "calibrate", tuple(FITS))
    if isinstance(keys, str):
        raise ConfigError(f"keys is {keys!r}; give a list of names, such as [{keys!r}]")
    is_memory = not are_paths(inputs)
    if out is None and bad_rows == "quarantine":
        raise ConfigError("bad_rows='quarantine' keeps bad rows in a file beside out; give out")
    if out is None and not is_memory and bad_rows == "skip" and not keys:
        raise ConfigError(
            "bad_rows='skip' leaves rows out, so that an array would not say which row a probability is of; give keys, "
            "or out"
        )
    threads = default_threads(usable_cores(), os.environ) if workers is None else whole_number(workers, "workers", 1)
    call = CallProgress(progress)
    shown = call.of_rows()
    with contextlib.ExitStack() as stack:
        stack.callback(shown.close)
        files = stack.enter_context(files_of(inputs))
        request = PredictRequest(
            model=path_of(model, "model"),
            inputs=files,
            out=ArrayWriter() if out is None else path_of(out, "out"),
            keys=tuple(keys or ()) if keys is not None or out is None else None,
            data=None if data is None else path_of(data, "data"),
            checkpoint=str(checkpoint),
            part=part,
            calibrate=calibrate,
            products=products,
            bad_rows=bad_rows,
            max_bad_rows=whole_number(max_bad_rows, "max_bad_rows", 0),
            overwrite=overwrite,
            workers=threads,
            stdin=getattr(sys.stdin, "buffer", None) or io.BytesIO(),
            advance=shown.advance,
            note=_note(shown.note),
            show_work=call.show_work,
        )
        stack.enter_context(threads_of_torch(threads))
        summary = carry_out_prediction(request)
    if not isinstance(request.out, ArrayWriter):
        return summary
    columns = request.out.columns()
    if keys:
        return columns
    return _with_gaps(columns[PROBABILITY], summary) if is_memory else columns[PROBABILITY]


def _with_gaps(probabilities: NDArray[np.float32], summary: PredictionSummary) -> NDArray[np.float32]:
    """Returns float32[N] with NaN for the rows that were skipped."""
    skipped = [number - 1 for numbers in summary.skipped.numbers.values() for number in numbers]
    if not skipped:
        return probabilities
    whole = np.full(probabilities.size + len(skipped), np.nan, np.float32)
    whole[np.delete(np.arange(whole.size), skipped)] = probabilities
    return whole


def _note(show: Callable[[str], None]) -> Callable[[str], None]:
    """Returns what takes notes: warnings are given as Python gives them, the others shown."""
    mark = "warning: "
    return lambda text: warn(text.removeprefix(mark)) if text.startswith(mark) else show(text)
