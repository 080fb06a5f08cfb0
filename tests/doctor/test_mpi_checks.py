"""MPI: library and launcher, and whether they belong together."""

from pathlib import Path

import pytest

from dqrm_cpu.doctor import mpi
from dqrm_cpu.doctor.finding import Verdict
from dqrm_cpu.doctor.mpi import MpiLauncher, MpiLibrary

INTEL = MpiLibrary(True, "Intel(R) MPI Library 2021.18.1 for Linux* OS", "/venv/lib/libmpi.so")
INTEL_SAYS = "Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626"
OPEN_MPI_SAYS = "mpirun (Open MPI) 4.1.4"
MPICH_SAYS = "HYDRA build details:\n    Version:   4.2.0"
VENV_MPIRUN = MpiLauncher("/venv/bin/mpirun", False, INTEL_SAYS)


@pytest.mark.parametrize(
    ("text", "family"),
    [
        (INTEL.version, "Intel MPI"),
        (INTEL_SAYS, "Intel MPI"),
        (OPEN_MPI_SAYS, "Open MPI"),
        ("Open MPI v5.0.3, package: Debian", "Open MPI"),
        (MPICH_SAYS, "MPICH"),
        ("MPICH Version:      4.2.0", "MPICH"),
        ("MVAPICH2 Version      :	2.3.7", "MVAPICH"),
        ("", ""),
    ],
)
def test_mpi_families(text: str, family: str) -> None:
    assert mpi.mpi_family(text) == family


@pytest.mark.parametrize(
    ("library", "required", "verdict"),
    [
        (INTEL, True, Verdict.OK),
        (MpiLibrary(False), False, Verdict.NOTE),
        (MpiLibrary(False), True, Verdict.FAIL),
        (MpiLibrary(True, error="libmpi.so.12: cannot open"), False, Verdict.WARNING),
        (MpiLibrary(True, error="libmpi.so.12: cannot open"), True, Verdict.FAIL),
    ],
)
def test_mpi_library(library: MpiLibrary, required: bool, verdict: Verdict) -> None:
    assert mpi.check_library(library, required).verdict is verdict


def test_launcher_of_the_library() -> None:
    launcher = MpiLauncher("/venv/bin/mpirun", True, INTEL_SAYS)
    finding = mpi.check_launcher(INTEL, (launcher,), required=True)
    assert (finding.verdict, finding.found) == (Verdict.OK, "/venv/bin/mpirun (Intel MPI)")


@pytest.mark.parametrize(("required", "verdict"), [(False, Verdict.WARNING), (True, Verdict.FAIL)])
def test_launcher_of_another_mpi(required: bool, verdict: Verdict) -> None:
    launchers = (MpiLauncher("/usr/bin/mpirun", True, OPEN_MPI_SAYS), VENV_MPIRUN)
    finding = mpi.check_launcher(INTEL, launchers, required)
    assert finding.verdict is verdict
    assert finding.found == "/usr/bin/mpirun is of Open MPI, the library is Intel MPI"
    assert finding.mend == 'export PATH="/venv/bin:$PATH"'


def test_launcher_of_another_mpi_and_none_that_fits() -> None:
    finding = mpi.check_launcher(INTEL, (MpiLauncher("/usr/bin/mpirun", True, MPICH_SAYS),), required=False)
    assert finding.mend == "pip install 'dqrm-cpu[mpi]'"


def test_launcher_beside_python_but_not_on_path() -> None:
    finding = mpi.check_launcher(INTEL, (VENV_MPIRUN,), required=True)
    assert (finding.verdict, finding.mend) == (Verdict.NOTE, 'export PATH="/venv/bin:$PATH"')


def test_launcher_that_does_not_run() -> None:
    finding = mpi.check_launcher(INTEL, (MpiLauncher("/usr/bin/mpirun", True, ""),), required=False)
    assert (finding.verdict, finding.found) == (Verdict.WARNING, "/usr/bin/mpirun does not run")


@pytest.mark.parametrize(("required", "verdict"), [(False, Verdict.NOTE), (True, Verdict.FAIL)])
def test_no_launcher(required: bool, verdict: Verdict) -> None:
    assert mpi.check_launcher(INTEL, (), required).verdict is verdict


def script(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_launchers_are_found_on_path_and_beside_python(tmp_path: Path) -> None:
    found = script(tmp_path / "path", "mpiexec", "echo one $1")
    beside = script(tmp_path / "beside", "mpirun", "echo two $1")
    assert mpi.read_launchers(str(found.parent), beside.parent) == (
        MpiLauncher(str(found), True, "one --version\n"),
        MpiLauncher(str(beside), False, "two --version\n"),
    )


def test_launcher_on_path_beside_python_counts_once(tmp_path: Path) -> None:
    found = script(tmp_path, "mpirun", "echo one")
    assert mpi.read_launchers(str(tmp_path), tmp_path) == (MpiLauncher(str(found), True, "one\n"),)


def test_launcher_that_fails_says_nothing(tmp_path: Path) -> None:
    script(tmp_path, "mpirun", "echo broken; exit 3")
    assert [launcher.says for launcher in mpi.read_launchers(str(tmp_path), tmp_path)] == [""]


def test_launcher_finds_its_companions(tmp_path: Path) -> None:
    script(tmp_path, "mpirun", "companion")
    script(tmp_path, "companion", "echo here")
    assert [launcher.says for launcher in mpi.read_launchers("", tmp_path)] == ["here\n"]
