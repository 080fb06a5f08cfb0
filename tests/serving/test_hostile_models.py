"""A model file that somebody made who means harm: whatever it says is refused before memory is taken for it."""

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dqrm_cpu.base.tensor_header import MOST_HEADER_BYTES
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export.safetensors_writer import whole, write_tensors
from dqrm_cpu.lab.bench.harness.cases import CASES, quick
from dqrm_cpu.lab.bench.serve.random_model import random_rows, write_random_model
from dqrm_cpu.serving import Model
from dqrm_cpu.serving.description import MODEL
from dqrm_cpu.serving.mapped_file import MappedFile

CONFIG = quick(CASES["kaggle_128"]()).config
MOST_BYTES = 32 << 20
Document = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "model"
    write_random_model(path, CONFIG)
    Model.open(path).predict(random_rows(CONFIG, 2, seed=1))  # what NumPy imports when it is first used
    return path


def saying(good: Path, path: Path, change: Callable[[Document], object]) -> Path:
    """The good file with another description, its checksums right."""
    file = MappedFile(good)
    document = json.loads(file.metadata[MODEL])
    change(document)
    tensors = [whole(name, file.tensor(name, entry.dtype, entry.shape)) for name, entry in file.entries.items()]
    write_tensors(path, tensors, {"format": "3", MODEL: json.dumps(document)})
    return path


def refusal(path: Path) -> str:
    """Why a file is refused; it takes no more memory than a header of its size may."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            Model.open(path, verify=True)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    return str(caught.value)


def at(*keys: str | int, value: Any) -> Callable[[Document], None]:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


DESCRIPTIONS: dict[str, tuple[Callable[[Document], object], str]] = {
    "a table of 2^31 rows": (at("categories", 3, "rows", value=2**31), "impossible size"),
    "a table of 2^31 - 1 rows": (at("categories", 3, "rows", value=2**31 - 1), "its description wants"),
    "a table of 10^400 rows": (at("categories", 3, "rows", value=10**400), "impossible size"),
    "a table of no rows": (at("categories", 3, "rows", value=0), "impossible size"),
    "rows that are true": (at("categories", 3, "rows", value=True), "as rows"),
    "rows in a text": (at("categories", 3, "rows", value="9"), "as rows"),
    "a dimension of 2^40": (at("categories", 3, "dim", value=2**40), "impossible size"),
    "another dimension": (at("categories", 3, "dim", value=8), "projections"),
    "a bag of 2^60 values": (
        lambda document: document["categories"][3].update(kind="bag", limit=2**60),
        "too many ids in a row",
    ),
    "a limit without a bag": (at("categories", 3, "limit", value=2**60), "a limit or separator"),
    "a separator of two letters": (at("categories", 3, "separator", value="ab"), "a limit or separator"),
    "vectors of 2^40 values": (at("dim", value=2**40), "impossible width"),
    "a layer of 2^50 outputs": (at("layers", 0, "outputs", value=2**50), "do not fit to each other"),
    "wide layers": (
        lambda document: (document["layers"][0].update(outputs=2**40), document["layers"][1].update(inputs=2**40)),
        "its description wants",
    ),
    "no layers": (at("layers", value=[]), "no layers"),
    "layers that are no list": (at("layers", value={"0": 1}), "no list of layers"),
    "2^20 layers more": (lambda document: document["layers"].extend([None] * 300_000), "is no table"),
    "no categories": (at("categories", value=[]), "no numbers or no categories"),
    "a column twice": (at("categories", 3, "name", value="C1"), "twice"),
    "bits of 2^40": (at("table_bits", value=2**40), "impossible bit widths"),
    "an unknown layout": (at("layout", value="../../etc"), "where one of"),
    "an unknown transform": (at("numbers", 0, "transform", value="exec"), "where one of"),
    "numbers of a transform that fall": (
        lambda document: document["numbers"][0].update(transform="quantile", numbers=[2.0, 1.0]),
        "cannot be",
    ),
    "a number of 400 digits": (at("numbers", 0, "numbers", value=[10**400]), "among numbers"),
    "a number that is none": (at("numbers", 0, "numbers", value=["1"]), "among numbers"),
    "keys modulo 10^400": (at("ids", "max_ind_range", value=10**400), "ids that cannot be"),
    "hashes to one row": (at("ids", "hash_rows", value=1), "ids that cannot be"),
    "hashes to 2^60 rows": (at("ids", "hash_rows", value=2**60), "ids that cannot be"),
    "keys of 7 bits": (at("ids", "key_bits", value=7), "where one of"),
    "keys of another width": (at("ids", "key_bits", value=64), "its description wants"),
    "a calibration without numbers": (
        at("calibration", value={"kind": "platt", "first": [], "second": []}),
        "its calibration",
    ),
    "another version": (at("version", value=10**9), "has version"),
    "a field less": (lambda document: document.pop("interaction"), "lacks a field"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_that_cannot_be_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    change, why = DESCRIPTIONS[name]
    assert why in refusal(saying(good, tmp_path / "model", change))


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a": ' * 50_000, "9" * 6000, '"\\ud800"'])
def test_a_description_that_is_none_is_refused(good: Path, tmp_path: Path, text: str) -> None:
    tensors = [whole("x", MappedFile(good).bytes(0, 8))]
    write_tensors(tmp_path / "model", tensors, {"format": "3", MODEL: text})
    assert "is no exported model" in refusal(tmp_path / "model")


@pytest.mark.parametrize("length", [2**63, 2**40, MOST_HEADER_BYTES + 1])
def test_a_header_of_any_length_is_refused(tmp_path: Path, length: int) -> None:
    with (tmp_path / "model").open("wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(2**41)  # a file with a hole takes no room
    assert "its header would have" in refusal(tmp_path / "model")


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [([2**40, 2**40], [0, 8]), ([8], [0, 2**60]), ([8], [2**62, 2**62 + 8]), ([8], [-8, 0]), ([2**70], [0, 8])],
)
def test_a_tensor_beyond_the_file_is_refused(tmp_path: Path, shape: list[int], offsets: list[int]) -> None:
    header = {"__metadata__": {"format": "3"}, "C1.codes": {"dtype": "U8", "shape": shape, "data_offsets": offsets}}
    text = json.dumps(header).encode()
    (tmp_path / "model").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert "is no exported model" in refusal(tmp_path / "model")
