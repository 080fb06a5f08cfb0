"""Sources by folders, patterns and URLs."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem

from dqrm_cpu.data.prepare.preparation import prepare
from dqrm_cpu.data.prepare.row_layout import CRITEO_LAYOUT
from dqrm_cpu.data.prepare.schema_file import read_schema
from dqrm_cpu.data.prepare.sources.find import find_sources
from dqrm_cpu.data.prepare.sources.raw_file import examine, require_unchanged
from dqrm_cpu.data.prepare.sources.remote import RemoteFacts, without_secrets
from dqrm_cpu.errors import DataError
from preparing import criteo_text, prepared, request_for

TEXT = criteo_text(60).encode()


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    system = MemoryFileSystem()
    yield system
    system.rm("/", recursive=True)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(TEXT)


def test_a_folder_stands_for_its_files_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["day_10.gz", "day_2.gz", "day_1.gz", "date=2024-01-10/part-0", "date=2024-01-9/part-1", "b/a"]
    touch(tmp_path, *names, "_SUCCESS", ".hidden", "_temporary/part-0", "b/.crc")
    wanted = ["b/a", "date=2024-01-9/part-1", "date=2024-01-10/part-0", "day_1.gz", "day_2.gz", "day_10.gz"]
    assert find_sources([str(tmp_path)]) == [str(tmp_path / name) for name in wanted]


def test_patterns_are_filled_in_and_names_stay_in_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "day_10", "day_9", "other", "deep/er/day_3", "odd[1]")
    found = find_sources([str(tmp_path / "other"), str(tmp_path / "day_*"), "-", str(tmp_path / "odd[1]")])
    assert found == [*(str(tmp_path / name) for name in ("other", "day_9", "day_10")), "-", str(tmp_path / "odd[1]")]
    assert find_sources([str(tmp_path / "**" / "day_3")]) == [str(tmp_path / "deep" / "er" / "day_3")]


def test_nothing_found_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder holds no raw files"):
        find_sources([str(tmp_path)])
    with pytest.raises(DataError, match="the pattern matches no file"):
        find_sources([str(tmp_path / "*.csv")])


def test_every_kind_of_file_is_read_from_a_url(tmp_path: Path, store: MemoryFileSystem) -> None:
    (tmp_path / "plain").write_bytes(TEXT)
    wanted = prepared([tmp_path / "plain"], tmp_path / "local")
    for name, content in (("plain", TEXT), ("x.gz", gzip.compress(TEXT)), ("x.zst", zstandard.compress(TEXT))):
        store.pipe(f"/logs/{name}", content)
        manifest = prepared([f"memory://logs/{name}"], tmp_path / f"{name}.out")
        assert manifest.digest() == wanted.digest()
        assert manifest.sources[0].digest == wanted.sources[0].digest
        assert (manifest.sources[0].path, manifest.sources[0].bytes) == (f"memory://logs/{name}", len(content))


def test_parquet_is_read_from_a_url(tmp_path: Path, store: MemoryFileSystem) -> None:
    columns = {"click": [0, 1, 1], "price": [1.5, None, 2.0], "site": ["a", "b", "a"]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    store.pipe("/rows.parquet", (tmp_path / "rows.parquet").read_bytes())
    (tmp_path / "schema.toml").write_text('label = "click"\ndecimals = ["price"]\ncategories = ["site"]\n')
    layout = read_schema(tmp_path / "schema.toml", "", list(columns))
    found = [
        prepared([source], tmp_path / f"{k}", layout=layout, split="none").digest()
        for k, source in enumerate([str(tmp_path / "rows.parquet"), "memory://rows.parquet"])
    ]
    assert found[0] == found[1]


def test_folders_and_patterns_may_be_urls(store: MemoryFileSystem) -> None:
    for name in ("logs/day_10.gz", "logs/day_9.gz", "logs/_SUCCESS", "logs/more/day_1.gz"):
        store.pipe(f"/{name}", TEXT)
    every = [f"memory://logs/{name}" for name in ("day_9.gz", "day_10.gz", "more/day_1.gz")]
    assert [url.replace(":///", "://") for url in find_sources(["memory://logs"])] == every
    assert [url.replace(":///", "://") for url in find_sources(["memory://logs/day_*"])] == every[:2]
    assert find_sources(["memory://logs/day_9.gz"]) == ["memory://logs/day_9.gz"]
    with pytest.raises(DataError, match="matches no file"):
        find_sources(["memory://logs/*.csv"])


def test_a_web_address_with_a_query_is_no_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def facts(url: str) -> RemoteFacts:
        asked.append(url)
        return RemoteFacts(is_folder=False, bytes=1, version=0)

    monkeypatch.setattr("dqrm_cpu.data.prepare.sources.find.remote_facts", facts)
    signed = ["https://host/log.gz?Expires=9&Signature=a*b", "HTTP://host/log[1].gz?x=1"]
    assert find_sources(signed) == asked == signed


def test_an_object_that_changes_or_goes_away_is_noticed(store: MemoryFileSystem) -> None:
    store.pipe("/log", TEXT)
    source = examine("memory://log")
    require_unchanged(source)
    store.pipe("/log", TEXT + b"x")
    with pytest.raises(DataError, match="changed while it was read"):
        require_unchanged(source)
    store.rm("/log")
    with pytest.raises(DataError, match=r"memory://log cannot be read: .*is the address right"):
        require_unchanged(source)
    with pytest.raises(DataError, match="memory://log cannot be read"):
        examine("memory://log")


@pytest.mark.parametrize("name", ["log", "log.gz", "log.zst", "log.parquet"])
def test_a_store_that_fails_on_the_way_is_an_error_of_one_line(
    store: MemoryFileSystem, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores raise classes of their own, which are no OSErrors; here at the second read of the preparation."""
    table = io.BytesIO()
    pq.write_table(pa.table({"click": [0, 1], "hour": [1, 2], "site": ["a", "b"]}), table)
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    content = table.getvalue() if name == "log.parquet" else packed.get(Path(name).suffix, bytes)(TEXT)
    store.pipe(f"/{name}", content)
    layout = CRITEO_LAYOUT
    if name == "log.parquet":
        (tmp_path / "schema.toml").write_text('label = "click"\nintegers = ["hour"]\ncategories = ["site"]\n')
        layout = read_schema(tmp_path / "schema.toml", "", ["click", "hour", "site"])
    request = request_for([f"memory://{name}"], tmp_path / "out", layout)

    def fail(*_: object) -> bytes:
        raise RuntimeError("the store said 503\nand more")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", fail)
    with pytest.raises(DataError, match=r"memory://log.* cannot be read.*the store said 503"):
        prepare(request)


def test_what_is_missing_to_read_a_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"nosuch://bucket/log cannot be read: .*nosuch"):
        examine("nosuch://bucket/log")
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(DataError, match=r"pip install 'dqrm-cpu\[remote\]'"):
        examine("s3://bucket/log")


def test_what_is_recorded_of_an_address_holds_no_secret() -> None:
    shown = {
        "https://me:word@host:8/log.gz?Signature=a#1": "https://host:8/log.gz#1",
        "ftp://me:word@host/log": "ftp://host/log",
        "s3://bucket/a?b.gz": "s3://bucket/a?b.gz",
        "folder/a@b?c": "folder/a@b?c",
    }
    assert {path: without_secrets(path) for path in shown} == shown
