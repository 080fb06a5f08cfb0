"""A run as a file of so many bytes: every reader scores the rows that the file has, and says what it left out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from serving_process import serving

from banded_models import plain_tables
from days import COLUMNS, SMALL, clicks_of_day
from days import SCHEMA as DAY_SCHEMA
from dqrm_cpu import predict
from dqrm_cpu.cli.main import main
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import vocabulary_of
from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.errors import CheckpointError, ConfigError, DataError
from dqrm_cpu.export.onnx_graph import require_whole_codes
from dqrm_cpu.export.packed_model import read_packed, verify_packed
from dqrm_cpu.predict import banded_export
from dqrm_cpu.predict.banded_export import BandedFiles, export_in_bands
from dqrm_cpu.predict.exporting import ExportRequest, export, found_run
from dqrm_cpu.predict.scorer import Scorer, load_weights, prepared_rows, sound_batches
from dqrm_cpu.predict.trained_model import find_model
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.model import Model, read_description
from scoring import probabilities_of, succeed
from test_predict_rows import predicted

pytestmark = pytest.mark.long  # tests/export/test_bands.py writes such files and reads them, without a run
SCHEMA = DAY_SCHEMA + '[transforms]\nhour = "buckets:5"\n[multi]\nuser = { separator = "|", limit = 2 }\n'
ROWS = 900


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on rows with a bag and a column of buckets, beside its log, its data set and its file with all rows."""
    folder = tmp_path_factory.mktemp("bands")
    lines = [f"{line}|user-{k % 17}" for k, line in enumerate(clicks_of_day(1, ROWS))]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    (folder / "schema.toml").write_text(SCHEMA)
    data = folder / "data"
    succeed(
        *("prepare", folder / "log.csv", "--schema", folder / "schema.toml", "--out", data),
        *("--split", "last-seventh"),
    )
    options = ("--kernels", "torch", "--train.learning-rate", 0.3)
    succeed("train", "--data", data, "--run-dir", folder / "run", *SMALL, *options)
    export(ExportRequest(folder / "run", folder / "run" / "model.safetensors"))
    return folder / "run"


