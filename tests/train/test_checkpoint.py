"""Checkpoints: what goes in comes out, damage is found, the right ones are kept, and no crash costs one."""

import errno
import json
import math
import shutil
import subprocess
import sys
import zlib
from collections import namedtuple
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dqrm_cpu.base.decode import Json
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.train import checkpoint as checkpoint_module
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.checkpoint_files import load_checkpoint
from dqrm_cpu.train.checkpoint_folder import find_checkpoint, read_state
from dqrm_cpu.train.checkpoint_manifest import CheckpointManifest, read_manifest
from dqrm_cpu.train.checkpoint_shard import DamagedCheckpointError

_DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.int64, torch.bool])
_SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)


def _tensors(value: float = 1.0) -> dict[str, Tensor]:
    table = torch.arange(60, dtype=torch.float32).reshape(20, 3) * value
    return {"table": table, "accumulator": torch.full((20,), float(value)), "mlp": torch.full((4, 5), -float(value))}


def _blank(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _store(folder: Path, keep: int = 2) -> CheckpointStore:
    return CheckpointStore(folder, keep, shard_bytes=100)


def _names(store: CheckpointStore) -> list[str]:
    return [path.name for path in store.paths()]


def _save(store: CheckpointStore, *steps: int, best: int | None = None) -> None:
    for step in steps:
        store.save(step, _tensors(step), {"step": step}, best=step == best)


def _flip_a_bit(path: Path, position: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(_SHAPES, _DTYPES), max_size=5), st.integers(1, 400), st.randoms(use_true_random=False))
def test_any_tensors_come_back_whatever_the_shard_size(
    described: list[tuple[tuple[int, ...], torch.dtype]], shard_bytes: int, random: Random
) -> None:
    tensors = {
        f"tensor.{number}": torch.tensor([random.random() * 4 for _ in range(math.prod(shape))])
        .to(dtype)
        .reshape(shape)
        for number, (shape, dtype) in enumerate(described)
    }
    with TemporaryDirectory() as folder:
        path = CheckpointStore(Path(folder), 1, shard_bytes).save(7, tensors, {"a": 1}, best=False)
        restored = _blank(tensors)
        assert load_checkpoint(path, restored) == {"a": 1}
        assert _same(restored, tensors)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 300))
def test_a_shard_exceeds_its_size_only_for_a_single_row(num_rows: int, dim: int, shard_bytes: int) -> None:
    tensors = {"table": torch.ones(num_rows, dim), "small": torch.ones(3)}
    with TemporaryDirectory() as folder:
        path = CheckpointStore(Path(folder), 1, shard_bytes).save(0, tensors, {}, best=False)
        shards = read_manifest(path).shards
    row_bytes = {"table": 4 * dim, "small": 4}
    for shard in shards:
        num_bytes = sum(piece.num_rows * row_bytes[piece.tensor] for piece in shard.pieces)
        assert num_bytes <= shard_bytes or sum(piece.num_rows for piece in shard.pieces) == 1
    rows = [
        (piece.tensor, row)
        for shard in shards
        for piece in shard.pieces
        for row in range(piece.first_row, piece.first_row + piece.num_rows)
    ]
    assert rows == [("table", row) for row in range(num_rows)] + [("small", row) for row in range(3)]


def test_views_and_transposed_tensors_are_stored_by_value(tmp_path: Path) -> None:
    flat = torch.arange(24.0)
    tensors = {
        "transposed": flat[:12].reshape(3, 4).t(),
        "every_second": flat[12::2],
        "leaf": torch.ones(2).requires_grad_(),
    }
    path = _store(tmp_path).save(1, tensors, {}, best=False)
    restored = {"transposed": torch.zeros(3, 4).t(), "every_second": torch.zeros(12)[::2], "leaf": torch.zeros(2)}
    load_checkpoint(path, restored)
    assert _same(restored, tensors)


def test_the_state_comes_back_exactly_and_without_the_tensors(tmp_path: Path) -> None:
    state: dict[str, Json] = {
        "loss": 0.1 + 0.2,
        "best": None,
        "list": [1, {"deep": "ü"}],
        "infinite": -math.inf,
        "large": 2**80,
    }
    path = _store(tmp_path).save(12, _tensors(), state, best=True)
    for shard in path.glob("*.safetensors"):
        shard.unlink()
    assert read_state(path) == state
    assert (read_manifest(path).step, read_manifest(path).best) == (12, True)


