"""What `predict` refuses and says, bad rows under each policy, and files that are whole or not there."""

import io
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from commands import dqrm_cpu
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.predictions.writers import predictions_to
from dqrm_cpu.data.store.copying import Target
from dqrm_cpu.data.store.stored_rows import StoredRows
from dqrm_cpu.errors import ConfigError, DataError, TrainingError
from dqrm_cpu.predict.prediction import PredictRequest, predict
from launching import clean_environ
from prestart import python
from scoring import NAMES, Scored, scored_run, succeed
from test_predict_rows import predicted, read_csv, write_lines


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return scored_run(tmp_path_factory.mktemp("scored"))


@pytest.fixture
def raw(scored: Scored, tmp_path: Path) -> Path:
    return write_lines(tmp_path / "raw.tsv", scored.lines)


def refused(*arguments: object, status: int = 1) -> str:
    output = dqrm_cpu("predict", *arguments)
    assert output.returncode == status, output.stderr
    assert "Traceback" not in output.stderr
    return output.stderr


def test_mistakes_with_the_output_are_named_first(scored: Scored, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("mine")
    for out, words in (
        (tmp_path / "there.csv", "exists; give another name, or --overwrite"),
        (tmp_path / "out.txt", "give it one of these suffixes"),
        (tmp_path / "none" / "out.csv", f"there is no folder {tmp_path / 'none'}"),
        (tmp_path, "give it one of these suffixes"),
    ):
        assert words in refused(tmp_path / "no-run", raw, "--out", out, status=2)
    assert (tmp_path / "there.csv").read_text() == "mine"
    options = ("--out", tmp_path / "there.csv", "--overwrite")
    assert "is an input too" in refused(scored.run_dir, tmp_path / "there.csv", *options, status=2)
    succeed("predict", scored.run_dir, raw, "--out", tmp_path / "there.csv", "--overwrite")
    assert (tmp_path / "there.csv").read_text().startswith("probability\n")


def test_a_file_that_a_folder_or_pattern_stands_for_is_neither_replaced_nor_scored_twice(
    scored: Scored, tmp_path: Path
) -> None:
    folder, text = tmp_path / "logs", "\n".join([*scored.lines[:9], ""])
    folder.mkdir()
    (folder / "day.csv").write_text(text)
    for name in (folder, folder / "*.csv"):
        said = refused(scored.run_dir, name, "--out", folder / "day.csv", "--overwrite", status=2)
        assert "is an input too" in said
        assert "named twice" in refused(scored.run_dir, name, folder / "day.csv", "--out", tmp_path / "o.csv", status=2)
    assert (folder / "day.csv").read_text() == text
    assert not (tmp_path / "o.csv").exists()


def test_rates_that_were_changed_after_training_are_refused(scored: Scored, raw: Path, tmp_path: Path) -> None:
    """They would move all probabilities; `evaluate` refuses them too."""
    run_dir = shutil.copytree(scored.run_dir, tmp_path / "run")
    settings = run_dir / "config.toml"
    settings.write_text(settings.read_text().replace("negative_keep_rate = 1.0", "negative_keep_rate = 0.1"))
    assert "data.negative_keep_rate 1.0 there, 0.1 now" in refused(run_dir, raw, "--out", tmp_path / "out.csv")


def test_mistakes_with_model_and_input_are_named(scored: Scored, raw: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out.csv")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'none'} is not there; first name the model" in refused(tmp_path / "none", raw, *out, status=2)
    assert "is a data set; first name the model" in refused(scored.data, raw, *out, status=2)
    assert "holds no run" in refused(tmp_path / "empty", raw, *out, status=2)
    assert "cannot be read" in refused(scored.run_dir, tmp_path / "none", *out)
    assert "a raw file is named twice" in refused(scored.run_dir, raw, raw, *out, status=2)
    assert "scored alone" in refused(scored.run_dir, raw, scored.data, *out, status=2)
    assert "has no keys" in refused(scored.run_dir, scored.data, "--keys", "a", *out, status=2)
    assert "leave out --data" in refused(scored.run_dir, scored.data, "--data", scored.data, *out, status=2)
    assert "raw rows have no parts" in refused(scored.run_dir, raw, "--part", "test", *out, status=2)
    assert "holds no manifest.json" in refused(scored.run_dir, raw, "--data", tmp_path / "empty", *out)
    assert "no checkpoint 'first'" in refused(scored.run_dir, raw, "--checkpoint", "first", *out)
    assert not (tmp_path / "out.csv").exists()


def test_columns_that_are_not_there_are_named(scored: Scored, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out.csv")
    text = [",".join(NAMES).replace("C7,", "C77,"), *(line.replace("\t", ",") for line in scored.lines)]
    missing = write_lines(tmp_path / "missing.csv", text)
    assert "has no column 'C7'; nearest is 'C77'" in refused(scored.run_dir, missing, *out)
    twice = write_lines(tmp_path / "twice.csv", [",".join(NAMES) + ",C7", *text[1:]])
    assert "has two columns 'C7'" in refused(scored.run_dir, twice, *out)
    good = write_lines(tmp_path / "good.csv", [",".join(NAMES), *text[1:]])
    assert "has no column 'user'" in refused(scored.run_dir, good, "--keys", "user", *out)
    long_name = write_lines(
        tmp_path / "long.csv", ["x" * 5000 + "," + ",".join(NAMES), *("0," + line for line in text[1:])]
    )
    assert f"there are {'x' * 60}..., " in refused(scored.run_dir, long_name, "--keys", "user", *out)
    packed = sorted((scored.run_dir / "packed").glob("*.safetensors"))
    assert len(packed) > 1
    assert f"{packed[1]} is a packed model, no input" in refused(*packed, good, *out, status=2)
    assert "name each once" in refused(scored.run_dir, good, "--keys", "label,label", *out, status=2)
    raw = write_lines(tmp_path / "raw.tsv", scored.lines)
    assert "the rows have no header" in refused(scored.run_dir, raw, "--keys", "label", *out)
    assert "has other columns than" in refused(scored.run_dir, good, raw, *out)
    keys, _ = read_csv(
        succeed("predict", scored.run_dir, good, "--keys", "label", *out) or (tmp_path / "out.csv").read_text()
    )
    assert keys == [(line[0],) for line in scored.lines]


@pytest.mark.parametrize("content", ["", "\n", "\n\n"])
def test_no_rows_are_an_error(scored: Scored, tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").write_text(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    for name in (tmp_path / "raw", "-"):
        options = ("--bad-rows", "skip", "--out", tmp_path / "out.csv")
        assert "there is not a single row to score" in refused(scored.run_dir, name, *options)
    header = write_lines(tmp_path / "header.csv", [",".join(NAMES)])
    assert "not a single row" in refused(scored.run_dir, header, "--out", tmp_path / "out.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["header.csv", "raw"]


def test_bad_rows_stop_or_are_left_out(
    scored: Scored, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dqrm_cpu.data.prepare.raw_rows._BLOCK_BYTES", 1 << 12)
    wanted = predicted(scored.run_dir, raw, out=tmp_path / "out.csv")
    lines = list(scored.lines)
    bad = [3, 4, 5, 60, len(lines) - 1]
    for k in bad:
        lines[k] = lines[k].replace("\t", "\t?", 1)
    broken, out = write_lines(tmp_path / "broken.tsv", lines), tmp_path / "broken.csv"
    message = refused(scored.run_dir, broken, "--out", out)
    assert f"{broken}, line 4, field 2: not a whole number" in message
    assert "--bad-rows skip" in message and "--bad-rows quarantine" in message
    assert not out.exists()
    output = dqrm_cpu("predict", scored.run_dir, broken, "--bad-rows", "skip", "--out", out)
    assert output.returncode == 0
    assert f"5 left out\n            {broken}, lines 4-6, 61, {len(lines)}\n" in output.stderr
    kept = np.delete(wanted, bad)
    np.testing.assert_allclose(read_csv(out.read_text())[1], kept, rtol=1e-6, atol=1e-8)
    options = ("--bad-rows", "skip", "--max-bad-rows", 4, "--out", tmp_path / "few.csv")
    assert "5 bad rows, more than --max-bad-rows 4" in refused(scored.run_dir, broken, *options)
    assert not (tmp_path / "few.csv").exists()


def test_bad_rows_are_kept_as_they_were(scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dqrm_cpu.data.prepare.raw_rows._BLOCK_BYTES", 1 << 12)
    broken, out, kept = tmp_path / "broken.tsv", tmp_path / "out.csv", tmp_path / "out.csv.bad-rows.txt"
    lines = [line.encode() for line in scored.lines]
    bad = {k: lines[k].replace(b"\t", b"\t\xff", 1) for k in (4, 5, len(lines) - 1)}
    bad |= {9: b"", 60: lines[60] + b"\tmore"}
    broken.write_bytes(b"\n".join(bad.get(k, line) for k, line in enumerate(lines)))
    quarantine = ("--bad-rows", "quarantine", "--out", out)
    output = dqrm_cpu("predict", scored.run_dir, broken, *quarantine, "--workers", 3)
    assert output.returncode == 0
    assert f"5 left out, kept in {kept}\n" in output.stderr
    assert kept.read_bytes() == b"".join(bad[k] + b"\n" for k in sorted(bad))
    wanted = np.delete(scored.probabilities, list(bad))
    np.testing.assert_allclose(read_csv(out.read_text())[1], wanted, rtol=1e-6, atol=1e-8)
    # Neither replaced, nor scored into itself, nor left from earlier predictions.
    out.unlink()
    good = write_lines(tmp_path / "good.tsv", scored.lines)
    assert f"{kept}, where bad rows are kept, exists" in refused(scored.run_dir, good, *quarantine, status=2)
    assert "is an input too" in refused(scored.run_dir, kept, *quarantine, "--overwrite", status=2)
    many = refused(scored.run_dir, broken, *quarantine, "--overwrite", "--max-bad-rows", 4)
    assert "5 bad rows, more than --max-bad-rows 4" in many
    assert len(kept.read_bytes().splitlines()) == len(bad)
    succeed("predict", scored.run_dir, good, *quarantine, "--overwrite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.tsv", "good.tsv", "out.csv"]
    with pytest.raises(ConfigError, match="standard output is none; give --out FILE, or --bad-rows skip"):
        predict(PredictRequest(scored.run_dir, (str(good),), io.BytesIO(), bad_rows="quarantine"))
    assert "without lines to keep" in refused(scored.run_dir, scored.data, *quarantine, "--overwrite", status=2)


def test_prepared_rows_that_are_not_sound_stop_or_are_left_out(
    scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spoiled(StoredRows):
        """Rows of which number 7 has a NaN."""

        def copy(self, first: np.ndarray, num_rows: np.ndarray, at: np.ndarray, target: Target) -> None:
            super().copy(first, num_rows, at, target)
            if first[0] <= 7 < first[0] + num_rows[0]:
                target.dense[at[0] + 7 - first[0], 4] = np.nan

    monkeypatch.setattr("dqrm_cpu.predict.scorer.StoredRows", Spoiled)
    arguments = (scored.run_dir, scored.data, "--part", "validation", "--out", tmp_path / "out.csv")
    message = refused(*arguments)
    assert "row 7 of the validation rows" in message and "--bad-rows skip" in message
    output = dqrm_cpu("predict", *arguments, "--bad-rows", "skip")
    assert (output.returncode, f"{scored.data}, validation row 7\n" in output.stderr) == (0, True)
    kept = np.delete(scored.probabilities, 7)
    np.testing.assert_allclose(read_csv((tmp_path / "out.csv").read_text())[1], kept, rtol=1e-6, atol=1e-8)
    few = ("--bad-rows", "skip", "--max-bad-rows", 0, "--overwrite")
    assert "1 bad rows, more than --max-bad-rows 0" in refused(*arguments, *few)


def test_keys_that_are_no_utf_8_go_to_csv_as_they_are(scored: Scored, tmp_path: Path) -> None:
    text = ["\t".join(["id", *NAMES[1:]]), *(f"\xe9{line[1:]}" for line in scored.lines)]
    raw = tmp_path / "raw.tsv"
    raw.write_bytes("\n".join(text).encode("latin-1"))
    message = refused(scored.run_dir, raw, "--keys", "id", "--out", tmp_path / "out.parquet")
    assert "a key is no text in UTF-8" in message
    succeed("predict", scored.run_dir, raw, "--keys", "id", "--out", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes().splitlines()[1].startswith(b"\xe9,0.")
    assert not (tmp_path / "out.parquet").exists()


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    for name in ("out.csv", "out.parquet"):
        with pytest.raises(DataError, match="on the way"), predictions_to(tmp_path / name, ()) as writer:
            writer.write((), np.full(1 << 19, 0.5, np.float32))
            raise DataError("on the way")
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_cannot_be_scored_end_it(
    scored: Scored, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the only scorer has failed once already, and other blocks wait for it."""

    class Diverged:
        def logits(self, batch: Batch) -> np.ndarray:
            raise TrainingError("its training has diverged")

    monkeypatch.setattr("dqrm_cpu.data.prepare.raw_rows._BLOCK_BYTES", 1 << 13)
    monkeypatch.setattr("dqrm_cpu.predict.scorer.load_scorer", lambda *_: Diverged())
    with pytest.raises(TrainingError, match="diverged"):
        predict(PredictRequest(scored.run_dir, (str(raw),), tmp_path / "out.csv"))
    assert list(tmp_path.iterdir()) == [raw]


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_leaves_nothing_under_the_name(
    scored: Scored, tmp_path: Path, name: str, number: signal.Signals
) -> None:
    """It waits for the rest of standard input when it is killed, with rows written."""
    out = tmp_path / name
    environ = clean_environ()
    command = [*python(environ), "-m", "dqrm_cpu", "predict", str(scored.run_dir), "-", "--out", str(out)]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        text = "".join(f"{line}\n" for line in scored.lines).encode()
        process.stdin.write(text * ((16 << 20) // len(text)))
        process.stdin.flush()
        while not list(tmp_path.glob(".writing-*")):
            assert process.poll() is None
        process.send_signal(number)
        process.wait(timeout=60)  # standard input is still open
        _, errors = process.communicate()
    assert not out.exists()
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number
        assert b"stopped by SIGTERM" in errors and b"Traceback" not in errors
        assert list(tmp_path.iterdir()) == []
    else:
        assert len(list(tmp_path.glob(f".writing-{name}.*"))) == 1
        (tmp_path / f".writing-{name}.bad-rows.txt.1").write_text("half")
        raw = write_lines(tmp_path / "raw.tsv", scored.lines)
        succeed("predict", scored.run_dir, raw, "--out", out, "--bad-rows", "quarantine")
        assert sorted(path.name for path in tmp_path.iterdir()) == [name, "raw.tsv"]
