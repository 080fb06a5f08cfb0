"""Training as the command line and Python ask for it: settings, the folder, a search before, and the run itself."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TextIO

from dqrm_cpu.api.ranks import gathered, gathered_environment, with_tables_placed
from dqrm_cpu.api.settings import GivenSettings, Warn, config_to_train, has_settings
from dqrm_cpu.base.kernel_cache import compiling_note
from dqrm_cpu.comm.coordination import require_one_folder
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.config.load import LoadedConfig
from dqrm_cpu.config.schema import AUTO_COUNT
from dqrm_cpu.data.store.manifest import holds_manifest
from dqrm_cpu.data.store.run_data import SYNTHETIC
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.train.ensemble import require_kind_of_run, train_ensemble
from dqrm_cpu.train.progress import Progress, open_progress
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_place import holds_run
from dqrm_cpu.train.state import Interrupted, Result
from dqrm_cpu.train.tuning.candidates import most_demanding, searched_settings
from dqrm_cpu.train.tuning.min_count import settle_min_count
from dqrm_cpu.train.tuning.record import COUNT_FILE, SearchRecord, read_record, record_path
from dqrm_cpu.train.tuning.search import TuneRequest, tune


@dataclass(frozen=True)
class TrainingOrder:
    """The arguments of a training run, from the command line or from Python."""

    given: GivenSettings
    stream: TextIO  # where progress goes; only rank 0 writes
    run_dir: Path | None = None  # None: a new one below runs/
    resume: bool = False
    tune: int | None = None
    show_search: Callable[[SearchRecord, Path], object] = lambda record, file: None  # told on rank 0 what one chose
    open_progress: Callable[[int, int, TextIO], Progress] = open_progress

    def load(self, warn: Warn) -> LoadedConfig:
        """Loads the settings to train with."""
        if self.run_dir is not None:
            file = next((path for path in (self.run_dir, *self.run_dir.parents) if path.is_file()), None)
            if file == self.run_dir:
                raise ConfigError(f"--run-dir {file} is a file; give a folder, in which the run is recorded")
            if file is not None:
                raise ConfigError(f"--run-dir {self.run_dir} cannot be made: {file} is a file; give another folder")
        loaded = config_to_train(self._given_to_train(), self.run_dir, self.resume, warn)
        if self.tune is not None and loaded.config.init_from:
            raise ConfigError(
                "--tune tries settings with fresh weights, --init-from begins with trained ones: leave out one"
            )
        return loaded

    def _given_to_train(self) -> GivenSettings:
        """Returns the settings; a search begins from the recipe for data of one's own, unless others are named."""
        given = self.given
        begins = not (self.resume and self.run_dir is not None and has_settings(self.run_dir))
        if self.tune is None or given.names_others or given.texts.get("init_from") or not begins:
            return given
        return replace(given, preset="production")

    def most_demanding(self, loaded: LoadedConfig) -> Config:
        """Returns the configuration whose memory must be there: with a search, that of its largest candidate."""
        return loaded.config if self.tune is None else most_demanding(loaded.config, searched_settings(*loaded))

    def carry_out(self, loaded: LoadedConfig, transport: Transport) -> Result | Interrupted:
        """Trains on this rank's share of the work; every rank calls it."""
        loaded = loaded._replace(config=with_tables_placed(loaded.config, transport))
        run_dir = self._folder(loaded.config, transport)
        require_kind_of_run(run_dir, loaded.config.ensemble)
        environment = gathered_environment(transport)
        source = loaded.config.data.source
        if transport.rank == 0 and (source == SYNTHETIC or holds_manifest(Path(source))):  # else an error comes next
            self._say(_headline(loaded.config, transport, run_dir))
            if note := compiling_note("numba", "step"):
                self._say(note)
        asked = frozenset(self.given.texts)
        request = RunRequest(run_dir, self.resume, environment, self.stream, asked, self.open_progress)
        _require_no_search(run_dir, loaded.config, self.tune)
        counted = settle_min_count(loaded.config, loaded.given, request, transport)
        if isinstance(counted, Interrupted):
            return counted
        if counted.record is not None and transport.rank == 0:
            self.show_search(counted.record, record_path(run_dir, COUNT_FILE))
        if self.tune is None:
            return _train(counted.config, request, transport)
        tuned = tune(counted.config, request, TuneRequest(self.tune, loaded.given), transport)
        if isinstance(tuned, Interrupted):
            return tuned
        if transport.rank == 0:
            self.show_search(tuned.record, record_path(run_dir))
        return _train(tuned.config, request, transport)

    def _folder(self, config: Config, transport: Transport) -> Path:
        """Returns one folder for all ranks: the given one, or a new one that rank 0 names."""
        default = Path("runs") / f"{config.preset}-{datetime.now():%Y%m%d-%H%M%S}"
        chosen = Path(str(transport.broadcast_json(str(self.run_dir or default))))
        somebody_chose = any(gathered(transport, self.run_dir is not None))
        mine = self.run_dir or (None if somebody_chose else chosen)
        places = gathered(transport, [str(mine.absolute()), str(mine.resolve())] if mine else ["none", "none"])
        require_one_folder("--run-dir", *zip(*places, strict=True))
        return chosen

    def _say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


def _train(config: Config, request: RunRequest, transport: Transport) -> Result | Interrupted:
    how = train if config.ensemble == 1 else train_ensemble
    return how(config, request, transport)


def how_to_resume(outcome: Interrupted) -> str:
    """Says where an interrupted run stands and how to go on with it."""
    if outcome.searching:
        return (
            f"stopped by {outcome.signal} while settings were tried out; the trials that ended are kept. Go on with "
            f"the same command, --run-dir {outcome.run_dir} and --resume auto"
        )
    of_member = f" of member {outcome.member}" if outcome.member else ""
    return (
        f"stopped by {outcome.signal} after step {outcome.step:,}{of_member}; everything is saved. Go on with:\n"
        f"  dqrm-cpu train --run-dir {outcome.run_dir} --resume auto"
    )


def _require_no_search(run_dir: Path, config: Config, tune: int | None) -> None:
    """Raises ConfigError where a search in the folder waits for its run, and this is not the command that goes on."""
    if holds_run(run_dir):
        return
    record = read_record(run_dir) if tune is None else None
    if record is not None:
        raise ConfigError(
            f"{run_dir} holds a search that training has not followed yet; give --tune {record.asked} and --resume "
            "auto to go on, or another --run-dir"
        )
    if config.data.min_count != AUTO_COUNT and record_path(run_dir, COUNT_FILE).exists():
        raise ConfigError(
            f"{run_dir} holds a search for data.min_count that training has not followed yet; give the command that "
            "began it, with --resume auto, to go on, or another --run-dir"
        )


def _headline(config: Config, transport: Transport, run_dir: Path) -> str:
    quant, model = config.quant, config.model
    rows = sum(model.table_rows)
    kind = "FP32" if quant.method == "none" else f"{quant.method} INT{quant.embedding_bits}"
    ranks = f"{transport.size} ranks over {transport.name}" if transport.size > 1 else "1 process"
    simulated = f", {config.comm.simulated_ranks} simulated ranks" if config.comm.simulated_ranks > 1 else ""
    tables = f"{len(model.table_rows)} tables, {rows:,} rows x {model.dims_text}"
    models = f"{config.ensemble} models, " if config.ensemble > 1 else ""
    return f"{models}{kind} on {config.data.source} data; {tables}; {ranks}{simulated}; run folder {run_dir}"
