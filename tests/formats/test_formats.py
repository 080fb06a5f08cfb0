"""Files of earlier versions are read and score what they scored; those of newer ones are refused by name and number.

Each folder beside this file was written by the commit that it is named after; tests/write_formats.py says how.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dqrm_cpu.base.tensor_header import HEADER_CHECKSUM, NO_CHECKSUM, header_checksum, with_header_checksum
from dqrm_cpu.cli.main import main
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.data.source import open_data
from dqrm_cpu.export.packed_model import read_packed
from dqrm_cpu.export.read import load_packed
from dqrm_cpu.train.checkpoint_manifest import canonical
from dqrm_cpu.train.session import build_session, load_kernels
from tiny import CPU

HERE = Path(__file__).parent
COMMITS = sorted(path.parent.name for path in HERE.glob("*/scores.json"))
CLOSE = 1e-6
"""Sums round differently on other processors."""
GOES_ON_WITHIN = 1e-3
"""Of steps that are computed anew: rounding moves a code of INT4 here and there."""

Scores = Mapping[str, Mapping[str, float]]


class Written(NamedTuple):
    """A copy of what one version wrote, which may be changed, and what that version scored."""

    folder: Path
    scores: Scores


def copied(commit: str, folder: Path) -> Written:
    shutil.copytree(HERE / commit, folder)
    return Written(folder, json.loads((folder / "scores.json").read_text()))


@pytest.fixture(scope="module", params=COMMITS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return copied(request.param, tmp_path_factory.mktemp("formats") / request.param)


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The JSON that a command prints, which must succeed without a warning."""
    status = main([*map(str, arguments), "--json"])
    output = capsys.readouterr()
    assert (status, output.err) == (0, "")
    return json.loads(output.out)


def require_scores(found: Mapping[str, float], expected: Mapping[str, float], within: float = CLOSE) -> None:
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=within)


def test_there_are_files_of_two_versions() -> None:
    assert len(COMMITS) >= 2


def test_a_data_set_is_whole(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", str(written.folder / "data")]) == 0
    assert "is whole" in capsys.readouterr().out
    fingerprint = printed(capsys, "data", "show", written.folder / "data")["fingerprint"]
    environment = json.loads((written.folder / "dqrm" / "environment.json").read_text())
    assert environment["data"] == f"prepared {fingerprint}"


def test_a_vocabulary_numbers_new_rows(written: Written, tmp_path: Path) -> None:
    (tmp_path / "new.tsv").write_text("0\t30\t2\t7\ts1\ta1\tp1\tw1\n" * 3)
    options = ("--vocabulary", written.folder / "data", "--split", "none")
    assert prepare(tmp_path, *options) == 0
    sizes = [
        json.loads((folder / "manifest.json").read_text())["table_rows"]
        for folder in (written.folder / "data", tmp_path / "data")
    ]
    assert sizes[0] == sizes[1]


def prepare(folder: Path, *options: object) -> int:
    """Prepares new.tsv of that folder into its folder data."""
    schema = ("--schema", HERE / "schema.toml")
    return main(["prepare", *map(str, (folder / "new.tsv", *schema, "--out", folder / "data", *options))])


@pytest.mark.parametrize("which", ["best", "last"])
@pytest.mark.parametrize("run", ["dqrm", "lsq"])
def test_a_checkpoint_scores_what_it_scored(
    written: Written, run: str, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = printed(capsys, "evaluate", "--run-dir", written.folder / run, "--checkpoint", which)
    require_scores(found, written.scores[f"{run}:{which}"])


def test_a_run_goes_on_from_its_middle(written: Written, tmp_path: Path) -> None:
    """With optimizer state and what error feedback of two simulated ranks still owes."""
    folder = tmp_path / "dqrm"
    shutil.copytree(written.folder / "data", tmp_path / "data")
    shutil.copytree(written.folder / "dqrm", folder)
    rows = metrics_rows(folder)
    middle, *later = sorted((folder / "checkpoints").iterdir())
    assert middle.name == "step-000000012"
    for path in later:
        shutil.rmtree(path)
    (folder / "result.json").unlink()
    assert main(["train", "--run-dir", str(folder), "--resume", "auto"]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 24
    require_scores(result["test"]["last"], written.scores["dqrm:last"], GOES_ON_WITHIN)
    again = metrics_rows(folder)
    assert [row["step"] for row in again] == [row["step"] for row in rows]
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in rows], abs=GOES_ON_WITHIN)


def metrics_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_report_shows_runs_of_all_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One page, since most of its time goes into what it imports."""
    page, runs = tmp_path / "report.html", [f"{commit}/{run}" for commit in COMMITS for run in ("dqrm", "lsq")]
    assert main(["report", *(str(HERE / run) for run in runs), "--out", str(page)]) == 0
    assert "warning" not in capsys.readouterr().err
    text = page.read_text()
    for run in runs:
        scores = json.loads((HERE / run).with_name("scores.json").read_text())
        assert run in text
        assert f"{scores[f'{Path(run).name}:best']['auc']:.4f}" in text


@pytest.mark.parametrize("layout", ["dense", "sparse", "rowwise"])
def test_a_run_can_be_compressed(
    written: Written, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed.safetensors"
    found = printed(capsys, "compress", written.folder / "dqrm", "--layout", layout, "--out", out)
    name = "dqrm/compressed/rowwise.safetensors" if layout == "rowwise" else "dqrm:best"
    require_scores(found, written.scores[name])


def test_packed_files_score_what_they_scored(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in written.scores if name.endswith(".safetensors")]
    assert {Path(name).stem for name in names} == {"dense", "sparse", "rowwise"}
    for name in names:
        assert main(["compress", "--verify", str(written.folder / name)]) == 0
        require_scores(packed_scores(written.folder / name, written.folder / "data"), written.scores[name])


@pytest.mark.parametrize("folder", sorted(HERE.glob("bands-*")), ids=lambda folder: folder.name)
def test_a_file_in_bands_scores_what_it_scored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the data of the run that it was exported from, whose ids it has other rows for."""
    data = HERE / folder.name.rpartition("-")[2] / "data"
    found = printed(capsys, "evaluate", folder / "model.safetensors", "--data", data)
    require_scores(found, json.loads((folder / "scored.json").read_text()))


def packed_scores(file: Path, data: Path) -> dict[str, Any]:
    """The metrics on test rows of what a packed file holds."""
    config = read_packed(file).config
    config = replace(config, data=replace(config.data, source=str(data)))
    session = build_session(config, load_kernels(config, CPU), open_data(config), SingleTransport(), CPU)
    load_packed(file, session.model, config.quant)
    return vars(session.evaluate(session.loaders.test, quantized=False))


def newer_json(path: Path) -> Path:
    """A document of a later format, which may have other fields too."""
    document = json.loads(path.read_text())
    changed = dict.fromkeys(document, "another form") | {"crc32": 0, "format": 7}
    path.write_text(json.dumps(changed))
    return path


def newer_checkpoint(folder: Path) -> Path:
    paths = sorted((folder / "dqrm" / "checkpoints").glob("*/state.json"))
    for path in paths:
        body = json.loads(path.read_text())["body"] | {"format": 7, "tensors": "another form"}
        path.write_text(json.dumps({"crc32": zlib.crc32(canonical(body)), "body": body}))
    return paths[-1]


def newer_packed(folder: Path) -> Path:
    path = folder / "dqrm" / "packed" / "dense.safetensors"
    content = path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:header_end])
    about = header["__metadata__"]
    about["format"] = "7"
    if HEADER_CHECKSUM in about:
        about[HEADER_CHECKSUM] = NO_CHECKSUM
    text = json.dumps(header).encode()
    text = with_header_checksum(text, NO_CHECKSUM, header_checksum(text))
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[header_end:])
    return path


