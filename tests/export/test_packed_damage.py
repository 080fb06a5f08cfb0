"""Packed files of strangers and failing disks: refused in a line before anything is used, never other numbers."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, load_file, save_file

from dqrm_cpu.base.tensor_header import HEADER_CHECKSUM, MOST_HEADER_BYTES, NO_CHECKSUM, header_checksum
from dqrm_cpu.config import Config
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export.model_files import write_model, write_rowwise
from dqrm_cpu.export.packed_model import read_packed, verify_packed
from dqrm_cpu.export.read import load_packed, require_same_tables
from dqrm_cpu.export.safetensors_reader import PackedFile
from dqrm_cpu.export.safetensors_writer import STRETCH_BYTES, Checksums, whole, write_tensors
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.train.session import open_scales
from tiny import CPU, tiny_config

KERNELS = select_kernels("numba", CPU)
LAYOUTS = ("dense", "sparse", "rowwise")
IDENTITY = "schema 0123456789abcdef vocabulary fedcba9876543210"
CONFIG = tiny_config(
    model={"table_rows": (40, 3, 1100), "embedding_dim": 8, "bottom_mlp": (9, 8)},
    quant={"step_width": (2.0,), "activation_bits": 8},
)


def model_of(config: Config) -> Dlrm:
    model = Dlrm(config, KERNELS, CPU)
    model.initialize_(1)
    model.tables.weight[::7] *= 0.1
    model.inputs.running.fill_(1.0)
    return model


def written(folder: Path, layout: str, config: Config = CONFIG) -> Path:
    path, model = folder / f"{layout}.safetensors", model_of(config)
    if layout == "rowwise":
        write_rowwise(path, config, model, IDENTITY)
    else:
        write_model(path, config, model, open_scales(config.quant, model).for_evaluation(), layout, IDENTITY)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Returns the content of a good file by layout."""
    folder = tmp_path_factory.mktemp("good")
    return {layout: written(folder, layout).read_bytes() for layout in LAYOUTS}


