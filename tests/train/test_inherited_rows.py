"""Rows follow their categories from any vocabulary to any other, against dictionaries of rows."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.config.recorded import config_to_record
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import (
    SavedVocabulary,
    identity_of_vocabulary,
    save_vocabulary,
)
from dqrm_cpu.data.source import DataSet, open_data
from dqrm_cpu.data.store.manifest import FORMAT, ColumnStatistics, Manifest, write_manifest
from dqrm_cpu.data.store.run_data import fingerprint_of
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.errors import DataError
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.init_from import Inherited, initialize_from
from dqrm_cpu.train.parent import read_parent
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.session import Session, build_session, load_kernels
from dqrm_cpu.train.state import RunState
from tiny import CPU, tiny_config

NAMES = ("a", "b")
SCHEMA = Schema(tuple(f"n{k}" for k in range(13)), NAMES)
DIM = 6
Keys = Sequence[Sequence[int]]
KEYS = st.tuples(*[st.lists(st.integers(1, 30), max_size=12, unique=True) for _ in NAMES])


def write_ids(folder: Path, keys: Keys, bits: int = 32, max_ind_range: int = 0) -> Manifest:
    """Writes the vocabulary and the manifest of a data set without any rows."""
    folder.mkdir()
    arrays = [np.array(column, f"<u{bits // 8}") for column in keys]
    save_vocabulary(folder, NAMES, max_ind_range, arrays)
    identity = identity_of_vocabulary(SCHEMA, SavedVocabulary(NAMES, max_ind_range, tuple(arrays), ""))
    columns = tuple(ColumnStatistics(name) for name in (*SCHEMA.dense, *NAMES))
    parts = {"train": (), "validation": (), "test": ()}
    rows = tuple(1 + len(column) for column in keys)
    manifest = Manifest(FORMAT, SCHEMA, rows, parts, columns, (), {}, "0", identity)
    write_manifest(folder, manifest)
    return manifest


def session_of(folder: Path, keys: Keys, optimizer: str, seed: int) -> tuple[Session, Config, DataSet]:
    """Builds a session as if for the rows of the data set in `folder`."""
    manifest = write_ids(folder, keys)
    config = tiny_config(model={"table_rows": manifest.table_rows}, train={"optimizer": optimizer})
    config = replace(config, seed=seed)
    data = replace(open_data(config), fingerprint=fingerprint_of(manifest.digest()), identity=manifest.identity)
    session = build_session(config, load_kernels(config, CPU), data, SingleTransport(), CPU)
    return session, replace(config, data=replace(config.data, source=str(folder))), data


def save_parent(run_dir: Path, session: Session, config: Config, data: DataSet) -> Path:
    """Saves it in shards of a few rows each, with random numbers in every tensor."""
    generator = torch.Generator().manual_seed(5)
    for tensor in session.tensors().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
    state = RunState(step=9, data=data.fingerprint, identity=str(data.identity))
    store = CheckpointStore(checkpoints_folder(run_dir), 1, shard_bytes=3 * 4 * DIM, config=config_to_record(config))
    return store.save(9, session.tensors(), state.as_dict(), best=True)


def by_category(tensor: torch.Tensor, keys: Keys) -> dict[tuple[int, int], list[float]]:
    """Returns the rows of all tables by column and category; 0 is the reserved one."""
    starts = accumulate((1 + len(column) for column in keys), initial=0)
    rows = tensor.view(tensor.shape[0], -1).tolist()
    return {
        (t, key): rows[start + place]
        for t, (start, column) in enumerate(zip(starts, keys, strict=False))
        for place, key in enumerate([0, *column])
    }


def inherit(root: Path, old: Keys, new: Keys, optimizer: str) -> tuple[Session, Session, Session, Inherited]:
    """Returns the parent, a session as it is drawn, and the same one once it has what it inherits."""
    parent, config, data = session_of(root / "old", old, optimizer, seed=1)
    save_parent(root / "run", parent, config, data)
    drawn, _, _ = session_of(root / "drawn", new, optimizer, seed=2)
    child, config, data = session_of(root / "new", new, optimizer, seed=2)
    return parent, drawn, child, initialize_from(child, read_parent(root / "run"), config, data)


@settings(max_examples=12, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(old=KEYS, new=KEYS, optimizer=st.sampled_from(["sgd", "rowwise-adagrad"]))
def test_rows_are_those_of_dictionaries(old: Keys, new: Keys, optimizer: str) -> None:
    with TemporaryDirectory() as folder:
        parent, drawn, child, inherited = inherit(Path(folder), old, new, optimizer)
    before, fresh, after = parent.tensors(), drawn.tensors(), child.tensors()
    for name in after:
        if name not in ("tables", "optimizer.rows"):
            assert torch.equal(after[name], before[name]), name
            continue
        known, unknown, found = (
            by_category(tensors[name], keys) for tensors, keys in ((before, old), (fresh, new), (after, new))
        )
        for (t, key), row in found.items():
            expected = known.get((t, key))
            if expected is None:
                largest = max(
                    abs(value)
                    for (u, other), values in known.items()
                    if u == t and (t, other) in found
                    for value in values
                )
                expected = unknown[t, key]
                expected = [min(max(x, -largest), largest) for x in expected] if name == "tables" else expected
            assert row == expected
    shared = sum(1 + len(set(a) & set(b)) for a, b in zip(old, new, strict=True))
    totals = (sum(1 + len(column) for column in keys) for keys in (new, old))
    assert inherited[:3] == (shared, *(total - shared for total in totals))


def test_the_largest_weight_is_what_the_tracker_says(tmp_path: Path) -> None:
    _, _, child, _ = inherit(tmp_path, ([1, 2, 3], [4]), ([3, 9, 8], [4, 5]), "sgd")
    tables, tracker = child.model.tables, child.scales.trackers[0]
    assert tracker is not None
    assert torch.equal(tracker.absmax(), child.model.kernels.scan_absmax(tables))
    assert torch.equal(child.scales.for_evaluation() * 7, tracker.absmax())


@pytest.mark.parametrize("damage", ["gone", "another", "no vocabulary"])
def test_a_vocabulary_that_is_not_the_parents_is_refused(tmp_path: Path, damage: str) -> None:
    parent, config, data = session_of(tmp_path / "old", ([1, 2], [3]), "sgd", seed=1)
    save_parent(tmp_path / "run", parent, config, data)
    (tmp_path / "old").rename(tmp_path / "away")
    if damage == "another":
        write_ids(tmp_path / "old", ([2, 1], [3]))
    elif damage == "no vocabulary":
        (tmp_path / "away" / "vocabulary").rename(tmp_path / "vocabulary")
        (tmp_path / "away").rename(tmp_path / "old")
    child, config, data = session_of(tmp_path / "new", ([1, 2, 5], [3]), "sgd", seed=1)
    words = {"gone": "is gone", "another": "its vocabulary is another", "no vocabulary": "vocabulary is missing"}
    with pytest.raises(DataError, match=words[damage]):
        initialize_from(child, read_parent(tmp_path / "run"), config, data)


def test_a_data_set_of_the_same_ids_needs_no_vocabulary(tmp_path: Path) -> None:
    keys = ([1, 2], [3])
    parent, config, data = session_of(tmp_path / "old", keys, "rowwise-adagrad", seed=1)
    save_parent(tmp_path / "run", parent, config, data)
    child, config, data = session_of(tmp_path / "new", keys, "rowwise-adagrad", seed=2)
    for folder in ("old", "new"):
        (tmp_path / folder / "vocabulary").rename(tmp_path / f"vocabulary-{folder}")
    initialize_from(child, read_parent(tmp_path / "run"), config, data)
    assert all(torch.equal(tensor, parent.tensors()[name]) for name, tensor in child.tensors().items())
