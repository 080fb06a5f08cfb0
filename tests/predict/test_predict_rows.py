"""`predict`: the probabilities of `evaluate` in the order of the rows, whatever form these have."""

import csv
import gzip
import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dqrm_cpu.cli.main import main
from scoring import NAMES, Scored, scored_run, succeed


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return scored_run(tmp_path_factory.mktemp("scored"))


def predicted(model: Path, *arguments: object, out: Path) -> np.ndarray:
    succeed("predict", model, *arguments, "--out", out, "--overwrite")
    return read_csv(out.read_text())[1]


def read_csv(text: str) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Keys and probabilities."""
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header[-1] == "probability"
    return [tuple(row[:-1]) for row in rows], np.array([float(row[-1]) for row in rows])


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def without_label(lines: list[str]) -> list[str]:
    return [line.partition("\t")[2] for line in lines]


def test_raw_rows_get_what_evaluate_gives_the_prepared_ones(scored: Scored, tmp_path: Path) -> None:
    found = predicted(scored.run_dir, write_lines(tmp_path / "raw", scored.lines), out=tmp_path / "out.csv")
    np.testing.assert_allclose(found, scored.probabilities, rtol=1e-6, atol=1e-8)
    assert np.ptp(found) > 0.05


def test_prepared_rows_do_too(scored: Scored, tmp_path: Path) -> None:
    found = predicted(scored.run_dir, scored.data, "--part", "validation", out=tmp_path / "out.csv")
    np.testing.assert_allclose(found, scored.probabilities, rtol=1e-6, atol=1e-8)
    whole = predicted(scored.run_dir, scored.data, out=tmp_path / "all.csv")
    assert whole.size == 1400
    held_out = whole[1200 : 1200 + found.size]
    np.testing.assert_array_equal(held_out, found)


@pytest.mark.parametrize("label", ["present", "missing", "nonsense"])
def test_the_label_does_not_matter(scored: Scored, tmp_path: Path, label: str) -> None:
    lines = without_label(scored.lines)
    if label != "missing":
        lines = [f"{'?' if label == 'nonsense' else k % 2}\t{line}" for k, line in enumerate(lines)]
    found = predicted(scored.run_dir, write_lines(tmp_path / "raw", lines), out=tmp_path / "out.csv")
    np.testing.assert_allclose(found, scored.probabilities, rtol=1e-6, atol=1e-8)


def test_every_form_of_the_rows_gives_the_same(scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_lines(tmp_path / "rows.tsv", scored.lines)
    wanted = predicted(scored.run_dir, raw, out=tmp_path / "out.csv")
    cells = [line.split("\t") for line in scored.lines]
    shuffled = [NAMES.index(name) for name in ["C9", "I3", *(n for n in reversed(NAMES) if n not in ("C9", "I3"))]]
    sources: list[Path] = [tmp_path / name for name in ("rows.csv", "plain.csv", "rows.gz", "rows.parquet")]
    with sources[0].open("w", newline="") as file:  # a header, other columns between, another order, quotes
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow([*(NAMES[k] for k in shuffled), "note"])
        writer.writerows([*(row[k] for k in shuffled), 'a "b", c'] for row in cells)
    write_lines(sources[1], [line.replace("\t", ",") for line in scored.lines])
    sources[2].write_bytes(gzip.compress(raw.read_bytes()))
    columns = {name: [row[k] or None for row in cells] for k, name in enumerate(NAMES) if name != "label"}
    numbers = {name: pa.array([None if x is None else int(x) for x in columns[name]]) for name in NAMES[1:14]}
    pq.write_table(pa.table({**columns, **numbers}), sources[3])
    for source in sources:
        found = predicted(scored.run_dir, source, out=tmp_path / "other.csv")
        np.testing.assert_array_equal(found, wanted, err_msg=str(source))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw.read_bytes())))
    np.testing.assert_array_equal(predicted(scored.run_dir, "-", out=tmp_path / "other.csv"), wanted)


def test_several_files_are_one_after_the_other(scored: Scored, tmp_path: Path) -> None:
    parts = [scored.lines[:33], [], scored.lines[33:]]
    paths = [write_lines(tmp_path / f"{k}.tsv", part) for k, part in enumerate(parts)]
    found = predicted(scored.run_dir, *paths, out=tmp_path / "out.csv")
    np.testing.assert_allclose(found, scored.probabilities, rtol=1e-6, atol=1e-8)


def test_many_blocks_keep_the_order(scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with more rows in a block than are scored at a time, and any number of workers."""
    lines = scored.lines * 60
    raw = write_lines(tmp_path / "raw", lines)
    whole = predicted(scored.run_dir, raw, out=tmp_path / "out.csv")
    np.testing.assert_allclose(whole, np.tile(scored.probabilities, 60), rtol=1e-6, atol=1e-8)
    monkeypatch.setattr("dqrm_cpu.data.prepare.raw_rows._BLOCK_BYTES", 1 << 14)
    in_blocks = [predicted(scored.run_dir, raw, "--workers", n, out=tmp_path / "out.csv") for n in (1, 2, 5)]
    np.testing.assert_allclose(in_blocks[0], whole, rtol=1e-6, atol=1e-8)
    for found in in_blocks[1:]:
        np.testing.assert_array_equal(found, in_blocks[0])