def newer_shard(folder: Path) -> Path:
    path = min((folder / "data").glob("test-*.shard"))
    content = bytearray(path.read_bytes())
    content[8:12] = (7).to_bytes(4, "little")
    path.write_bytes(content)
    return path


NEWER: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "checkpoint": (newer_checkpoint, ("evaluate", "--run-dir", "dqrm")),
    "checkpoint to resume": (newer_checkpoint, ("train", "--run-dir", "dqrm", "--resume", "auto")),
    "packed file": (newer_packed, ("compress", "--verify", "dqrm/packed/dense.safetensors")),
    "data set": (lambda folder: newer_json(folder / "data" / "manifest.json"), ("data", "verify", "data")),
    "shard": (newer_shard, ("evaluate", "--run-dir", "dqrm")),
    "spans": (lambda folder: newer_json(folder / "dqrm" / "spans" / "rank0.json"), ("report", "dqrm")),
}


@pytest.mark.parametrize("kind", NEWER)
@pytest.mark.parametrize("commit", COMMITS)
def test_a_newer_format_is_refused_by_name_and_number(
    commit: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forge, command = NEWER[kind]
    path = forge(copied(commit, tmp_path / "made").folder)
    monkeypatch.chdir(tmp_path / "made")
    assert main(list(command)) == 1
    require_refusal(capsys.readouterr().err, path)


def test_a_newer_vocabulary_is_refused_by_name_and_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(COMMITS[-1], tmp_path / "made").folder
    path = newer_json(folder / "data" / "vocabulary" / "vocabulary.json")
    (tmp_path / "new.tsv").write_text("0\t30\t2\t7\ts1\ta1\tp1\tw1\n")
    assert prepare(tmp_path, "--vocabulary", folder / "data", "--split", "none") == 1
    require_refusal(capsys.readouterr().err, path)


def require_refusal(message: str, path: Path) -> None:
    assert len(message.splitlines()) == 1
    assert path.name in message
    assert "format 7" in message
    assert "damaged" not in message
