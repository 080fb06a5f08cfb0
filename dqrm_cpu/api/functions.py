"""`dqrm_cpu.prepare`, `suggest_schema`, `settings` and `train`: from raw rows to a trained model."""

import contextlib
import io
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import tomli_w

from dqrm_cpu.api.arguments import PathLike, given_settings, path_of, require_choice, warn, whole_number
from dqrm_cpu.api.frames import are_paths, files_of
from dqrm_cpu.api.prepare_order import PrepareOrder
from dqrm_cpu.api.preparing import prepare_request
from dqrm_cpu.api.progress import CallProgress
from dqrm_cpu.api.ranks import opened_transport
from dqrm_cpu.api.run import Run
from dqrm_cpu.api.training import TrainingOrder
from dqrm_cpu.base.files import replace_file
from dqrm_cpu.base.kernel_cache import compiling_ahead
from dqrm_cpu.comm.transports.launch import detect_launch
from dqrm_cpu.config import Config
from dqrm_cpu.data.prepare.preparation import prepare as carry_out_preparation
from dqrm_cpu.data.prepare.sample import read_sample
from dqrm_cpu.data.prepare.sources.find import find_sources
from dqrm_cpu.data.prepare.sources.raw_file import examine
from dqrm_cpu.data.prepare.suggest import suggest_schema as written_schema
from dqrm_cpu.data.store.manifest import Manifest
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.train.state import Interrupted


@dataclass(frozen=True)
class PreparedData(os.PathLike[str]):
    """A prepared data set in its folder. It is a path, to be given wherever one of a data set is."""

    path: Path
    manifest: Manifest

    def __fspath__(self) -> str:
        return str(self.path)

    def num_rows(self, part: str) -> int:
        """Returns the number of rows of a part.

        :param part: train, validation or test
        """
        return self.manifest.num_rows(part)


def prepare(
    sources: Any,
    out: PathLike,
    *,
    schema: PathLike | Mapping[str, Any] | None = None,
    format: str | None = None,  # noqa: A002  # as the option is called
    split: str | None = None,
    protocol: str | None = None,
    seed: int = 1,
    vocabulary: PathLike = "exact",
    grow_from: PathLike | None = None,
    hash_rows: int | None = None,
    min_count: int | None = None,
    evict_unseen: int = 0,
    evict_zero: PathLike | None = None,
    max_ind_range: int = 0,
    bad_rows: str = "stop",
    max_bad_rows: int = 1000,
    shard_rows: int = 262_144,
    workers: int | None = None,
    memory_budget: int | None = None,
    force: bool = False,
    restart: bool = False,
    progress: bool = False,
) -> PreparedData:
    """Turns raw rows into a data set to train on; the same call goes on after an interruption.

    :param sources: a raw file, folder, pattern or URL, or several of them in their order; or rows in memory: a
        DataFrame of pandas or polars, a pyarrow.Table, a dict of columns, a list of dicts
    :param out: the folder that the data set goes to
    :param schema: a TOML file that says what the columns are, or the same as a dict
    :param format: instead of a schema: kaggle, terabyte or tsv
    :param split: what is held out: last-file, last-seventh or none; None: as the schema or format says
    :param protocol: whose split and count of categories: paper, x1 or x4; None: nobody's
    :param seed: of the shuffle
    :param vocabulary: exact, hash, or the folder of a data set whose vocabulary is taken
    :param grow_from: the data set of an earlier day, whose vocabulary gets rows for new categories
    :param hash_rows: rows of every table when hashing
    :param min_count: categories rarer than that share row 0; None: as the protocol says, else 1
    :param evict_unseen: with grow_from: categories that no row of so many days had leave; 0: none do
    :param evict_zero: with grow_from: categories whose rows are zero in this run or packed file leave
    :param max_ind_range: take hashes modulo this first; 0: as they are
    :param bad_rows: stop, skip, or quarantine: keep them in a file of the data set
    :param max_bad_rows: stop after so many
    :param shard_rows: rows of a shard, about
    :param workers: threads; None: every core that this process may use
    :param memory_budget: bytes of vocabularies; None: three quarters of what is free
    :param force: start even where memory or disk seem too small
    :param restart: forget what `out` holds of a former preparation
    :param progress: show how far it is
    """
    shown = CallProgress(progress).of_rows()
    with contextlib.ExitStack() as stack:
        stack.callback(shown.close)
        order = PrepareOrder(
            raw=stack.enter_context(files_of(sources)),
            out=path_of(out, "out"),
            format=format,
            schema=None if schema is None else stack.enter_context(_schema_file(schema)),
            split=split,
            protocol=protocol,
            seed=seed,
            vocabulary=str(path_of(vocabulary, "vocabulary")),
            grow_from=None if grow_from is None else path_of(grow_from, "grow_from"),
            hash_rows=hash_rows,
            min_count=min_count,
            evict_unseen=evict_unseen,
            evict_zero=None if evict_zero is None else path_of(evict_zero, "evict_zero"),
            max_ind_range=max_ind_range,
            bad_rows=bad_rows,
            max_bad_rows=max_bad_rows,
            shard_rows=shard_rows,
            workers=workers,
            memory_budget=memory_budget,
            force=bool(force),
            restart=bool(restart),
        )
        stdin = getattr(sys.stdin, "buffer", None) or io.BytesIO()
        request = prepare_request(order, stdin, shown.advance, shown.note)
        manifest = carry_out_preparation(request, order.restart)
    return PreparedData(order.out, manifest)


