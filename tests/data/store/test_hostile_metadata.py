"""Manifests, vocabularies and files of other programs that were made to harm: one line each, at once."""

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqrm_cpu.cli.main import main
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import FOLDER, load_vocabulary
from dqrm_cpu.data.store.foreign.convert import open_foreign
from dqrm_cpu.data.store.manifest import FILE_NAME, read_manifest
from dqrm_cpu.errors import DataError
from stored import write_data_set

Document = dict[str, Any]


def sealed(document: Document) -> str:
    body = {key: value for key, value in document.items() if key != "crc32"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps({"crc32": zlib.crc32(text.encode()), **body})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_data_set(folder, [40])
    return folder


def shard(field: str, value: object) -> Callable[[Document], None]:
    return lambda document: document["parts"]["train"][0].__setitem__(field, value)


def field(name: str, value: object) -> Callable[[Document], None]:
    return lambda document: document.__setitem__(name, value)


CHANGES: dict[str, Callable[[Document], None]] = {
    "a device": shard("name", "/dev/zero"),
    "a file elsewhere": shard("name", "../x"),
    "the folder itself": shard("name", "."),
    "the folder above": shard("name", ".."),
    "no name": shard("name", ""),
    "a name with a zero": shard("name", "a\0b"),
    "a number as a name": shard("name", 7),
    "endless rows": shard("rows", 10**15),
    "rows below 0": shard("rows", -1),
    "rows as text": shard("rows", "40"),
    "rows as a truth": shard("rows", True),
    "rows and a half": shard("rows", 40.5),
    "rows without bytes": shard("bytes", 1),
    "more clicks than rows": shard("clicks", 41),
    "a checksum too long": shard("crc32", 1 << 32),
    "no parts": field("parts", {}),
    "a list of parts": field("parts", []),
    "parts of null": field("parts", None),
    "no schema": field("schema", None),
    "columns twice": lambda document: document["schema"].__setitem__("dense", ["a", "a", "b"]),
    "no columns": field("schema", {"dense": [], "categorical": []}),
    "tables of 2^31 rows": field("table_rows", [1, 1, 1, 1 << 31]),
    "tables without rows": field("table_rows", [1, 1, 1, 0]),
    "too few tables": field("table_rows", [1]),
    "settings as a list": field("settings", [1]),
    "an identity that is none": field("identity", {"schema": "x", "vocabulary": "y"}),
    "statistics of text": lambda document: document["columns"][0].__setitem__("mean", "much"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_manifest_that_lies_is_refused(case: str, whole: Path, tmp_path: Path) -> None:
    document = json.loads((whole / FILE_NAME).read_text())
    CHANGES[case](document)
    (tmp_path / FILE_NAME).write_text(sealed(document))
    with pytest.raises(DataError, match=FILE_NAME):
        read_manifest(tmp_path)


@pytest.mark.parametrize("key", ["schema", "table_rows", "parts", "columns", "sources", "settings", "version"])
def test_a_manifest_without_a_field_is_refused(key: str, whole: Path, tmp_path: Path) -> None:
    document = json.loads((whole / FILE_NAME).read_text())
    del document[key]
    (tmp_path / FILE_NAME).write_text(sealed(document))
    with pytest.raises(DataError, match=f"missing required field `{key}`"):
        read_manifest(tmp_path)


def test_fields_of_a_newer_version_are_passed_over(whole: Path, tmp_path: Path) -> None:
    document = json.loads((whole / FILE_NAME).read_text())
    document["colour"] = "green"
    document["parts"]["train"][0]["colour"] = "blue"
    (tmp_path / FILE_NAME).write_text(sealed(document))
    assert read_manifest(tmp_path) == read_manifest(whole)


TEXTS = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"crc32": 1, "format": 1, "settings": ' + b'{"a":' * 50_000,
    "closed deep lists": b'{"crc32": 1, "format": 1, "settings": ' + b"[" * 900 + b"]" * 900 + b"}",
    "6,000 digits": b'{"crc32": 1, "format": ' + b"9" * 6000 + b"}",
    "a format of 4,000 digits": b'{"crc32": 1, "format": ' + b"9" * 4000 + b"}",
    "no object": b"[1, 2]",
    "no UTF-8": b'{"crc32": "\xff\xfe"}',
    "a number": b"1",
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_is_no_manifest_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(TEXTS[case])
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path)
    assert len(str(caught.value)) < 600


def test_names_do_not_reach_the_terminal_as_they_are(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((whole / FILE_NAME).read_text())
    document["version"] = "\x1b[2J"
    document["settings"] = {"\x9b2J": "\x07"}
    (tmp_path / FILE_NAME).write_text(sealed(document))
    assert main(["data", "show", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()


def test_a_pipe_as_manifest_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE_NAME)
    with pytest.raises(DataError, match="is no regular file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
def test_a_shard_that_is_no_file_is_refused(
    make: Callable[[Path], None], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "data"))
    (folder / "train-0.shard").unlink()
    make(folder / "train-0.shard")
    for action in ("head", "verify"):
        assert main(["data", action, str(folder)]) == 1
        printed = capsys.readouterr()
        assert "train-0.shard" in printed.out + printed.err


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    assert main(["data", "generate", str(folder / "raw.txt"), "--rows", "100"]) == 0
    assert main(["prepare", str(folder / "raw.txt"), "--format", "kaggle", "--out", str(folder / "data")]) == 0
    return folder / "data"


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def page(data: Path, change: Callable[[Document], None]) -> None:
    path = data / FOLDER / "vocabulary.json"
    document = json.loads(path.read_text())
    del document["crc32"]  # as in pages of earlier versions
    change(document)
    path.write_text(json.dumps(document))


PAGES: dict[str, Callable[[Document], None]] = {
    "another format": field("format", 2),
    "keys of 7 bits": field("key_bits", 7),
    "no columns": field("columns", []),
    "a file elsewhere": lambda document: document["columns"][0].__setitem__("file", "/dev/zero"),
    "a file above": lambda document: document["columns"][0].__setitem__("file", "../000.npy"),
    "endless keys": lambda document: document["columns"][0].__setitem__("keys", 10**15),
    "other keys": lambda document: document["columns"][0].__setitem__("file", "001.npy"),
    "a range below 0": field("max_ind_range", -1),
}


@pytest.mark.parametrize("case", PAGES)
def test_a_vocabulary_that_lies_is_refused(case: str, data: Path) -> None:
    page(data, PAGES[case])
    with pytest.raises(DataError):
        load_vocabulary(data)


def test_a_flipped_bit_of_a_vocabularys_page_is_refused_or_changes_nothing(data: Path) -> None:
    """Another number of ids that are folded, or another name of a column, would be another id for a key."""
    path, whole = data / FOLDER / "vocabulary.json", load_vocabulary(data)
    content, refused = path.read_bytes(), 0
    for place in range(0, len(content), 31):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = load_vocabulary(data)
        except DataError:
            refused += 1
        else:
            assert (found.names, found.max_ind_range) == (whole.names, whole.max_ind_range)
            assert all(map(np.array_equal, found.keys, whole.keys))
    assert refused > len(range(0, len(content), 31)) // 3


def test_keys_of_4_tib_are_refused(data: Path) -> None:
    header = b"{'descr': '<u4', 'fortran_order': False, 'shape': (1099511627776,), }\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (data / FOLDER / "000.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"000\.npy has 0 bytes of values, its header says 4,398,046,511,104"):
        load_vocabulary(data)


def verified(data: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `data verify` prints about damaged data."""
    capsys.readouterr()
    assert main(["data", "verify", str(data)]) == 1
    return capsys.readouterr().out


def test_verify_finds_a_vocabulary_whose_bytes_changed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data / FOLDER / "003.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "003.npy is damaged" in verified(data, capsys)


def test_verify_finds_a_vocabulary_that_is_missing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(data / FOLDER)
    assert "vocabulary is missing" in verified(data, capsys)


def test_verify_finds_the_vocabulary_of_other_rows(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = np.load(data / FOLDER / "003.npy")[::-1].copy()
    np.save(data / FOLDER / "003.npy", keys)
    page(data, lambda document: document["columns"][3].__setitem__("crc32", zlib.crc32(keys.tobytes())))
    assert "is whole, but not the vocabulary of the rows beside it" in verified(data, capsys)


def test_verify_reads_a_whole_vocabulary(data: Path) -> None:
    assert main(["data", "verify", str(data)]) == 0


def archive(path: Path, **arrays: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in arrays.items():
            file.writestr(f"{name}.npy", content)


def npy(descr: str, shape: str, content: bytes = b"") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


FOREIGN = {
    "counts of 4 TiB": npy("<i8", f"({2**39},)"),
    "counts that are objects": npy("|O", "(1,)", bytes(8)),
    "counts below 0": npy("<i8", "(1,)", b"\xff" * 8),
    "counts cut short": npy("<i8", "(1,)", bytes(3)),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_counts_of_another_program_that_lie_are_refused(case: str, tmp_path: Path) -> None:
    rows = npy("<i4", "(1, 1)", bytes(4))
    label = npy("<i4", "(1,)", bytes(4))
    archive(tmp_path / "x.npz", X_int=rows, X_cat=rows, y=label, counts=FOREIGN[case])
    with pytest.raises(DataError, match=r"x\.npz"):
        open_foreign(tmp_path / "x.npz")
