"""README claims nothing that docs/claims.md does not back with a command, a figure, data, a machine and a date."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from claims import FIELDS, Entry, claims_of, entries_of, sentences
from dqrm_cpu.cli.main import COMMANDS
from dqrm_cpu.cli.parser import Parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ENTRIES = entries_of((ROOT / "docs" / "claims.md").read_text())


def test_every_claim_of_the_readme_has_an_entry() -> None:
    backed = {entry.sentence for entry in ENTRIES}
    unbacked = [claim for claim in claims_of(README) if claim not in backed]
    assert not unbacked, "give each an entry in docs/claims.md, quoted as README has it, or take it out of README"


def test_no_entry_backs_a_sentence_that_is_gone() -> None:
    said = set(sentences(README))
    assert [entry.sentence for entry in ENTRIES if entry.sentence not in said] == []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.sentence[:50])
def test_entries_are_whole(entry: Entry) -> None:
    assert entry.lacks() == []
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", entry.fields["date"])


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.sentence[:50])
def test_what_shows_a_claim_exists(entry: Entry) -> None:
    commands = re.findall(r"`([^`]+)`", entry.fields["shown by"])
    assert commands
    for command in commands:
        program, *words = shlex.split(command)
        assert program in ("dqrm-cpu", "pytest"), command
        if program == "pytest":
            assert all((ROOT / word.partition("::")[0]).exists() for word in words if not word.startswith("-"))
        else:
            assert words[0] in COMMANDS
            parser = Parser(prog="dqrm-cpu")
            importlib.import_module(f"dqrm_cpu.cli.{words[0]}").add_parser(parser.add_subparsers())
            parser.parse_args(words)


@pytest.mark.parametrize(
    "text",
    [
        "The file is 76 times smaller.",
        "It is 3x as quick.",
        "This saves 40% of the memory.",
        "AUC rises by +.0040 in every seed.",
        "A step takes 0.42 of the time.",
        "It trains in less time than PyTorch takes.",
        "The model is as accurate.",
        "Rows cost nothing.",
        "An eighth of the size is left.",
        "It is better than\nFP32.",
        "- in a list: half the bytes",
        "| a cell | twice as many rows |",
        "[It beats DCNv2](docs/results.md).",
        "Runs resume to the bit.",
    ],
)
def test_a_claim_is_recognized(text: str) -> None:
    assert claims_of(f"# Title\n\nSome words.\n\n{text}\n")


@pytest.mark.parametrize(
    "text",
    [
        "On Linux with Python 3.11, 3.12 or 3.13.",
        "```sh\ndqrm-cpu train --quant.step-width 0.5  # 8x smaller than before\n```",
        "The paper is arXiv 2410.20046.",
        "`--tune` tries eight candidates.",
        "See [the 8 pages](docs/8x.md).",
    ],
)
def test_what_claims_nothing_is_left_alone(text: str) -> None:
    assert claims_of(f"# 8x smaller in a title\n\n{text}\n") == []


def test_an_entry_repeats_the_numbers_of_its_sentence() -> None:
    text = "> It is 8x smaller, +.0009 better.\n\n- figure: 8.0x; +.0009 ± .0005\n" + "".join(
        f"- {name}: given\n" for name in FIELDS if name != "figure"
    )
    (entry,) = entries_of(text)
    assert entry.lacks() == ["8"]
    assert Entry("It is 7.99 there.", {}).lacks() == [*FIELDS, "7.99"]