def suggest_schema(sources: Any, out: PathLike | None = None) -> str:
    """Guesses a schema from the first rows of a raw file or of rows in memory; returns TOML with reasons in comments.

    :param sources: as `prepare` takes them; the first file is looked at
    :param out: a file to write it to as well, for `prepare(schema=...)`; one that is there is an error
    """
    file = None if out is None else path_of(out, "out")
    if file is not None and file.exists():
        raise ConfigError(f"{file} is there already; give another name, or remove it")
    with files_of(sources) as names:
        source = find_sources(names)[0]
        text = written_schema(read_sample(examine(source)), source if are_paths(sources) else "rows in memory")
    if file is not None:
        replace_file(file, [text.encode()], ConfigError)
    return text


def settings(
    data: PathLike | Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    config: Config | PathLike | None = None,
    **settings: Any,
) -> Config:
    """Returns the settings that `train` would take, as a typed object: sizes follow the data set.

    :param data: the folder of a prepared data set; None: generated clicks
    :param preset: demo, production, kaggle, terabyte or mlperf-dcnv2: where settings start from; None: demo
    :param config: a Config, or a TOML file over the preset
    :param settings: over both, by their dotted keys, as in `**{"train.epochs": 3}`, or as sections:
        `quant={"method": "none"}`
    """
    return given_settings(data, preset, config, settings).load().config


def train(
    data: PathLike | Mapping[str, Any] | None = None,
    *,
    run_dir: PathLike | None = None,
    preset: str | None = None,
    config: Config | PathLike | None = None,
    init_from: PathLike | None = None,
    resume: bool = False,
    tune: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> Run:
    """Trains a model, or goes on with a run that was interrupted; returns the run.

    Ctrl-C saves the run and raises KeyboardInterrupt; `resume=True` goes on with it.

    :param data: the folder of a prepared data set; None: generated clicks
    :param run_dir: where the run is recorded; None: a new folder runs/PRESET-DATE-TIME
    :param preset: demo, production, kaggle, terabyte or mlperf-dcnv2: where settings start from; None: demo
    :param config: a Config, or a TOML file over the preset
    :param init_from: a run, or one of its checkpoints, whose weights and settings a new run begins with
    :param resume: go on where the run in run_dir stopped, start it if there is none
    :param tune: so many short trials first, to choose learning rate and the like, from preset production unless one is
        named; None: none
    :param progress: show how far it is
    :param settings: over all these, by their dotted keys, as in `**{"train.epochs": 3}`, or as sections:
        `quant={"method": "none"}`
    """
    require_choice(resume, "resume", (True, False))
    shown = CallProgress(progress)
    parent = {} if init_from is None else {"init_from": path_of(init_from, "init_from")}
    order = TrainingOrder(
        given_settings(data, preset, config, {**parent, **settings}),
        shown.stream,
        None if run_dir is None else path_of(run_dir, "run_dir"),
        resume,
        None if tune is None else whole_number(tune, "tune", 2),
        open_progress=shown.open,
    )
    loaded = order.load(warn)
    with (
        compiling_ahead(alone=detect_launch(os.environ).size == 1),
        opened_transport(order.most_demanding(loaded)) as transport,
    ):
        outcome = order.carry_out(loaded, transport)
    if isinstance(outcome, Interrupted):
        _stop(outcome)
    assert outcome.run_dir is not None
    return Run(outcome.run_dir)


def _stop(outcome: Interrupted) -> NoReturn:
    """Raises KeyboardInterrupt; another signal than Ctrl-C is sent again first, to whoever handled it before."""
    number = getattr(signal, outcome.signal, signal.SIGINT)
    if number != signal.SIGINT:
        signal.raise_signal(number)
    done = "while settings were tried out" if outcome.searching else f"after step {outcome.step:,}"
    raise KeyboardInterrupt(
        f"stopped by {outcome.signal} {done}; everything is saved: the same call goes on with "
        f"run_dir={str(outcome.run_dir)!r} and resume=True"
    )


@contextlib.contextmanager
def _schema_file(schema: PathLike | Mapping[str, Any]) -> Iterator[Path]:
    """Names the file of a schema; one that is a dict is written to one, which is there while entered."""
    if not isinstance(schema, Mapping):
        yield path_of(schema, "schema")
        return
    with tempfile.TemporaryDirectory(prefix="dqrm-cpu-") as folder:
        path = Path(folder) / "schema.toml"
        try:
            path.write_text(tomli_w.dumps(dict(schema)))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the schema holds what TOML cannot: {error}; give texts, numbers and lists") from None
        yield path
