"""Lines that are no rows: found, named, left out or kept, never guessed at."""

from pathlib import Path

import pytest

from dqrm_cpu.errors import DataError
from preparing import criteo_text, prepared, rows_of

GOOD = criteo_text(40).splitlines()


def spoiled(cells: dict[int, str], line: str = "\t".join(["1", *["3"] * 13, *["0000abcd"] * 26])) -> str:
    fields = line.split("\t")
    for number, cell in cells.items():
        fields[number - 1] = cell
    return "\t".join(fields)


BAD = {
    "too few fields": (spoiled({}).rsplit("\t", 1)[0], "field 39: the line ends here"),
    "too many fields": (spoiled({}) + "\t1", "field 40: the line goes on"),
    "a label of 2": (spoiled({1: "2"}), "field 1: the label"),
    "no label": (spoiled({1: ""}), "field 1: the label"),
    "a long label": (spoiled({1: "10"}), "field 1: the label"),
    "a letter in a number": (spoiled({4: "1a"}), "field 4: not a whole number"),
    "a lonely sign": (spoiled({14: "-"}), "field 14: not a whole number"),
    "a plus": (spoiled({3: "+1"}), "field 3: not a whole number"),
    "a space": (spoiled({3: " 1"}), "field 3: not a whole number"),
    "a fraction": (spoiled({3: "1.05"}), "field 3: not a whole number"),
    "a huge number": (spoiled({2: "2147483648"}), "field 2: a number that does not fit"),
    "a huge negative number": (spoiled({2: "-2147483649"}), "field 2: a number that does not fit"),
    "an endless number": (spoiled({2: "9" * 40}), "field 2: a number that does not fit"),
    "a letter beyond f": (spoiled({15: "0000abcg"}), "field 15: not a hexadecimal hash"),
    "a byte between 9 and a": (spoiled({15: "0000:bcd"}), "field 15: not a hexadecimal hash"),
    "nine digits": (spoiled({40: "0000abcd1"}), "field 40: a hash of more than 8 digits"),
    "a NUL": (spoiled({20: "\0\0\0\0\0\0\0\0"}), "field 20: not a hexadecimal hash"),
    "an empty line": ("", "field 1: an empty line"),
    "a lonely carriage return": (spoiled({40: "0000abcd\r"}) + "\t", "field 40: "),
    "commas": (GOOD[0].replace("\t", ","), "field 1: "),
    "not ASCII": (spoiled({30: "0000abc\u00e9"}), "field 30: not a hexadecimal hash"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_stops_and_is_named(tmp_path: Path, name: str) -> None:
    line, message = BAD[name]
    path = tmp_path / "train.txt"
    path.write_bytes("\n".join([*GOOD[:30], line, *GOOD[30:]]).encode() + b"\n")
    with pytest.raises(DataError, match="line 31, ") as caught:
        prepared([path], tmp_path / "out")
    assert message in str(caught.value)


def test_skipping_leaves_the_good_rows_and_their_counts(tmp_path: Path) -> None:
    mixed = [line for pair in zip(GOOD, [line for line, _ in BAD.values()], strict=False) for line in pair]
    good = mixed[::2]
    (tmp_path / "mixed.txt").write_text("\n".join(mixed) + "\n")
    (tmp_path / "good.txt").write_text("\n".join(good) + "\n")
    skipped = prepared([tmp_path / "mixed.txt"], tmp_path / "mixed", bad_rows="skip")
    clean = prepared([tmp_path / "good.txt"], tmp_path / "good")
    assert skipped.digest() == clean.digest()
    assert skipped.columns == clean.columns
    assert skipped.settings["bad_lines"] == len(BAD)
    first = skipped.settings["first_bad_lines"]
    assert isinstance(first, list)
    assert len(first) == 10
    assert "line 2, field 39" in str(first[0])


def test_quarantine_keeps_bad_lines_as_they_were(tmp_path: Path) -> None:
    bad = [line for line, _ in BAD.values()]
    path = tmp_path / "train.txt"
    path.write_bytes("\n".join([*bad[:5], *GOOD, *bad[5:]]).encode() + b"\n")
    prepared([path], tmp_path / "out", bad_rows="quarantine")
    assert (tmp_path / "out" / "bad-rows.txt").read_bytes() == ("\n".join(bad) + "\n").encode()


def test_more_bad_rows_than_allowed_stop(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("\n".join([*GOOD, *["x"] * 5]) + "\n")
    with pytest.raises(DataError, match="5 bad rows, more than --max-bad-rows 4"):
        prepared([path], tmp_path / "out", bad_rows="skip", max_bad_rows=4)
    prepared([path], tmp_path / "enough", bad_rows="skip", max_bad_rows=5)


def test_many_bad_lines_in_one_block_are_all_counted(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("x\n" * 1000 + "\n".join(GOOD) + "\n")
    manifest = prepared([path], tmp_path / "out", bad_rows="skip", block_bytes=1 << 16)
    assert manifest.settings["bad_lines"] == 1000
    assert sum(manifest.num_rows(part) for part in manifest.parts) == len(GOOD)


def test_lines_are_counted_in_each_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("\n".join(GOOD))
    (tmp_path / "b").write_text("\n".join([*GOOD, "x"]))
    with pytest.raises(DataError, match="b, line 41, field 1"):
        prepared([tmp_path / "a", tmp_path / "b"], tmp_path / "out", split="last-file")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DataError, match="not a single row"):
        prepared([tmp_path / "empty"], tmp_path / "out")


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\1" * 3_000_000)
    with pytest.raises(DataError, match="a line of more than"):
        prepared([tmp_path / "binary"], tmp_path / "out")


def test_one_row_makes_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "one").write_text(GOOD[0])
    prepared([tmp_path / "one"], tmp_path / "out")
    assert rows_of(tmp_path / "out", "train")[0].tolist() == [float(GOOD[0][0])]