def test_nan_in_the_state_does_not_cost_the_checkpoint(tmp_path: Path) -> None:
    path = _store(tmp_path).save(1, _tensors(), {"auc": math.nan}, best=False)
    auc = read_state(path)["auc"]
    assert isinstance(auc, float)
    assert math.isnan(auc)


def test_names_are_those_that_people_look_for(tmp_path: Path) -> None:
    path = _store(tmp_path / "checkpoints").save(1234, _tensors(), {}, best=False)
    assert path == tmp_path / "checkpoints" / "step-000001234"
    assert (path / "state.json").is_file()
    assert not list(path.parent.glob(".*"))


def test_differences_are_listed(tmp_path: Path) -> None:
    path = _store(tmp_path).save(1, _tensors(), {}, best=False)
    into = {"table": torch.zeros(20, 4), "accumulator": torch.zeros(20, dtype=torch.float64), "bias": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, into)
    message = str(caught.value)
    assert "bias is missing" in message
    assert "mlp is not part of this model" in message
    assert "table is float32[20, 3], here float32[20, 4]" in message
    assert "accumulator is float32[20], here float64[20]" in message


def test_another_model_is_no_reason_to_fall_back(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _save(store, 1, 2)
    with pytest.raises(CheckpointError, match="another model"):
        store.load_newest({"table": torch.zeros(1)})


def test_unused_tensors_can_be_passed_over_without_reading_them(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, 1, shard_bytes=240).save(1, _tensors(), {"a": 1}, best=False)
    (path / "shard-00001.safetensors").unlink()  # the table fills the first shard
    into = {"table": torch.zeros(20, 3)}
    assert load_checkpoint(path, into, allow_unused=True) == {"a": 1}
    assert torch.equal(into["table"], _tensors()["table"])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_any_flipped_bit_is_found_and_the_one_before_is_loaded(choice: int, position: float) -> None:
    with TemporaryDirectory() as folder:
        store = _store(Path(folder))
        _save(store, 1, 2)
        newest = store.newest()
        assert newest is not None
        files = sorted(newest.iterdir())
        _flip_a_bit(files[choice % len(files)], position)
        restored = _blank(_tensors())
        resumed = store.load_newest(restored)
        assert resumed is not None
        assert resumed.step == 1
        assert _same(restored, _tensors(1))
        assert len(resumed.warnings) == 1


@pytest.mark.parametrize("damage", ["truncate", "extend", "remove"])
@pytest.mark.parametrize("name", ["shard-00001.safetensors", "state.json"])
def test_files_cut_short_or_gone_are_found(tmp_path: Path, name: str, damage: str) -> None:
    store = _store(tmp_path)
    _save(store, 1, 2)
    victim = tmp_path / "step-000000002" / name
    content = victim.read_bytes()
    victim.unlink()
    if damage != "remove":
        victim.write_bytes(content[:-9] if damage == "truncate" else content + b"{}")
    with pytest.raises(DamagedCheckpointError, match=name):
        load_checkpoint(victim.parent, _blank(_tensors()))
    resumed = store.load_newest(_blank(_tensors()))
    assert resumed is not None
    assert (resumed.step, resumed.path.name, len(resumed.warnings)) == (1, "step-000000001", 1)
    assert str(victim) in resumed.warnings[0]


def test_when_all_are_damaged_it_says_so(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _save(store, 1, 2)
    for path in store.paths():
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is usable"):
        store.load_newest(_blank(_tensors()))


def test_a_format_of_the_future_is_named(tmp_path: Path) -> None:
    path = _store(tmp_path).save(1, _tensors(), {}, best=False)
    document = json.loads((path / "state.json").read_text())
    document["body"]["format"] = 99
    canonical = json.dumps(document["body"], sort_keys=True, separators=(",", ":")).encode()
    (path / "state.json").write_text(json.dumps({**document, "crc32": zlib.crc32(canonical)}))
    with pytest.raises(CheckpointError, match="format 99"):
        read_state(path)


def test_without_checkpoints_there_is_nothing_to_resume(tmp_path: Path) -> None:
    store = _store(tmp_path / "none")
    assert store.load_newest(_tensors()) is None
    assert store.newest() is None
    assert store.best() is None
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "step-000000001", _tensors())


@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=8, unique_by=lambda save: save[0]),
    st.integers(1, 3),
)
@settings(deadline=None, max_examples=40)
def test_the_newest_and_the_best_are_kept(saves: list[tuple[int, bool]], keep: int) -> None:
    saves = sorted(saves)
    with TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), keep)
        for step, is_best in saves:
            store.save(step, {"a": torch.ones(1)}, {}, is_best)
        newest = [step for step, _ in saves][-keep:]
        best = [step for step, is_best in saves if is_best][-1:]
        assert _names(store) == [f"step-{step:09d}" for step in sorted({*newest, *best})]
        assert store.newest() == Path(folder) / f"step-{saves[-1][0]:09d}"
        assert store.best() == (Path(folder) / f"step-{best[0]:09d}" if best else None)


