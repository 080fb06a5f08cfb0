"""An ensemble in one file: every reader gives the mean of its members, and no file can lie about how many they are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from runtimes import openvino
from serving_process import serving

from commands import dqrm_cpu
from days import COLUMNS, SMALL, prepare_day, write_day
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export.packed_model import read_packed, verify_packed
from dqrm_cpu.export.safetensors_writer import whole, write_tensors
from dqrm_cpu.predict.exporting import ExportRequest, export
from dqrm_cpu.predict.trained_model import find_model
from dqrm_cpu.serving.description import MODEL
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.model import ENSEMBLE, SINGLE, Model
from preparing import rows_of
from scoring import evaluated_logits, probabilities_of, succeed
from test_predict_rows import predicted

METADATA = ("config", "layout", "identity")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of three beside the log that it was trained on and its data set, and its packed file."""
    folder = tmp_path_factory.mktemp("three")
    data = prepare_day(write_day(folder, 1, 700), folder / "data", "--split", "last-seventh")
    options = ("--ensemble", 3, "--kernels", "torch", "--train.learning-rate", 0.3)
    succeed("train", "--data", data, "--run-dir", folder / "run", *SMALL, *options)
    export(ExportRequest(folder / "run", folder / "run" / "model.safetensors"))
    return folder / "run"


@pytest.fixture(scope="module")
def wanted(run: Path) -> np.ndarray:
    """The mean of the logits of the validation rows, as each member by itself has them."""
    members = [evaluated_logits(run / "members" / str(number))[0] for number in (1, 2, 3)]
    assert np.abs(members[0] - members[1]).max() > 0.01
    mean: np.ndarray = np.mean(np.array(members, np.float64), axis=0).astype(np.float32)
    return mean


def packed(run: Path) -> Path:
    return run / "model.safetensors"


