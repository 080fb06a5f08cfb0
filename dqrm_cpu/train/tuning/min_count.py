"""The choice of data.min_count before training: the largest count that costs next to nothing in short trials.

A trial is the run in miniature. It trains one pass over the first rows, and an id has a row if it comes so often among
*these*: what an id is worth is a matter of how often training meets it. In a longer run rare ids are a smaller part of
the traffic, so that a count which costs nothing in miniature costs less there.
"""

from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.signals import StopRequest
from dqrm_cpu.comm.coordination import gather_texts, on_first_rank_at_length
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.config.schema import AUTO_COUNT
from dqrm_cpu.data.common_ids import common, id_counts, rows_of, with_common_ids
from dqrm_cpu.data.prepare.recount import counted_folder, recount, why_fixed
from dqrm_cpu.data.source import DataSet
from dqrm_cpu.data.store.manifest import Manifest, holds_manifest, read_manifest
from dqrm_cpu.data.store.run_data import SYNTHETIC, follow_data
from dqrm_cpu.errors import ConfigError, TrainingError, unanimous
from dqrm_cpu.model.size import model_bytes
from dqrm_cpu.train.parent import read_parent
from dqrm_cpu.train.run import RunRequest, open_parts
from dqrm_cpu.train.state import Interrupted
from dqrm_cpu.train.tuning.candidates import Values
from dqrm_cpu.train.tuning.halving import Round
from dqrm_cpu.train.tuning.record import COUNT_FILE, MIN_COUNT, Kept, SearchRecord, new_record
from dqrm_cpu.train.tuning.search import LONGEST_STEPS, Search, TrialSetup, steps_of_run

COUNTS = (1, 2, 3, 5, 10, 20, 50, 100)
"""What is tried, but for counts that take no row more than the one before."""

WITHIN = 0.001
"""So much of validation AUC may the rows cost that a count takes away."""

_OPTION = "--data.min-count auto"


@dataclass(frozen=True)
class Counted:
    """The outcome: the configuration to train, and the search that chose its count, where there was one."""

    config: Config
    record: SearchRecord | None = None


def settle_min_count(
    config: Config, given: Set[str], request: RunRequest, transport: Transport
) -> Counted | Interrupted:
    """Chooses data.min_count where that is left to it, and has the data set of that count made; every rank calls it."""
    record = None
    if config.data.min_count == AUTO_COUNT:
        known = _known_count(config, request, transport)
        if known is None:
            found = _search(config, request, transport)
            if isinstance(found, Interrupted):
                return found
            record, known = found, _chosen(found)
        config = follow_data(_with_count(config, known), given)
    outcome = _on_counted_rows(config, given, request, transport)
    return outcome if isinstance(outcome, Interrupted) else Counted(outcome, record)


def _with_count(config: Config, min_count: int) -> Config:
    return replace(config, data=replace(config.data, min_count=min_count))


def _manifest_of(config: Config) -> Manifest | None:
    source = config.data.source
    return read_manifest(Path(source)) if source != SYNTHETIC and holds_manifest(Path(source)) else None


def _own_count(manifest: Manifest) -> int:
    """Returns the count that a data set was prepared with."""
    settings = manifest.settings.get("vocabulary")
    return int(settings.get("min_count", 1)) if isinstance(settings, dict) else 1


def _known_count(config: Config, request: RunRequest, transport: Transport) -> int | None:
    """Returns the count where there is nothing to choose: the parent's, or that of rows which have theirs already."""
    manifest = _manifest_of(config)
    reason, known = "", None
    if config.init_from:
        recorded = read_parent(Path(config.init_from)).settings.values.get(MIN_COUNT, 1)
        known = max(int(recorded), 1) if isinstance(recorded, int) else 1
        reason = f"as in {config.init_from}"
        if manifest is not None and _own_count(manifest) < known:
            reason += (
                f"; {config.data.source} has rows for rarer categories too: prepare it with --grow-from the data set "
                f"of that run and --min-count {known} to keep them out"
            )
    elif manifest is not None and why_fixed(manifest):
        known, reason = _own_count(manifest), f"{config.data.source} stays as it is: {why_fixed(manifest)}"
    if reason and transport.rank == 0:
        request.note(f"min count {known}, {reason}")
    return known


def _search(config: Config, request: RunRequest, transport: Transport) -> SearchRecord | Interrupted:
    parts = open_parts(config, transport)
    trials = _Trials(config, parts.data)
    search = Search(
        config,
        request,
        transport,
        parts,
        COUNT_FILE,
        new=lambda: trials.new_record(request),
        variant=trials.variant,
        option=_OPTION,
    )
    return search.run()


