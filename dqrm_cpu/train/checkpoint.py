"""The checkpoints of a run: written beside, renamed when complete, the newest and the best kept."""

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from dqrm_cpu.base.decode import Json
from dqrm_cpu.base.files import making_folder, remove_folder, remove_leftovers, sync_folder
from dqrm_cpu.base.memory import format_distinct_sizes
from dqrm_cpu.comm.coordination import gather_texts, on_first_rank
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.train.checkpoint_files import (
    SHARD_BYTES,
    describe_tensors,
    load_checkpoint,
    write_folder,
    write_shards,
    write_state,
)
from dqrm_cpu.train.checkpoint_folder import CheckpointFolder, order_of
from dqrm_cpu.train.checkpoint_manifest import (
    CheckpointManifest,
    CheckpointShard,
    Piece,
    TensorInfo,
    read_manifest,
)
from dqrm_cpu.train.checkpoint_shard import DTYPES, DamagedCheckpointError
from dqrm_cpu.train.held_tensor import Stored
from dqrm_cpu.train.working import ShowWork, unshown

_SPACE_MARGIN_BYTES = 16 << 20  # headers, state.json, and what the run writes beside its checkpoints


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that was loaded, with a warning for each newer one that is damaged."""

    path: Path
    step: int
    state: Mapping[str, Json]
    warnings: tuple[str, ...]


class CheckpointStore(CheckpointFolder):
    """The folder of one run's checkpoints; one process saves, any may load.

    A complete checkpoint is a folder named step-000001234; whatever a crash leaves behind has another name, is never
    loaded, and goes at the next save.
    """

    def __init__(
        self, folder: Path, keep: int, shard_bytes: int = SHARD_BYTES, config: Mapping[str, Json] | None = None
    ) -> None:
        """`config` is what each checkpoint records of the settings, by `config_to_record`."""
        if keep < 1:
            raise ConfigError(f"{keep} checkpoints would be kept; keep at least 1")
        super().__init__(folder)
        self._keep = keep
        self._shard_bytes = shard_bytes
        self._config = config

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Json],
        best: bool,
        show_work: ShowWork = unshown,
    ) -> Path:
        """Writes a checkpoint and, once it is safe, removes those no longer kept.

        Checkpoints of later steps go too: they belong to a course that training has left by resuming before them.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        with self._writing(step, size) as (path, folder), show_work(f"saving step {step:,}", size) as advance:
            write_folder(folder, step, tensors, state, best, self._shard_bytes, self._config, advance)
        return path

    def save_together(
        self,
        transport: Transport,
        step: int,
        tensors: Mapping[str, Stored],
        state: Callable[[], Mapping[str, Json]],
        best: bool,
    ) -> None:
        """Does what `save` does, each rank writing the rows that are its own; all ranks call it.

        It is whole or not at all on every rank: all raise the same error. `state` is asked on rank 0, as the last.
        """
        with ExitStack() as stack:

            def begin() -> str:
                num_bytes = sum(map(_whole_bytes, describe_tensors(tensors).values()))
                _, folder = stack.enter_context(self._writing(step, num_bytes))
                return str(folder)

            folder = Path(str(transport.broadcast_json(on_first_rank(transport, begin))))
            answers = _gather_shards(transport, folder, tensors, self._shard_bytes)

            def finish() -> None:
                shards = tuple(_require_shards(step, answers))
                manifest = CheckpointManifest(step, best, describe_tensors(tensors), shards, state(), self._config)
                write_state(folder, manifest)
                stack.close()

            on_first_rank(transport, finish)

    @contextlib.contextmanager
    def _writing(self, step: int, num_bytes: int) -> Iterator[tuple[Path, Path]]:
        """Yields where the checkpoint will be, and the folder to fill; those no longer kept go at the end."""
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)
                sync_folder(self.folder.parent)
            remove_leftovers(self.folder)
            self._check_space(num_bytes)
            path = self._free_path(step)
            with making_folder(path) as folder:
                yield path, folder
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {error}; "
                "check the disk and its permissions, then resume from the checkpoint before"
            ) from error
        # The new checkpoint is safe: that an old one cannot go is no reason to stop training.
        with contextlib.suppress(OSError):
            self._remove_surplus(path)

    def load_newest(self, into: Mapping[str, Stored], show_work: ShowWork = unshown) -> Resumed | None:
        """Loads the newest checkpoint that is not damaged; None where there is no checkpoint at all."""
        warnings = [f"{path} is no checkpoint but a file; remove it" for path in self.named() if not path.is_dir()]
        damaged: list[str] = []
        for path in reversed(self.paths()):
            try:
                with show_work(f"reading {path}", read_manifest(path).num_bytes) as advance:
                    state = load_checkpoint(path, into, advance=advance)
            except DamagedCheckpointError as error:
                damaged.append(str(error))
                continue
            return Resumed(path, order_of(path)[0], state, (*warnings, *damaged))
        if damaged:
            raise CheckpointError(f"no checkpoint in {self.folder} is usable: {'; '.join(damaged)}; start a new run")
        return None

    def _free_path(self, step: int) -> Path:
        attempts = [attempt for other, attempt in map(order_of, self.named()) if other == step]
        return self.folder / (f"step-{step:09d}.{max(attempts) + 1}" if attempts else f"step-{step:09d}")

    def _check_space(self, num_bytes: int) -> None:
        needed, free = num_bytes + _SPACE_MARGIN_BYTES, shutil.disk_usage(self.folder).free
        if free < needed:
            wanted, there = format_distinct_sizes(needed, free)
            raise CheckpointError(
                f"a checkpoint needs {wanted} in {self.folder} but {there} are free (the one before goes "
                "only after the new one is safe); free some space or use a run folder on another disk"
            )

    def _remove_surplus(self, saved: Path) -> None:
        reached = [path for path in self.paths() if order_of(path) <= order_of(saved)]
        last_attempts = {order_of(path)[0]: path for path in reached}  # sorted, so the last attempt at a step stays
        kept = {*list(last_attempts.values())[-self._keep :], *_newest_to_best(reached)}
        for path in self.paths():
            if path not in kept:
                remove_folder(path)


def _whole_bytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * DTYPES[info.dtype][1].itemsize


def _gather_shards(transport: Transport, folder: Path, tensors: Mapping[str, Stored], shard_bytes: int) -> list[Any]:
    """Writes this rank's shards; returns those of each rank as lists of [number, shard], or why there are none."""
    answer: object
    try:
        answer = write_shards(folder, tensors, shard_bytes, transport.rank)
    except (OSError, SafetensorError) as error:
        answer = f"{error}, of what rank {transport.rank} writes; every rank must see the folder, on a shared disk"
    return [json.loads(text) for text in gather_texts(transport, json.dumps(answer))]


def _require_shards(step: int, answers: Sequence[Any]) -> list[CheckpointShard]:
    """Returns the shards of all ranks in their order; CheckpointError where a rank could not write its own."""
    for answer in answers:
        if isinstance(answer, str):
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written: {answer}; then resume from the checkpoint before"
            )
    numbered = sorted(shard for answer in answers for shard in answer)
    return [
        CheckpointShard(file, size, crc32, tuple(Piece(*piece) for piece in pieces))
        for _, (file, size, crc32, pieces) in numbered
    ]


def _newest_to_best(paths: Sequence[Path]) -> list[Path]:
    """Lists the latest one saved as the best, and later ones whose manifest cannot be read: they may be better."""
    kept: list[Path] = []
    for path in reversed(paths):
        try:
            if read_manifest(path).best:
                return [*kept, path]
        except CheckpointError:
            kept.append(path)
    return kept
