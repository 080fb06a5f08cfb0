"""Splits by chance, as others' protocols have them: by seed and row alone, with every row in one part."""

from pathlib import Path

import numpy as np
import pytest

from commands import dqrm_cpu
from dqrm_cpu.data.prepare.output.split import BinSplit
from dqrm_cpu.data.prepare.protocols import PROTOCOLS, RandomSplit, not_comparable
from dqrm_cpu.data.prepare.records import NUM_BINS
from dqrm_cpu.data.prepare.request import VocabularySettings
from dqrm_cpu.data.store.manifest import FILE_NAME, PART_NAMES, read_manifest
from preparing import criteo_text, prepared, rows_of

ROWS = 3000


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The first number of each line is that of the line."""
    text = criteo_text(ROWS).splitlines()
    cells = [line.split("\t") for line in text]
    return ["\t".join([line[0], str(number), *line[2:]]) for number, line in enumerate(cells)]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def line_numbers(out: Path, part: str) -> list[int]:
    _, dense, _ = rows_of(out, part)
    return [round(float(value)) for value in np.exp(dense[:, 0].astype(np.float64)) - 1]


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("*.*") if path.is_file() and path.name != FILE_NAME}


@pytest.mark.parametrize("name", ["x1", "x4"])
def test_every_row_is_in_one_part_and_its_share_is_that_of_the_protocol(
    name: str, lines: list[str], tmp_path: Path
) -> None:
    shares = PROTOCOLS[name].random_split
    assert shares is not None
    prepared([write(tmp_path / "log", lines)], tmp_path / "data", random_split=shares, protocol=name, shard_rows=500)
    numbers = {part: line_numbers(tmp_path / "data", part) for part in PART_NAMES}
    assert sorted(number for part in numbers.values() for number in part) == list(range(ROWS))
    deviation = 4 * np.sqrt(ROWS) / 2
    assert abs(len(numbers["validation"]) - shares.validation * ROWS) < deviation
    assert abs(len(numbers["test"]) - shares.test * ROWS) < deviation
    for part in numbers.values():  # of all times, and in no order
        assert min(part) < ROWS // 10
        assert max(part) > ROWS - ROWS // 10
        assert part != sorted(part)
    assert read_manifest(tmp_path / "data").settings["protocol"] == name


def test_the_split_depends_on_the_seed_and_on_nothing_else(lines: list[str], tmp_path: Path) -> None:
    how = {"random_split": RandomSplit(0.18, 0.1), "shard_rows": 500, "vocabulary": VocabularySettings(min_count=2)}
    whole = write(tmp_path / "whole", lines)
    halves = [write(tmp_path / f"half-{k}", part) for k, part in enumerate((lines[:1111], lines[1111:]))]
    prepared([whole], tmp_path / "one", workers=1, block_bytes=1 << 20, **how)
    prepared(halves, tmp_path / "two", workers=3, block_bytes=1 << 12, **how)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    prepared([whole], tmp_path / "other", seed=2, **how)
    assert set(line_numbers(tmp_path / "one", "test")) != set(line_numbers(tmp_path / "other", "test"))


def test_categories_are_counted_over_training_rows(lines: list[str], tmp_path: Path) -> None:
    log = write(tmp_path / "log", lines)
    how = {"random_split": RandomSplit(0.3, 0.2), "shard_rows": 500}
    prepared([log], tmp_path / "data", vocabulary=VocabularySettings(min_count=3), **how)
    training = set(line_numbers(tmp_path / "data", "train"))
    keys = [[line.split("\t")[14 + t] for number, line in enumerate(lines) if number in training] for t in range(26)]
    for column, rows in zip(keys, read_manifest(tmp_path / "data").table_rows, strict=True):
        values, counts = np.unique([key for key in column if key and int(key, 16)], return_counts=True)
        assert rows == 1 + np.count_nonzero(counts >= 3), values


def test_shares_are_as_near_as_bins_allow() -> None:
    for validation, test in ((0.18, 0.1), (0.1, 0.1), (0.5, 0.25)):
        split = BinSplit.of(RandomSplit(validation, test))
        (_, first), (second, third), (_, end) = split.parts.values()
        assert first == second
        assert end == NUM_BINS
        assert abs((third - second) / NUM_BINS - validation) <= 0.5 / NUM_BINS
        assert abs((end - third) / NUM_BINS - test) <= 0.5 / NUM_BINS


def test_the_command_takes_the_count_of_the_protocol_and_refuses_other_splits(lines: list[str], tmp_path: Path) -> None:
    log = write(tmp_path / "log", lines[:300])
    common = ("prepare", log, "--out", tmp_path / "data", "--format", "kaggle", "--protocol", "x4")
    for others, words in (
        (("--split", "none"), "--protocol x4 says how rows are split (random, 80:10:10), and --split none says"),
        (("--format", "terabyte"), "--format terabyte, which holds out the last file, says otherwise"),
        (("--protocol", "x2"), "no such choice; allowed: paper | x1 | x4"),
    ):
        refused = dqrm_cpu(*common, *others)
        assert refused.returncode == 2
        assert words in refused.stderr
    output = dqrm_cpu(*common)
    assert output.returncode == 0, output.stderr
    assert "protocol    x4: random, 80:10:10" in output.stdout
    assert read_manifest(tmp_path / "data").settings["vocabulary"]["min_count"] == PROTOCOLS["x4"].min_count
    assert dqrm_cpu(*common, "--min-count", 2, "--restart").returncode == 0
    assert read_manifest(tmp_path / "data").settings["vocabulary"]["min_count"] == 2


def test_other_splits_are_told_apart() -> None:
    assert not_comparable(["x1", "x1"]) == ""
    assert not_comparable(["x4", "", "x4"]) == "splits are not comparable: no protocol, x4 (random, 80:10:10)"