def test_unseen_categories_are_those_of_row_0(scored: Scored, tmp_path: Path) -> None:
    cells = scored.lines[0].split("\t")
    rows = ["\t".join([*cells[:14], value, *cells[15:]]) for value in ("", "fffffff1", "fffffff2")]
    found = predicted(scored.run_dir, write_lines(tmp_path / "raw", rows), out=tmp_path / "out.csv")
    assert found[0] == found[1] == found[2]


def test_keys_stay_beside_their_rows(scored: Scored, tmp_path: Path) -> None:
    lines = ["\t".join(["user", *NAMES[1:], "request id"])]
    lines += [f'u"{k % 7}"\t{line}\tr,{k}' for k, line in enumerate(without_label(scored.lines))]
    raw = write_lines(tmp_path / "raw", lines)
    for names, wanted in (
        ("request id, user", [(f"r,{k}", f'u"{k % 7}"') for k in range(len(scored.lines))]),
        ("user", [(f'u"{k % 7}"',) for k in range(len(scored.lines))]),
        (
            "C9,user,I2",
            [(line.split("\t")[22], f'u"{k % 7}"', line.split("\t")[2]) for k, line in enumerate(scored.lines)],
        ),
    ):
        succeed("predict", scored.run_dir, raw, "--keys", names, "--out", tmp_path / "out.csv", "--overwrite")
        keys, found = read_csv((tmp_path / "out.csv").read_text())
        assert keys == wanted
        np.testing.assert_allclose(found, scored.probabilities, rtol=1e-6, atol=1e-8)


def test_features_may_be_keys_where_there_is_no_header(scored: Scored, tmp_path: Path) -> None:
    for lines in (scored.lines, without_label(scored.lines)):
        raw = write_lines(tmp_path / "raw", lines)
        succeed("predict", scored.run_dir, raw, "--keys", "C26,C1,I13", "--out", tmp_path / "out.csv", "--overwrite")
        keys, found = read_csv((tmp_path / "out.csv").read_text())
        cells = [line.split("\t")[-39:] for line in lines]
        assert keys == [(row[38], row[13], row[12]) for row in cells]
        np.testing.assert_allclose(found, scored.probabilities, rtol=1e-6, atol=1e-8)


def test_parquet_keeps_the_types_of_keys(scored: Scored, tmp_path: Path) -> None:
    cells = [line.split("\t") for line in scored.lines]
    columns = {name: [row[k] for row in cells] for k, name in enumerate(NAMES)}
    numbers = {name: [None if x == "" else int(x) for x in columns[name]] for name in NAMES[1:14]}
    ids = [10**15 + k for k in range(len(cells))]
    pq.write_table(pa.table({**columns, **numbers, "id": ids}), tmp_path / "rows.parquet")
    for name in ("out.parquet", "out.csv"):
        succeed("predict", scored.run_dir, tmp_path / "rows.parquet", "--keys", "id,I1", "--out", tmp_path / name)
    table = pq.read_table(tmp_path / "out.parquet")
    assert (table.column_names, table.column("id").to_pylist()) == (["id", "I1", "probability"], ids)
    assert table.column("I1").to_pylist() == numbers["I1"]
    keys, from_csv = read_csv((tmp_path / "out.csv").read_text())
    assert keys == [(str(number), row[1]) for number, row in zip(ids, cells, strict=True)]
    found = table.column("probability").to_numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(from_csv.astype(np.float32), found)


def test_standard_output_gets_csv(scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = write_lines(tmp_path / "raw", scored.lines), io.TextIOWrapper(io.BytesIO())
    predicted(scored.run_dir, raw, out=tmp_path / "out.csv")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert main(["predict", str(scored.run_dir), str(raw), "--out", "-"]) == 0
    out.seek(0)
    assert out.read() == (tmp_path / "out.csv").read_text()


def test_help_teaches() -> None:
    text = succeed("predict", "--help")
    for words in ("MODEL INPUT", "--keys", "--bad-rows", "request_id,user", "docs/predict.md"):
        assert words in text