def _chosen(record: SearchRecord) -> int:
    if record.chosen is None:
        raise unanimous(
            TrainingError(
                f"every one of the {len(record.trials)} trials of {_OPTION} diverged; give a smaller "
                "--train.learning-rate, or a count"
            )
        )
    return int(str(record.trials[record.chosen].values[MIN_COUNT]))


class _Trials:
    """The trials of counts: how many steps each has, and the rows and the model of each."""

    def __init__(self, config: Config, data: DataSet) -> None:
        self._config, self._data = config, data
        batch_size, num_rows = config.train.batch_size, data.train.num_rows
        self.steps = min(steps_of_run(config, data), LONGEST_STEPS, -(-num_rows // batch_size))
        self._sample_rows = min(num_rows, self.steps * batch_size)
        self._counts: list[NDArray[np.int64]] | None = None

    def new_record(self, request: RunRequest) -> SearchRecord:
        """Counts all training rows, and plans a trial of each count that takes rows away."""
        config, train = self._config, self._data.train
        with request.show_work("counting ids", train.num_rows) as advance:
            counts = id_counts(train, config.model.table_rows, train.num_rows, advance)
        cells = max(sum(int(count.sum()) for count in counts), 1)
        values: list[Values] = []
        left: list[Kept] = []
        for min_count in COUNTS:
            kept = self._kept(counts, min_count)
            sizes = rows_of(kept)
            if left and sum(sizes) == left[-1].rows:
                continue
            of_model = model_bytes(replace(config, model=replace(config.model, table_rows=sizes))).packed
            rare = sum(int(count[~keep].sum()) for count, keep in zip(counts, kept, strict=True))
            values.append({MIN_COUNT: min_count})
            left.append(Kept(sum(sizes), of_model, rare / cells))
        rounds = (Round(self.steps, len(values)),)
        record = new_record(config, len(values), self._data.fingerprint, rounds, values)
        return replace(record, within=WITHIN, kept=tuple(left))

    def _kept(self, counts: list[NDArray[np.int64]], min_count: int) -> list[NDArray[np.bool_]]:
        """Returns the ids with a row: with a count of 1, those too that only held-out rows have, as prepared."""
        if min_count == 1 and self._config.data.source != SYNTHETIC:
            return [np.ones(count.size, np.bool_) for count in counts]
        return common(counts, min_count)

    def variant(self, values: Values) -> TrialSetup:
        """Returns the first rows, and a model for the ids that come often enough among them."""
        if self._counts is None:
            self._counts = id_counts(self._data.train, self._config.model.table_rows, self._sample_rows)
        kept = self._kept(self._counts, int(str(values[MIN_COUNT])))
        model = replace(self._config.model, table_rows=rows_of(kept))
        return TrialSetup(replace(self._config, model=model), with_common_ids(self._data, kept, self._sample_rows))


def _on_counted_rows(
    config: Config, given: Set[str], request: RunRequest, transport: Transport
) -> Config | Interrupted:
    """Has training read the data set of the settings' count, which is made first where there is none."""
    manifest, min_count = _manifest_of(config), config.data.min_count
    if manifest is None or config.init_from or min_count <= max(_own_count(manifest), 1):
        return config
    source = Path(config.data.source)
    if reason := why_fixed(manifest):
        raise ConfigError(
            f"--data.min-count {min_count}: the rows of {source} are not chosen by count, because {reason}; leave it "
            "out, or prepare the log with --min-count"
        )
    with StopRequest() as stop:
        made = on_first_rank_at_length(transport, lambda: _made(source, min_count, request, stop))
        was_made = transport.broadcast_json(made)
    if not was_made:
        return Interrupted(request.run_dir, 0, stop.signal_name or "a signal on another rank", searching=True)
    folder = counted_folder(source, min_count)
    lacking = [text for text in gather_texts(transport, "" if holds_manifest(folder) else str(folder)) if text]
    if lacking:
        raise unanimous(
            ConfigError(
                f"rank 0 has made {folder}, and other ranks do not see it; copy it to their disks, or prepare the log "
                f"with --min-count {min_count}"
            )
        )
    return follow_data(replace(config, data=replace(config.data, source=str(folder))), given)


class _StoppedError(Exception):
    """Somebody asked to stop."""


def _made(source: Path, min_count: int, request: RunRequest, stop: StopRequest) -> bool:
    """Makes the data set, unless it is there; returns False where somebody asked to stop before."""
    rows = 2 * sum(read_manifest(source).num_rows(part) for part in ("train", "validation", "test"))
    with request.show_work(f"writing {counted_folder(source, min_count)}", rows) as show:

        def advance(count: int) -> None:
            show(count)
            if stop.requested:
                raise _StoppedError

        try:
            recount(source, min_count, advance)
        except _StoppedError:
            return False
    return True