@pytest.fixture(scope="module")
def banded(run: Path) -> BandedFiles:
    sizes = [share * (run / "model.safetensors").stat().st_size // 10 for share in (7, 8, 9)]
    outs = [run / f"{size}.safetensors" for size in sizes]
    return export_in_bands(ExportRequest(run, outs[0]), sizes, outs)


def expected_logits(run: Path, path: Path) -> np.ndarray:
    """Those that the trainer's own forward gives for the validation rows, with the rows that the file has."""
    data = run.parent / "data"
    manifest, whole = read_manifest(data), find_model(run / "packed" / "dense.safetensors")
    model, scale = load_weights(whole)
    tensors, tables = load_file(path), plain_tables(path)
    for t, (weight, keys) in enumerate(zip(model.groups.weights, vocabulary_of(data, manifest).keys, strict=True)):
        rows = np.zeros(len(weight), np.int64)
        if f"C{t + 1}.keys" in tensors:
            its = dict(zip(tensors[f"C{t + 1}.keys"].tolist(), tensors[f"C{t + 1}.rows"].tolist(), strict=True))
            rows[1:] = [its.get(key, 0) for key in keys.tolist()]
        else:
            rows[:] = np.arange(len(weight))
        weight.copy_(torch.from_numpy(tables[t][rows]))
    loader = prepared_rows(data, manifest, "validation")
    found = [logits for _, logits, _ in sound_batches(Scorer(model, scale, quantized=False), loader, False)]
    return np.concatenate(found)


def validation_lines(run: Path, count: int) -> list[str]:
    rows = read_manifest(run.parent / "data")
    lines = (run.parent / "log.csv").read_text().splitlines()
    first = len(lines) - rows.num_rows("validation")
    return lines[first : first + count]


def test_all_ways_to_score_give_the_logits_of_the_rows_in_the_file(
    run: Path, banded: BandedFiles, tmp_path: Path
) -> None:
    path, data = banded.files[1].path, run.parent / "data"
    expected = probabilities_of(expected_logits(run, path))
    prepared = np.asarray(predict(path, data, part="validation"))
    np.testing.assert_allclose(prepared, expected, rtol=0, atol=1e-5)
    lines = validation_lines(run, len(expected))
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    np.testing.assert_allclose(
        predicted(path, tmp_path / "rows.csv", out=tmp_path / "raw.csv"), expected, rtol=0, atol=1e-5
    )
    names = ["click", "hour", "age", *COLUMNS]
    rows = [dict(zip(names[1:], line.split(",")[1:], strict=True)) for line in lines[:40]]
    for fused in (False, True):
        np.testing.assert_allclose(Model.open(path, fused=fused).predict(rows), expected[:40], rtol=0, atol=1e-5)
    with serving(path) as server:
        status, found = server.json("POST", "/predict", {"rows": rows})
    assert status == 200, found
    np.testing.assert_allclose(found["probabilities"], expected[:40], rtol=0, atol=1e-5)


def test_a_front_keeps_its_budgets_and_its_order(run: Path, banded: BandedFiles) -> None:
    for file in banded.files:
        assert file.path.stat().st_size == file.num_bytes <= file.budget
        assert verify_packed(file.path).is_exported
        description = read_description(MappedFile(file.path))
        kept = sum(column.rows for column in description.categories)
        assert kept == sum(file.rows_by_bits.values()) == banded.rows - file.left_out
        assert file.tried[file.substitute] == min(file.tried.values()) == file.validation.log_loss
    by_substitute = {file.substitute for file in banded.files}
    errors = [file.estimated_error for file in banded.files]
    assert errors == sorted(errors, reverse=True) or len(by_substitute) > 1
    assert banded.whole_bytes == (run / "model.safetensors").stat().st_size
    again = run / "again.safetensors"
    file = banded.files[0]
    export_in_bands(ExportRequest(run, again, overwrite=True), [file.budget], [again])
    assert again.read_bytes() == file.path.read_bytes()


def test_commands_say_what_a_file_in_bands_is(
    run: Path, banded: BandedFiles, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    size, path = banded.files[1].budget, tmp_path / "model.safetensors"
    assert main(["export", str(run), "--budget", f"{size},{size + 500}", "--out", str(path)]) == 0
    output = capsys.readouterr()
    assert "validation rows" in output.out
    assert (tmp_path / f"model-{size}.safetensors").read_bytes() == banded.files[1].path.read_bytes()
    assert main(["evaluate", str(banded.files[1].path), "--part", "validation", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["log_loss"] == pytest.approx(banded.files[1].validation.log_loss, abs=1e-6)
    assert main(["verify", str(banded.files[1].path), "--against", str(run), "--json", "--part", "validation"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)["files"]
    assert verdict["runtime"] == "dqrm_cpu.serving, in bands"
    assert verdict["auc"] == pytest.approx(banded.files[1].validation.auc, abs=1e-6)
    assert main(["compress", "--verify", str(path.with_name(f"model-{size}.safetensors"))]) == 0
    assert "in bands" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--budget", "1kB"), "the smallest file of this model has"),
        (("--budget", "20 apples"), "is no size"),
        (("--budget", "1MB,1.0MB"), "a size twice"),
        (("--budget", "1MB", "--layout", "sparse"), "leave out --layout sparse"),
        (("--budget", "1MB", "--calibrate", "platt"), "do not go together"),
        (("--budget", "1MB", "--format", "onnx"), "makes packed files"),
    ],
)
def test_what_cannot_be_in_bands_is_refused(
    run: Path, options: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    suffix = ".onnx" if "onnx" in options else ".safetensors"
    try:
        status = main(["export", str(run), *options, "--out", str(tmp_path / f"model{suffix}")])
    except SystemExit as error:
        status = int(str(error.code))
    assert status != 0
    assert why in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_readers_of_whole_tables_refuse_bands_by_name(run: Path, banded: BandedFiles) -> None:
    trained = find_model(banded.files[0].path)
    with pytest.raises(CheckpointError, match="has rows in bands"):
        load_weights(trained)
    about = read_packed(banded.files[0].path)
    assert about.layout == "bands"
    assert about.config.model.table_rows == find_model(run).config.model.table_rows
    file = MappedFile(banded.files[0].path)
    with pytest.raises(ConfigError, match="leave out --budget"):
        require_whole_codes(file, read_description(file), "ONNX files")


@pytest.mark.parametrize(
    "options",
    [("--quant.method", "none"), ("--quant.method", "lsq"), ("--ensemble", "2"), ("--quant.target-alive", 0.5)],
)
def test_other_runs_have_bands_too(run: Path, tmp_path: Path, options: tuple[object, ...]) -> None:
    data, out = run.parent / "data", tmp_path / "model.safetensors"
    more = ("--kernels", "torch", "--train.learning-rate", 0.3)
    succeed("train", "--data", data, "--run-dir", tmp_path / "run", *SMALL, *more, *options)
    export(ExportRequest(tmp_path / "run", tmp_path / "whole.safetensors"))
    size = (tmp_path / "whole.safetensors").stat().st_size * 2
    found = export_in_bands(ExportRequest(tmp_path / "run", out), [size], [out])
    (file,) = found.files
    # In as many bytes as it wants nothing is lost but ids that no training row has.
    assert file.validation.log_loss == pytest.approx(found.whole.log_loss, abs=5e-3)
    assert file.cells_left_out < 1e-9
    assert (8 in file.rows_by_bits) or file.substitute == "unseen"


def test_hashed_ids_keep_their_rows(run: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "model.safetensors"
    log, schema = run.parent / "log.csv", run.parent / "schema.toml"
    succeed(
        "prepare",
        log,
        "--schema",
        schema,
        "--out",
        data,
        "--split",
        "last-seventh",
        "--vocabulary",
        "hash",
        "--hash-rows",
        300,
    )
    more = ("--kernels", "torch", "--train.learning-rate", 0.3)
    succeed("train", "--data", data, "--run-dir", tmp_path / "run", *SMALL, *more)
    export(ExportRequest(tmp_path / "run", tmp_path / "whole.safetensors"))
    size = (tmp_path / "whole.safetensors").stat().st_size
    (file,) = export_in_bands(ExportRequest(tmp_path / "run", out), [size - 100], [out]).files
    assert (file.left_out, set(file.rows_by_bits)) == (0, {2, 4})
    prepared = np.asarray(predict(out, data, part="validation"))
    lines = validation_lines(run, len(prepared))
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    np.testing.assert_allclose(predicted(out, tmp_path / "rows.csv", out=tmp_path / "raw.csv"), prepared, atol=1e-6)


def test_a_run_without_validation_rows_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    found = found_run(ExportRequest(run, out))
    manifest = replace(found.manifest, parts={**found.manifest.parts, "validation": ()})
    monkeypatch.setattr(banded_export, "found_run", lambda _: found._replace(manifest=manifest))
    with pytest.raises(DataError, match="has no validation rows"):
        export_in_bands(ExportRequest(run, out), [10**6], [out])
