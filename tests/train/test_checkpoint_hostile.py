"""Checkpoints that somebody crafted, with checksums that fit: whatever they say, an error or what they hold."""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dqrm_cpu.errors import CheckpointError, DqrmError
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.checkpoint_files import load_checkpoint
from dqrm_cpu.train.checkpoint_folder import read_state
from dqrm_cpu.train.checkpoint_rows import RowReader
from dqrm_cpu.train.checkpoint_shard import DamagedCheckpointError

Body = dict[str, Any]
SHARD = "shard-00000.safetensors"
TABLE = torch.arange(20.0).reshape(10, 2)


def blank() -> dict[str, Tensor]:
    return {"table": torch.full((10, 2), -1.0), "mlp": torch.full((3,), -1.0)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """All in one shard."""
    return CheckpointStore(tmp_path, keep=1).save(1, {"table": TABLE, "mlp": torch.ones(3)}, {"step": 1}, best=True)


def write_body(folder: Path, body: object) -> None:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    (folder / "state.json").write_text(json.dumps({"crc32": zlib.crc32(canonical), "body": body}))


def forge(folder: Path, change: Callable[[Body], object]) -> None:
    """Changes the body of state.json and writes the checksum that it has then."""
    body = json.loads((folder / "state.json").read_text())["body"]
    change(body)
    write_body(folder, body)


def put_shard(folder: Path, header: object, data: bytes) -> None:
    """Another shard, of which state.json knows the size and the checksum."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + data
    (folder / SHARD).write_bytes(content)

    def describe(body: Body) -> None:
        body["shards"][0][1:3] = [len(content), zlib.crc32(content)]

    forge(folder, describe)


def pieces(*found: tuple[str, int, int]) -> Callable[[Body], None]:
    def change(body: Body) -> None:
        body["shards"][0][3] = [list(piece) for piece in found]

    return change


def file_name(name: str) -> Callable[[Body], None]:
    def change(body: Body) -> None:
        body["shards"][0][0] = name

    return change


def of_table(dtype: object, shape: object) -> Callable[[Body], None]:
    return lambda body: body["tensors"].update(table=[dtype, shape])


WHOLE = ("mlp", 0, 3)
FORGERIES = {
    "no shards": lambda body: body.update(shards=[]),
    "a gap": pieces(("table", 0, 4), WHOLE),
    "a gap at the start": pieces(("table", 1, 9), WHOLE),
    "rows beyond the end": pieces(("table", 0, 11), WHOLE),
    "rows before the start": pieces(("table", -1, 11), WHOLE),
    "no rows": pieces(("table", 0, 0), WHOLE),
    "rows twice in a file": pieces(("table", 0, 6), ("table", 4, 6), WHOLE),
    "another tensor": pieces(("table", 0, 10), WHOLE, ("secret", 0, 1)),
    "a shard twice": lambda body: body["shards"].append(body["shards"][0]),
    "a file above the folder": file_name("../step-000000001/shard-00000.safetensors"),
    "an absolute file": file_name("/dev/zero"),
    "a file in disguise": file_name("shard-00000.safetensors\n"),
    "an unknown type": of_table("object", [10, 2]),
    "a shape below 0": of_table("float32", [-10, -2]),
    "a shape without end": of_table("float32", [2**62, 2**62]),
    "a shape of texts": of_table("float32", ["10", "2"]),
    "a step below 0": lambda body: body.update(step=-1),
    "a step that is a text": lambda body: body.update(step="1"),
    "a step of 6,000 bits": lambda body: body.update(step=2**6000),
    "no tensors": lambda body: body.pop("tensors"),
    "shards that are none": lambda body: body.update(shards=[1, 2]),
    "a state that is a list": lambda body: body.update(state=[]),
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_description_is_refused_and_nothing_is_copied(saved: Path, change: Callable[[Body], object]) -> None:
    forge(saved, change)
    into = blank()
    with pytest.raises(DamagedCheckpointError, match=r"state\.json"):
        load_checkpoint(saved, into)
    assert all((tensor == -1).all() for tensor in into.values())
    with pytest.raises(CheckpointError):
        RowReader(saved).read("table", 0, 1)


def header_of(**changes: object) -> dict[str, object]:
    """The header of a shard with both tensors, and what is changed of it."""
    entries: dict[str, Any] = {
        "table": {"dtype": "F32", "shape": [10, 2], "data_offsets": [0, 80]},
        "mlp": {"dtype": "F32", "shape": [3], "data_offsets": [80, 92]},
    }
    return {**entries, **changes}


DATA = TABLE.numpy().tobytes() + bytes(12)
HEADERS = {
    "one value for all": header_of(table={"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}),
    "a row for all": header_of(table={"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}),
    "as many values otherwise": header_of(table={"dtype": "F32", "shape": [2, 10], "data_offsets": [0, 80]}),
    "another type": header_of(table={"dtype": "I32", "shape": [10, 2], "data_offsets": [0, 80]}),
    "beyond the file": header_of(mlp={"dtype": "F32", "shape": [3], "data_offsets": [800, 812]}),
    "bytes of another": header_of(mlp={"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}),
    "backwards": header_of(mlp={"dtype": "F32", "shape": [3], "data_offsets": [92, 80]}),
    "offsets without end": header_of(mlp={"dtype": "F32", "shape": [3], "data_offsets": [80, 2**64]}),
    "a third tensor": header_of(more={"dtype": "F32", "shape": [0], "data_offsets": [92, 92]}),
    "one too few": {"table": header_of()["table"]},
    "no shape": header_of(table={"dtype": "F32", "data_offsets": [0, 80]}),
    "nothing": {},
    "a list": [],
    "deep": b"[" * 100_000,
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_shard_whose_header_lies_is_refused(saved: Path, header: object) -> None:
    put_shard(saved, header, DATA)
    with pytest.raises(DamagedCheckpointError, match=SHARD):
        load_checkpoint(saved, blank())
    with pytest.raises(DamagedCheckpointError, match=SHARD):
        RowReader(saved).read("table", 0, 10)


def test_one_value_is_not_spread_over_a_table(saved: Path) -> None:
    """The file is sound by itself."""
    header = {
        "table": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
        "mlp": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]},
    }
    put_shard(saved, header, bytes(16))
    with pytest.raises(DamagedCheckpointError, match="of shape"):
        load_checkpoint(saved, blank())


def test_a_shard_written_by_another_program_is_read(saved: Path) -> None:
    """What the lies above are compared with."""
    put_shard(saved, header_of(__metadata__={"format": "pt"}), DATA)
    into = blank()
    load_checkpoint(saved, into)
    assert torch.equal(into["table"], TABLE)


@pytest.mark.parametrize("length", [0, 1, 2**63 - 1, 2**64 - 1])
def test_a_header_of_an_impossible_length_is_refused(saved: Path, length: int) -> None:
    content = struct.pack("<Q", length) + (saved / SHARD).read_bytes()[8:]
    (saved / SHARD).write_bytes(content)
    forge(saved, lambda body: body["shards"][0].__setitem__(2, zlib.crc32(content)))
    with pytest.raises(DamagedCheckpointError, match=SHARD):
        load_checkpoint(saved, blank())


@pytest.mark.parametrize("name", [SHARD, "state.json"])
@pytest.mark.parametrize("kind", ["FIFO", "device", "endless device", "folder", "link to nothing", "link to itself"])
def test_what_is_no_file_is_refused_at_once(saved: Path, name: str, kind: str) -> None:
    place = saved / name
    place.unlink()
    match kind:
        case "FIFO":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case _:
            place.symlink_to(
                {"device": "/dev/null", "endless device": "/dev/zero", "link to nothing": "nothing"}.get(kind, name)
            )
    with pytest.raises(DamagedCheckpointError, match=name):
        load_checkpoint(saved, blank())


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"crc32": 0, "body": ' + b'{"a":' * 3_000 + b"1" + b"}" * 3_001,
        b'{"crc32": ' + b"9" * 6_000 + b', "body": {}}',
        b'{"crc32": 1e999, "body": {}}',
        b'{"crc32": 0}',
        b'{"body": {}}',
        b"null",
        b"",
        b"\x00" * 100,
    ],
    ids=range(9),
)
def test_a_state_file_of_any_bytes_is_one_error(saved: Path, content: bytes) -> None:
    (saved / "state.json").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"state\.json") as caught:
        read_state(saved)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("float32"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["step", "best", "tensors", "shards", "state", "format", "body"]), JSON_VALUES, st.data())
def test_any_value_in_any_place_gives_an_error_or_the_tensors(
    saved: Path, name: str, value: object, data: st.DataObject
) -> None:
    """Also deeper down: a value takes the place of any item of the body."""
    original = (saved / "state.json").read_text()
    body = json.loads(original)["body"]
    if name == "body":
        body = value
    else:
        owner: Any = body
        place: Any = name
        while isinstance(owner[place], dict | list) and owner[place] and data.draw(st.booleans()):
            owner = owner[place]
            place = data.draw(st.sampled_from(sorted(owner) if isinstance(owner, dict) else range(len(owner))))
        owner[place] = value
    write_body(saved, body)
    into = blank()
    try:
        load_checkpoint(saved, into)
        assert torch.equal(into["table"], TABLE)
        assert torch.equal(into["mlp"], torch.ones(3))
    except DqrmError as error:
        assert "\n" not in str(error).replace(str(saved), "")
    finally:
        (saved / "state.json").write_text(original)


def test_a_newer_version_may_add_to_a_checkpoint(saved: Path) -> None:
    forge(saved, lambda body: body.update(invented={"later": [1]}))
    assert read_state(saved) == {"step": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_no_run_saves_are_refused(tmp_path: Path, value: float) -> None:
    folder = CheckpointStore(tmp_path, keep=1).save(1, {"mlp": torch.tensor([1.0, value])}, {"step": 1}, best=True)
    with pytest.raises(DamagedCheckpointError, match="mlp holds NaN or infinite numbers"):
        load_checkpoint(folder, {"mlp": torch.zeros(2)})


def test_a_file_cut_short_while_it_is_read_is_an_error(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapped file would end the process with SIGBUS."""
    read = os.preadv

    def cut(descriptor: int, buffers: list[memoryview], at: int) -> int:
        os.truncate(saved / SHARD, 50)
        return read(descriptor, buffers, at)

    monkeypatch.setattr(os, "preadv", cut)
    with pytest.raises(DamagedCheckpointError, match="cut short while it was read"):
        load_checkpoint(saved, blank())


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2):
        newest = store.save(step, {"table": TABLE * step}, {"step": step}, best=False)
    shutil.copy(tmp_path / "step-000000001" / SHARD, newest / SHARD)
    forge(newest, lambda body: body.update(shards=[]))
    into = {"table": torch.zeros(10, 2)}
    resumed = store.load_newest(into)
    assert resumed is not None
    assert resumed.step == 1
    assert torch.equal(into["table"], TABLE)
