"""Metadata of strangers: whatever is in it, one error says what is wrong, at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from dqrm_cpu.base.decode import UnreadableError, decoded, parse_json, read_json


@dataclass(frozen=True)
class Document:
    name: str
    rows: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    parts: dict[str, tuple[int, ...]]


GOOD = {"name": "a", "rows": 3, "parts": {"train": [1, 2]}}


def test_a_document_becomes_its_type() -> None:
    assert decoded({**GOOD, "added_later": 1}, Document) == Document("a", 3, {"train": (1, 2)})


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "9" * 6_000, "", "{", '"\ud800', "\x00", "nul", '"\\ud800"', '{"\\uD9ab": 1}'],
    ids=["lists", "objects", "digits", "empty", "cut", "surrogate", "zero", "word", "escaped", "key"],
)
def test_text_that_is_no_json_is_one_error(text: str) -> None:
    with pytest.raises(UnreadableError, match=r"is no JSON|is nested too deeply"):
        parse_json(text)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 1},
        {"rows": -1},
        {"rows": 1 << 50},
        {"rows": 10**15},
        {"rows": 1.0},
        {"rows": "1"},
        {"rows": True},
        {"parts": []},
        {"parts": {"train": [1.5]}},
        {"parts": {"train": {}}},
        {"name": None},
        {"\ud800": 1},
    ],
    ids=str,
)
def test_a_field_of_another_type_or_size_is_one_error(change: dict[str, object]) -> None:
    with pytest.raises(UnreadableError, match="lacks or mistakes a field"):
        decoded({**GOOD, **change}, Document)


@pytest.mark.parametrize("document", [None, 1, [], "a", {}, {"name": "a"}], ids=str)
def test_a_document_of_another_shape_is_one_error(document: object) -> None:
    with pytest.raises(UnreadableError, match="lacks or mistakes a field"):
        decoded(document, Document)


def test_an_endless_file_is_refused() -> None:
    with pytest.raises(UnreadableError, match="no regular file"):
        read_json(Path("/dev/zero"))


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(" " * 100 + "{}")
    with pytest.raises(UnreadableError, match="more than 50 bytes"):
        read_json(tmp_path / "a.json", most_bytes=50)
