""".npy files of strangers: numbers that the file holds come back, everything else is refused at once."""

import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from dqrm_cpu.base import npy
from dqrm_cpu.base.decode import UnreadableError
from dqrm_cpu.base.files import NotRegularError
from dqrm_cpu.base.npy import map_npy, read_npy


@pytest.mark.parametrize("shape", [(7,), (3, 4), (0,), (0, 5), ()])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_come_back(shape: tuple[int, ...], order: Literal["C", "F"], tmp_path: Path) -> None:
    values = np.asarray(np.arange(np.prod(shape)).reshape(shape), order=order, dtype="<i4")
    np.save(tmp_path / "a.npy", values)
    found = map_npy(tmp_path / "a.npy")
    assert found.dtype == values.dtype
    assert np.array_equal(found, values)


@pytest.mark.parametrize("size", [0, 1, 5, 6, 13])
def test_numbers_are_read_by_blocks_and_digested(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npy, "_BLOCK_BYTES", 3 * 8)
    values, heard = np.arange(size, dtype="<u8") * 0x9E37, list[int]()
    np.save(tmp_path / "a.npy", values)
    found, crc32 = read_npy(tmp_path / "a.npy", heard.append)
    assert (found.tolist(), found.dtype, crc32) == (values.tolist(), values.dtype, zlib.crc32(values.tobytes()))
    assert (sum(heard), max(heard, default=0) <= 3 * 8) == (values.nbytes, True)


def test_what_is_read_has_one_dimension(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    with pytest.raises(UnreadableError, match="holds no list of numbers"):
        read_npy(tmp_path / "a.npy", lambda _: None)


def file_of(header: bytes, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def header_text(descr: str, shape: str) -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()


HOSTILE = {
    "empty": b"",
    "another file": b"PK\x03\x04 and so on",
    "a version of the future": b"\x93NUMPY\x09\x00" + bytes(100),
    "cut in the header": file_of(header_text("'<f4'", "(2,)"))[:30],
    "cut in the values": file_of(header_text("'<f4'", "(2,)"), bytes(7)),
    "values beyond the shape": file_of(header_text("'<f4'", "(2,)"), bytes(9)),
    "4 TiB": file_of(header_text("'<f4'", "(1099511627776,)"), bytes(64)),
    "a shape that overflows": file_of(header_text("'<f4'", f"({2**40}, {2**40}, {2**40})")),
    "a negative shape": file_of(header_text("'<f4'", "(-1,)")),
    "a shape of truths": file_of(header_text("'<f4'", "(True,)"), bytes(4)),
    "no shape": file_of(header_text("'<f4'", "'x'")),
    "objects": file_of(header_text("'|O'", "(1,)"), bytes(8)),
    "records": file_of(header_text("[('a', '<f4')]", "(1,)"), bytes(4)),
    "text": file_of(header_text("'<U4'", "(1,)"), bytes(16)),
    "an unknown type": file_of(header_text("'<q99'", "(1,)"), bytes(16)),
    "a type that NumPy takes for code": file_of(header_text("',f4'", "(1,)"), bytes(4)),
    "two types": file_of(header_text("'<f4,<f4'", "(1,)"), bytes(8)),
    "numbers of 6,000 digits": file_of(header_text("'<f4'", f"({'9' * 6000},)")),
    "deep nesting": file_of(b"(" * 5000),
    "deep signs": file_of(b"-" * 9000 + b"1"),
    "code": file_of(b"__import__('os').abort()"),
    "an endless header": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100),
    "fields that are not known": file_of(b"{'descr': '<f4', 'shape': (1,)}", bytes(4)),
    "fields that are no text": file_of(b"{1: 2}"),
    "fields that cannot be": file_of(b"{[]: 2}"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_array_of_numbers_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(HOSTILE[case])
    with pytest.raises(UnreadableError):
        map_npy(tmp_path / "a.npy")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(NotRegularError):
        map_npy(tmp_path / "a.npy")
