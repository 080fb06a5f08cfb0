"""Memory and disk are checked before anything is written."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dqrm_cpu.data.prepare.estimate import buffer_bytes, disk_bytes
from dqrm_cpu.data.prepare.preparation import prepare
from dqrm_cpu.data.prepare.request import PrepareRequest
from dqrm_cpu.errors import DataError
from preparing import criteo_text, request_for


@pytest.fixture
def request_of_few(tmp_path: Path) -> PrepareRequest:
    (tmp_path / "train.txt").write_text(criteo_text(50))
    return request_for([tmp_path / "train.txt"], tmp_path / "out")


def with_memory(request: PrepareRequest, available: int, budget: int, force: bool = False) -> PrepareRequest:
    return replace(
        request, resources=replace(request.resources, available_bytes=available, memory_bytes=budget, force=force)
    )


def test_too_little_memory_is_told_before_a_folder_is_made(request_of_few: PrepareRequest) -> None:
    needed = buffer_bytes(request_of_few.settings, 2, request_of_few.sources[0].bytes)
    with pytest.raises(DataError, match=r"--memory-budget.*--workers.*--force"):
        prepare(with_memory(request_of_few, needed + 99, budget=100))
    assert not request_of_few.out.exists()


@pytest.mark.parametrize(("spare", "force"), [(100, False), (-1, True)])
def test_it_starts_where_there_is_enough_or_where_it_must(
    request_of_few: PrepareRequest, spare: int, force: bool
) -> None:
    needed = buffer_bytes(request_of_few.settings, 2, request_of_few.sources[0].bytes)
    manifest = prepare(with_memory(request_of_few, needed + spare, budget=100, force=force))
    assert sum(manifest.num_rows(part) for part in manifest.parts) == 50


def test_more_workers_and_larger_shards_take_more(request_of_few: PrepareRequest) -> None:
    settings = request_of_few.settings
    base = buffer_bytes(settings, 2, 1 << 30)
    assert buffer_bytes(settings, 4, 1 << 30) > base
    assert buffer_bytes(replace(settings, shard_rows=2 * settings.shard_rows), 2, 1 << 30) > base


def test_a_disk_too_small_is_told(request_of_few: PrepareRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    size = request_of_few.sources[0].bytes
    needed = disk_bytes(request_of_few, size)

    class Usage:
        free = needed - 1

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DataError, match=r"make room.*--force"):
        prepare(request_of_few)
    forced = replace(request_of_few, resources=replace(request_of_few.resources, force=True))
    assert prepare(forced).num_rows("train") > 0