@pytest.mark.parametrize("fused", [False, True])
def test_a_packed_file_has_the_mean_of_its_members(fused: bool, run: Path, wanted: np.ndarray) -> None:
    model = Model.open(packed(run), verify=True, fused=fused)
    _, dense, ids = rows_of(run.parent / "data", "validation")
    found = model.logits_of_ids(dense, ids)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    alone = [model.logits_of_ids(dense[i : i + 1], ids[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(alone, found[:5], rtol=0, atol=0 if fused else 1e-6)
    assert model.description.members == 3


def test_the_run_and_its_file_predict_raw_rows_alike(run: Path, wanted: np.ndarray, tmp_path: Path) -> None:
    lines = (run.parent / "day-1.csv").read_text().splitlines()
    raw = tmp_path / "rows.csv"
    raw.write_text("\n".join(lines[-len(wanted) :]) + "\n")
    for model in (run, packed(run)):
        found = predicted(model, raw, out=tmp_path / "out.csv")
        np.testing.assert_allclose(found, probabilities_of(wanted), rtol=0, atol=1e-5)


def test_a_server_answers_what_predict_answers(run: Path, wanted: np.ndarray, tmp_path: Path) -> None:
    lines = (run.parent / "day-1.csv").read_text().splitlines()[-50:]
    raw = tmp_path / "rows.csv"
    raw.write_text("\n".join(lines) + "\n")
    names = ["click", "hour", "age", *COLUMNS]
    rows = [dict(zip(names[1:], line.split(",")[1:], strict=True)) for line in lines]
    with serving(packed(run)) as server:
        status, found = server.json("POST", "/predict", {"rows": rows})
    assert status == 200, found
    expected = predicted(packed(run), raw, out=tmp_path / "out.csv")
    np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-6)
    np.testing.assert_allclose(expected, probabilities_of(wanted[-50:]), rtol=0, atol=1e-5)


def test_openvino_reads_the_graph_of_an_ensemble(run: Path, wanted: np.ndarray, tmp_path: Path) -> None:
    succeed("export", run, "--format", "onnx", "--out", tmp_path / "model.onnx")
    _, dense, ids = rows_of(run.parent / "data", "validation")
    found = openvino(tmp_path / "model.onnx", dense, ids)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_vocabulary_is_written_once(run: Path) -> None:
    single = run.parent / "single.safetensors"
    export(ExportRequest(run / "members" / "1", single))
    one, three = MappedFile(single), MappedFile(packed(run))
    assert one.metadata["format"] == SINGLE
    assert three.metadata["format"] == ENSEMBLE
    shared = [name for name in one.entries if name.endswith((".keys", ".rows"))]
    assert shared
    assert len(three.entries) == 3 * (len(one.entries) - len(shared)) + len(shared)
    assert verify_packed(packed(run)).stored_rows == 3 * read_packed(single).stored_rows


def test_layouts_and_calibrations_of_an_ensemble(run: Path, wanted: np.ndarray, tmp_path: Path) -> None:
    _, dense, ids = rows_of(run.parent / "data", "validation")
    export(ExportRequest(run, tmp_path / "sparse.safetensors", layout="sparse"))
    sparse = Model.open(tmp_path / "sparse.safetensors", fused=False)
    np.testing.assert_allclose(sparse.logits_of_ids(dense, ids), wanted, rtol=0, atol=1e-5)
    export(ExportRequest(run, tmp_path / "platt.safetensors", calibrate="platt"))
    platt = Model.open(tmp_path / "platt.safetensors", fused=False)
    calibration = platt.description.calibration
    assert calibration is not None
    found = platt.logits_of_ids(dense, ids)
    np.testing.assert_allclose(found, calibration.first[0] * wanted + calibration.second[0], rtol=0, atol=1e-5)


def test_verify_compares_files_of_an_ensemble_with_it(run: Path, tmp_path: Path) -> None:
    others = tmp_path / "model.onnx", tmp_path / "model.xml"
    for of_format, path in zip(("onnx", "openvino"), others, strict=True):
        succeed("export", run, "--format", of_format, "--out", path)
    document = json.loads(succeed("verify", packed(run), *others, "--against", run, "--json"))
    assert document["passed"]
    runtimes = {one["runtime"].split()[0]: one["largest_logit_difference"] for one in document["files"]}
    assert runtimes.keys() == {"dqrm_cpu.serving", "ONNX", "OpenVINO"}
    exact = [one["largest_logit_difference"] for one in document["files"] if "bf16" not in one["runtime"]]
    assert len(exact) >= 3
    assert max(exact) < 1e-5
    one_member = dqrm_cpu("verify", packed(run), "--against", run / "members" / "1", "--json")
    assert one_member.returncode == 1


def rewritten(run: Path, path: Path, members: int, version: str, without: str = "nothing") -> Path:
    """Writes the file again with another number of members, with the checksums of what it holds then."""
    file = MappedFile(packed(run))
    document = {**json.loads(file.metadata[MODEL]), "members": members}
    kept = {name: entry for name, entry in file.entries.items() if not name.startswith(without)}
    tensors = [whole(name, file.tensor(name, entry.dtype, entry.shape)) for name, entry in kept.items()]
    about = {key: file.metadata[key] for key in METADATA}
    write_tensors(path, tensors, {**about, "format": version, MODEL: json.dumps(document)})
    return path


@pytest.mark.parametrize(
    ("members", "version", "without", "words"),
    [
        (4, ENSEMBLE, "nothing", "4 members, its tensors are of another number"),
        (2, ENSEMBLE, "nothing", "2 members, its tensors are of another number"),
        (3, ENSEMBLE, "member2.", "3 members, its tensors are of another number"),
        (3, ENSEMBLE, "member3.C2.codes", "lacks"),
        (1, SINGLE, "nothing", "1 members, its tensors are of another number"),
        (1, ENSEMBLE, "nothing", "format 5, the layout dense and 1 members"),
        (3, SINGLE, "nothing", "format 3, the layout dense and 3 members"),
        (0, ENSEMBLE, "nothing", "0 members"),
        (10**9, ENSEMBLE, "nothing", "1,000,000,000 members"),
        (-1, ENSEMBLE, "nothing", "'-1' as members"),
    ],
)
def test_a_file_that_lies_about_its_members_is_refused(
    members: int, version: str, without: str, words: str, run: Path, tmp_path: Path
) -> None:
    path = rewritten(run, tmp_path / "model.safetensors", members, version, without)
    for read in (Model.open, read_packed):
        with pytest.raises(CheckpointError, match=words):
            read(path)


def test_the_file_is_sound_where_nothing_is_changed(run: Path, tmp_path: Path) -> None:
    """A file that is rewritten without a lie is read: the test above sees the lie refused, not the rewriting."""
    path = rewritten(run, tmp_path / "model.safetensors", 3, ENSEMBLE)
    assert Model.open(path, verify=True).description.members == read_packed(path).members == 3


def test_members_of_other_data_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent, tmp_path / "copy")
    other = prepare_day(write_day(tmp_path / "other", 2, 300), tmp_path / "other" / "data", "--split", "last-seventh")
    member = tmp_path / "copy" / "run" / "members" / "2"
    shutil.rmtree(member)
    succeed("train", "--data", other, "--run-dir", member, *SMALL, "--kernels", "torch")
    with pytest.raises(CheckpointError, match=r"members/2.* other data"):
        find_model(tmp_path / "copy" / "run")
