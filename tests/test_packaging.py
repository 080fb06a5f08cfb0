"""What is handed on: an sdist with all that the repository's pages speak of, a wheel from it, and container files."""

import configparser
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from commands import dqrm_cpu
from served_command import answers_rows

ROOT = Path(__file__).parent.parent
CONTAINERS = [ROOT / "containers" / name for name in ("Dockerfile", "dqrm-cpu.def")]
FOLDERS = ("benchmarks", "configs", "containers", "docs", "examples", "scripts", "tests", "dqrm_cpu")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "*.egg-info", "runs", "data-*")
BUILD = "import sys; from setuptools import build_meta as build; print(getattr(build, sys.argv[1])(sys.argv[2]))"

SCHEMA = """delimiter = ","
header = true
label = "click"
categories = ["item"]
decimals = ["price"]
"""


def built(kind: str, source: Path, out: Path) -> Path:
    """Builds with the backend that pyproject.toml names; pip's isolation would download it first."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=240, check=True)
    return out / done.stdout.split()[-1]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's files, since building leaves some behind."""
    copy = tmp_path_factory.mktemp("packaging") / "copy"
    copy.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=LEFT_OUT)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, copy)
    return copy


def test_an_sdist_has_docs_configs_and_tests_and_makes_the_same_wheel(copied: Path, tmp_path: Path) -> None:
    wanted = files_below(copied)
    sdist = built("sdist", copied, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert wanted - files_below(unpacked) == set()
    with zipfile.ZipFile(built("wheel", unpacked, tmp_path)) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("dqrm_cpu/")}
    assert packed == {name for name in wanted if name.startswith("dqrm_cpu/")}


@pytest.fixture(scope="module")
def wheel(copied: Path) -> Path:
    return built("wheel", copied, copied.parent)


def test_a_wheel_scores_rows_where_there_is_numpy_alone(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, into which nothing but NumPy and the wheel itself have been installed."""
    model, rows, expected = exported_model(tmp_path)
    environment = tmp_path / "numpy-only"
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    for name in ("numpy", "numpy.libs"):
        (site / name).symlink_to(Path(np.__file__).parents[1] / name)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import json, sys\nfrom dqrm_cpu.serving import Model\n"
        "found = Model.open(sys.argv[1]).predict(json.loads(sys.argv[2]))\n"
        "import importlib.util as u, dqrm_cpu\n"
        "others = [name for name in ('torch', 'numba', 'msgspec') if u.find_spec(name)]\n"
        "print(json.dumps([dqrm_cpu.__file__, others, found.tolist()]))"
    )
    bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(environment / "bin" / "python"), "-I", "-c", code, str(model), json.dumps(rows)]
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    place, others, found = json.loads(done.stdout)
    assert (place.startswith(str(environment)), others) == (True, [])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def exported_model(folder: Path) -> tuple[Path, list[dict[str, str]], list[float]]:
    """A model exported here, rows, and their probabilities as `predict` has them."""
    (folder / "schema.toml").write_text(SCHEMA)
    lines = ["click,item,price", *(f"{int(k % 3 == 0)},item {k % 7},{k % 11}.5" for k in range(400))]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    small = (
        "--model.embedding-dim",
        "4",
        "--model.bottom-mlp",
        "4",
        "--model.top-mlp",
        "3,1",
        "--train.batch-size",
        "50",
    )
    for command in (
        ("prepare", folder / "log.csv", "--schema", folder / "schema.toml", "--out", folder / "data"),
        ("train", "--data", folder / "data", "--run-dir", folder / "run", *small),
        ("export", folder / "run"),
        ("predict", folder / "run", folder / "log.csv", "--out", folder / "scores.csv"),
    ):
        done = dqrm_cpu(*command)
        assert done.returncode == 0, done.stderr
    with (folder / "scores.csv").open() as file:
        expected = [float(row["probability"]) for row in csv.DictReader(file)]
    with (folder / "log.csv").open() as file:
        rows = [{"item": row["item"], "price": row["price"]} for row in csv.DictReader(file)]
    return folder / "run" / "model.safetensors", rows[:40], expected[:40]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_wheel_in_an_empty_environment_trains_exports_scores_and_serves(wheel: Path, tmp_path: Path) -> None:
    """With what pip finds for it, as a user installs it; commands are those of the environment, far from the clone."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True, symlinks=True)
    bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*words: object) -> str:
        command = [str(environment / "bin" / str(words[0])), *map(str, words[1:])]
        done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("python", "-m", "pip", "install", "-q", "--constraint", ROOT / "constraints.txt", f"{wheel}[serve]")
    assert "AUC" in run("dqrm-cpu", "train", "--run-dir", "demo", "--train.max-steps", "50")
    run("dqrm-cpu", "data", "generate", "train.txt", "--rows", "2000")
    run("dqrm-cpu", "prepare", "train.txt", "--format", "kaggle", "--out", "data")
    run("dqrm-cpu", "train", "--data", "data", "--run-dir", "mine", "--train.epochs", "1")
    run("dqrm-cpu", "export", "mine")
    run("dqrm-cpu", "predict", "mine/model.safetensors", "train.txt", "--data", "data", "--out", "scores.csv")
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 2001
    answers_rows(f"{environment / 'bin' / 'dqrm-cpu'} serve mine", tmp_path, bare)


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_containers_install_extras_that_there_are_from_the_wheel(path: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    text = path.read_text()
    [extras] = re.findall(r"dqrm_cpu-\*\.whl\)\[(.*)\]", text)
    assert set(extras.split(",")) <= set(setup["options.extras_require"])
    [image] = re.findall(r"(?m)^F(?:ROM|rom:) python:(\d+\.\d+)-", text)
    assert f"Programming Language :: Python :: {image}" in setup["metadata"]["classifiers"]
