"""What is handed on: an sdist with all that the repository's pages speak of, a wheel from it, and container files."""

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTAINERS = [ROOT / "containers" / name for name in ("Dockerfile", "dqrm-cpu.def")]
FOLDERS = ("benchmarks", "configs", "containers", "docs", "examples", "scripts", "tests", "dqrm_cpu")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "*.egg-info", "runs", "data-*")
BUILD = "import sys; from setuptools import build_meta as build; print(getattr(build, sys.argv[1])(sys.argv[2]))"


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


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_containers_install_extras_that_there_are_from_the_wheel(path: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    text = path.read_text()
    [extras] = re.findall(r"dqrm_cpu-\*\.whl\)\[(.*)\]", text)
    assert set(extras.split(",")) <= set(setup["options.extras_require"])
    [image] = re.findall(r"(?m)^F(?:ROM|rom:) python:(\d+\.\d+)-", text)
    assert f"Programming Language :: Python :: {image}" in setup["metadata"]["classifiers"]