def test_later_steps_that_training_left_go_with_the_next_save(tmp_path: Path) -> None:
    store = _store(tmp_path, keep=3)
    _save(store, 10, 20, 30, best=30)
    _save(store, 15)  # resumed from 10
    assert _names(store) == ["step-000000010", "step-000000015"]
    assert store.best() is None


def test_a_step_saved_again_is_replaced_without_a_moment_in_between(tmp_path: Path) -> None:
    store = _store(tmp_path, keep=1)
    _save(store, 5)
    path = store.save(5, _tensors(9), {"again": True}, best=False)
    assert store.paths() == [path]
    restored = _blank(_tensors())
    resumed = store.load_newest(restored)
    assert resumed is not None
    assert (resumed.step, resumed.state) == (5, {"again": True})
    assert _same(restored, _tensors(9))


def test_a_best_step_saved_again_stays_the_best(tmp_path: Path) -> None:
    store = _store(tmp_path, keep=1)
    _save(store, 5, best=5)
    _save(store, 5, 6)
    best = store.best()
    assert best is not None
    assert read_state(best) == {"step": 5}


def test_leftovers_of_a_crash_never_count_and_go_at_the_next_save(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _save(store, 1)
    for name in (".writing-step-000000002", ".removing-step-000000000"):
        shutil.copytree(tmp_path / "step-000000001", tmp_path / name)
    assert _names(store) == ["step-000000001"]
    _save(store, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000002"]


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 2**20))
    with pytest.raises(CheckpointError, match=r"needs 16\.0 MiB in .* but 1\.0 MiB are free"):
        _save(_store(tmp_path), 1)
    assert not list(tmp_path.iterdir())


def test_a_failing_disk_leaves_the_one_before_and_no_rest(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _save(store, 1)
    script = (
        "import resource, signal, sys, torch; from pathlib import Path;"
        "from dqrm_cpu.train.checkpoint import CheckpointStore; from dqrm_cpu.errors import CheckpointError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: CheckpointStore(Path(sys.argv[1]), 2).save(2, {'a': torch.ones(100_000)}, {}, False)\n"
        "except CheckpointError as error: sys.exit(0 if 'could not be written' in str(error) else 3)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_the_best_one_is_kept_while_the_disk_cannot_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(tmp_path, keep=1)
    _save(store, 1, 2, best=1)

    def unreadable(folder: Path) -> CheckpointManifest:
        if folder.name == "step-000000001":
            raise DamagedCheckpointError("Input/output error")
        return read_manifest(folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "read_manifest", unreadable)
        _save(store, 3)
    assert store.best() == tmp_path / "step-000000001"


def test_an_old_checkpoint_that_cannot_be_removed_does_not_cost_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path, keep=1)
    _save(store, 1)
    listed = store.paths

    def unlisted() -> list[Path]:
        if (tmp_path / "step-000000002").exists():
            raise OSError(errno.EIO, "Input/output error")
        return listed()

    with monkeypatch.context() as patch:
        patch.setattr(store, "paths", unlisted)
        assert store.save(2, _tensors(), {}, best=False).name == "step-000000002"
    assert _names(store) == ["step-000000001", "step-000000002"]


def test_at_least_one_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep at least 1"):
        CheckpointStore(tmp_path, 0)


def test_a_file_or_an_empty_folder_with_the_name_of_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _save(store, 1, best=1)
    (tmp_path / "step-000000099").write_text("somebody's notes")
    (tmp_path / "step-000000098").mkdir()
    assert store.newest() == store.best() == find_checkpoint(tmp_path, "last") == tmp_path / "step-000000001"
    resumed = store.load_newest(_blank(_tensors()))
    assert resumed is not None
    assert resumed.step == 1
    assert ["99 is no checkpoint but a file" in text for text in resumed.warnings] == [True, False]
    assert store.save(99, _tensors(), {}, best=False).name == "step-000000099.1"
    assert (tmp_path / "step-000000099").read_text() == "somebody's notes"