def header_of(content: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def data_of(content: bytes) -> bytes:
    return content[8 + int.from_bytes(content[:8], "little") :]


def sealed(header: dict[str, Any], data: bytes) -> bytes:
    """A file of that header and data whose checksums are right, as somebody would make it who means harm."""
    sums = Checksums()
    sums.add(np.frombuffer(data, dtype=np.uint8))
    header["__metadata__"] |= {"checksums": sums.text(), HEADER_CHECKSUM: NO_CHECKSUM}
    blank = json.dumps(header).encode()
    header["__metadata__"][HEADER_CHECKSUM] = header_checksum(blank)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_good_file_is_whole_and_says_what_it_holds(files: dict[str, bytes], layout: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(files[layout])
    found = verify_packed(path)
    assert (found.layout, found.identity, found.config.model) == (layout, IDENTITY, CONFIG.model)
    assert found.num_bytes == len(files[layout])
    assert found.num_checksums == 1
    assert found.warnings == ()
    assert set(load_file(path)) == set(header_of(files[layout])) - {"__metadata__"}, "it is safetensors as well"


def test_every_stretch_has_its_checksum(tmp_path: Path) -> None:
    """A reader of some rows checks the stretches that they lie in, and no others."""
    path, rows = tmp_path / "file", np.arange(3 * STRETCH_BYTES // 64 + 5, dtype=np.int32)[:, None].repeat(16, 1)
    size = write_tensors(path, [whole("x", rows), whole("empty", rows[:0])], {"format": "2"})
    assert size == path.stat().st_size
    content = bytearray(path.read_bytes())
    with PackedFile(path) as file:
        assert file.num_checksums == 4
        assert np.array_equal(file.tensor("x"), rows)
        assert np.array_equal(file.rows("x", 16380, 16390), rows[16380:16390])
        assert file.tensor("empty").shape == (0, 16)
    content[-1] ^= 1
    path.write_bytes(content)
    with PackedFile(path) as file:
        assert np.array_equal(file.rows("x", 0, len(rows) - 5), rows[:-5])
        with pytest.raises(CheckpointError, match=r"is damaged: its bytes [0-9,]+ to [0-9,]+ are not those"):
            file.rows("x", len(rows) - 5, len(rows))
        with pytest.raises(CheckpointError, match="is damaged"):
            file.check_all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_flipped_bit_is_noticed_wherever_it_is(files: dict[str, bytes], layout: str, tmp_path: Path) -> None:
    path, good = tmp_path / "file", files[layout]
    for place in range(0, len(good), len(good) // 70):
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            verify_packed(path)


def test_a_file_that_was_cut_is_noticed(files: dict[str, bytes], tmp_path: Path) -> None:
    path, good = tmp_path / "file", files["sparse"]
    for size in range(0, len(good), len(good) // 60):
        path.write_bytes(good[:size])
        with pytest.raises(CheckpointError):
            verify_packed(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(CheckpointError, match="its tensors have"):
        verify_packed(path)


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "dense")
    with PackedFile(path) as file:
        os.truncate(path, 2000)
        with pytest.raises(CheckpointError, match="cut while it was read"):
            file.check_all()


def test_nothing_of_a_damaged_file_is_loaded_in_silence(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "file"
    damaged = bytearray(files["dense"])
    damaged[-1] ^= 0x10
    path.write_bytes(damaged)
    model = model_of(CONFIG)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_packed(path, model, CONFIG.quant)
    with pytest.raises(CheckpointError, match="is damaged"):
        require_same_tables(path, model, open_scales(CONFIG.quant, model).for_evaluation(), CONFIG.quant)


def old_format(content: bytes, path: Path) -> None:
    """Writes files as they were before they had checksums."""
    stored = header_of(content)["__metadata__"]
    save_file(load(content), path, {key: stored[key] for key in ("layout", "config")} | {"format": "1"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_an_earlier_version_is_read_with_a_warning(
    files: dict[str, bytes], layout: str, tmp_path: Path
) -> None:
    path, now = tmp_path / "old", tmp_path / "new"
    old_format(files[layout], path)
    now.write_bytes(files[layout])
    assert "damage to it cannot be noticed" in verify_packed(path).warnings[0]
    models = model_of(CONFIG), model_of(CONFIG)
    assert load_packed(path, models[0], CONFIG.quant).num_checksums == 0
    load_packed(now, models[1], CONFIG.quant)
    for name, tensor in models[0].weights().items():
        assert torch.equal(tensor, models[1].weights()[name])


def _set(*keys: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        inner = header
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to

    return change


def _config(before: str, after: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        text = header["__metadata__"]["config"]
        assert before in text
        header["__metadata__"]["config"] = text.replace(before, after)

    return change


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        del header[name]

    return change


HOSTILE_HEADERS = {
    "overlap": _set("C2.codes", "data_offsets", to=[0, 12]),
    "beyond": _set("C3.codes", "data_offsets", to=[10**15, 10**15 + 4400]),
    "negative": _set("C1.codes", "data_offsets", to=[-160, 0]),
    "huge rows": _set("C1.codes", "shape", to=[2**62, 4]),
    "negative rows": _set("C1.codes", "shape", to=[-40, -4]),
    "many dimensions": _set("C1.codes", "shape", to=[1] * 100_000 + [160]),
    "unknown type": _set("C1.codes", "dtype", to="F8_E5M2"),
    "other type": _set("C1.codes", "dtype", to="I8"),
    "fractions": _set("C1.codes", "shape", to=[40.0, 4.0]),
    "text for numbers": _set("C1.codes", "data_offsets", to=["0", "160"]),
    "no offsets": _set("C1.codes", to={"dtype": "U8", "shape": [40, 4]}),
    "a list": _set("C1.codes", to=[]),
    "other shape": _set("C1.codes", "shape", to=[4, 40]),
    "metadata of numbers": _set("__metadata__", "layout", to=1),
    "no metadata": _without("__metadata__"),
    "unknown layout": _set("__metadata__", "layout", to="/etc/passwd"),
    "layout of another": _set("__metadata__", "layout", to="rowwise"),
    "unknown format": _set("__metadata__", "format", to="3"),
    "stretch of nothing": _set("__metadata__", "checksum_stretch_bytes", to="0"),
    "endless stretch": _set("__metadata__", "checksum_stretch_bytes", to="9" * 5000),
    "config of dots": _set("__metadata__", "config", to="a." * 100_000 + "b = 1"),
    "nested config": _set("__metadata__", "config", to="a = " + "[" * 100_000),
    "endless number": _config("[model]", "[model]\nnum_dense = " + "9" * 6000),
    "no config": _set("__metadata__", "config", to=""),
    "config of nothing": _set("__metadata__", "config", to='preset = "demo"'),
    "config that is none": _set("__metadata__", "config", to="\x00"),
    "text for rows": _config("embedding_dim = 8", 'embedding_dim = "8"'),
    "a table of 10^15 rows": _config("1100,", "1000000000000000,"),
    "fewer bits": _config("embedding_bits = 4", "embedding_bits = 2"),
    "an FP32 model": _config('method = "dqrm"', 'method = "none"'),
    "a method with offsets": _config('method = "dqrm"', 'method = "dorefa"'),
}


@pytest.mark.parametrize("name", HOSTILE_HEADERS)
def test_a_hostile_header_is_refused(name: str, files: dict[str, bytes], tmp_path: Path) -> None:
    """Its checksums are right."""
    header = header_of(files["dense"])
    HOSTILE_HEADERS[name](header)
    path = tmp_path / "file"
    with_metadata = "__metadata__" in header
    path.write_bytes(sealed(header if with_metadata else header | {"__metadata__": {}}, data_of(files["dense"])))
    for use in (read_packed, verify_packed):
        with pytest.raises(CheckpointError) as caught:
            use(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_a_tensor_more_or_less_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    """An offset that nobody wrote would shift every value."""
    path, stored = tmp_path / "file", header_of(files["dense"])["__metadata__"]
    tensors, extra = load(files["dense"]), np.ones(3, dtype=np.float32)
    old = {"format": "1", "layout": "dense", "config": stored["config"]}
    save_file({**tensors, "tables.offset": extra}, path, old)
    with pytest.raises(CheckpointError, match=r"has no use for tables\.offset"):
        read_packed(path)
    del tensors["top.0.step"]
    save_file(tensors, path, old)
    with pytest.raises(CheckpointError, match=r"lacks top\.0\.step"):
        read_packed(path)


@pytest.mark.parametrize("length", [2**63, 2**40, MOST_HEADER_BYTES + 1])
def test_a_header_of_any_length_costs_nothing(length: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(2**41)  # a file with a hole takes no room
    with pytest.raises(CheckpointError, match="its header would have"):
        read_packed(path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"[" * 100_000, b'{"a": ' * 50_000, b"9" * 6000, b"\xff\xfe{}"])
def test_a_header_that_is_no_header_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match="is no packed model"):
        read_packed(path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path, tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            verify_packed(path)


def with_tensor(content: bytes, name: str, values: np.ndarray) -> bytes:
    """The same file with other bytes for a tensor, its checksums right."""
    header, data = header_of(content), bytearray(data_of(content))
    begin, end = header[name]["data_offsets"]
    assert end - begin == values.nbytes
    data[begin:end] = values.tobytes()
    return sealed(header, bytes(data))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["tables.step", "top.0.step"])
def test_a_scale_that_is_none_is_refused(name: str, value: float, files: dict[str, bytes], tmp_path: Path) -> None:
    count = header_of(files["dense"])[name]["shape"][0]
    scales = np.ones(count, dtype=np.float32)
    scales[-1] = value
    path = tmp_path / "file"
    path.write_bytes(with_tensor(files["dense"], name, scales))
    for use in (verify_packed, lambda path: load_packed(path, model_of(CONFIG), CONFIG.quant)):
        with pytest.raises(CheckpointError, match=f"{name} holds"):
            use(path)


def test_a_bias_that_is_no_number_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(with_tensor(files["dense"], "bottom.0.bias", np.full(9, np.nan, dtype=np.float32)))
    with pytest.raises(CheckpointError, match=r"bottom\.0\.bias holds a number that is not finite"):
        verify_packed(path)


def test_a_row_whose_scale_is_no_number_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    path, tensors = tmp_path / "file", load(files["rowwise"])
    codes = tensors["C1.codes"].copy()
    codes[3, -4:] = np.array([np.nan, 0], dtype=np.float16).view(np.uint8)
    path.write_bytes(with_tensor(files["rowwise"], "C1.codes", codes))
    with pytest.raises(CheckpointError, match="C1 holds a scale or bias that is not finite"):
        load_packed(path, model_of(CONFIG), CONFIG.quant)
    with pytest.raises(CheckpointError, match="C1 holds a scale or bias that is not finite"):
        verify_packed(path)


def test_a_sparse_table_must_agree_with_itself(files: dict[str, bytes], tmp_path: Path) -> None:
    """Bits and counts that do not belong together would give rows the codes of others."""
    path, good = tmp_path / "file", files["sparse"]
    tensors = load(good)
    bitmap, rank = tensors["C3.bitmap"].copy(), tensors["C3.rank"].copy()
    assert rank[1] > 1
    moved, padded, swapped = rank.copy(), bitmap.copy(), bitmap.copy()
    moved[1] -= 1
    padded[-1] |= 0xF0  # 1,100 rows: the last byte has 4
    swapped[:3] = ~swapped[:3]
    faults = [("C3.rank", moved), ("C3.rank", -rank), ("C3.bitmap", padded), ("C3.bitmap", swapped)]
    for name, values in faults:
        path.write_bytes(with_tensor(good, name, values))
        for use in (verify_packed, lambda path: load_packed(path, model_of(CONFIG), CONFIG.quant)):
            with pytest.raises(CheckpointError, match="live row"):
                use(path)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (tiny_config(model={"embedding_dim": 8, "bottom_mlp": (9, 8)}, quant={"activation_bits": 8}), "rows of tables"),
        (tiny_config(model={"table_rows": (40, 3, 1100)}, quant={"activation_bits": 8}), "values of a row"),
        (
            tiny_config(
                model={"table_rows": (40, 3, 1100), "embedding_dim": 8, "bottom_mlp": (7, 8)},
                quant={"activation_bits": 8},
            ),
            "layers",
        ),
    ],
)
def test_a_file_of_another_model_is_not_loaded(
    other: Config, difference: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(files["dense"])
    with pytest.raises(CheckpointError, match=f"is of another model: its {difference}"):
        load_packed(path, model_of(other), other.quant)


def test_bits_that_take_as_many_bytes_are_told_apart(tmp_path: Path) -> None:
    """3 and 4 bits of two values take a byte: read at the other width they would be other numbers."""
    shape = {"embedding_dim": 2, "bottom_mlp": (9, 2)}
    three, four = (tiny_config(model=shape, quant={"embedding_bits": bits}) for bits in (3, 4))
    path = written(tmp_path, "dense", three)
    with pytest.raises(CheckpointError, match=r"quant\.embedding_bits are 3, not 4"):
        load_packed(path, model_of(four), four.quant)


def test_settings_of_a_newer_version_are_passed_over(files: dict[str, bytes], tmp_path: Path) -> None:
    header = header_of(files["dense"])
    _config("[model]", "[model]\nnot_yet_known = 3")(header)
    path = tmp_path / "file"
    path.write_bytes(sealed(header, data_of(files["dense"])))
    assert verify_packed(path).config.model == CONFIG.model
