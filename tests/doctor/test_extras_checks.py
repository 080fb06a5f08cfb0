"""oneCCL, IPEX, a GPU: what may be there or not."""

from pathlib import Path

import pytest

from dqrm_cpu.doctor import extras
from dqrm_cpu.doctor.finding import Verdict
from dqrm_cpu.profile.hardware import Package
from planted import XEON, machine


def test_oneccl_files_of_a_wheel(tmp_path: Path) -> None:
    library, header = tmp_path / "lib/ccl/cpu/lib/libccl.so", tmp_path / "include/oneapi/ccl.hpp"
    for path in (library, header):
        assert extras.read_oneccl(tmp_path).library == ""
        path.parent.mkdir(parents=True)
        path.touch()
    assert extras.read_oneccl(tmp_path).library == str(library)


ONECCL = machine(packages=(Package("oneccl-devel", "2021.13.1"),))


@pytest.mark.parametrize(
    ("facts", "mend"),
    [
        (extras.OneCclFacts("", False, "/usr/bin/g++"), "pip install --force-reinstall 'dqrm-cpu[oneccl]'"),
        (extras.OneCclFacts("/lib/libccl.so", False, ""), "apt-get install g++ (or dnf install gcc-c++), or set CXX"),
    ],
)
def test_oneccl_that_cannot_be_used(facts: extras.OneCclFacts, mend: str) -> None:
    finding = extras.check_oneccl(ONECCL, facts)
    assert (finding.verdict, finding.mend) == (Verdict.WARNING, mend)


@pytest.mark.parametrize(
    "facts", [extras.OneCclFacts("", False, ""), extras.OneCclFacts("/lib/libccl.so", False, "g++")]
)
def test_oneccl_is_optional(facts: extras.OneCclFacts) -> None:
    assert extras.check_oneccl(XEON, facts).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("ipex", "torch", "verdict"),
    [
        (None, "2.13.0", Verdict.OK),
        ("2.8.0", "2.8.0+cpu", Verdict.NOTE),
        ("2.8.0", "2.13.0+cpu", Verdict.WARNING),
        ("2.8.0", "2.80.0", Verdict.WARNING),
    ],
)
def test_ipex(ipex: str | None, torch: str, verdict: Verdict) -> None:
    packages = (Package("torch", torch), Package("intel-extension-for-pytorch", ipex))
    assert extras.check_ipex(machine(packages=packages)).verdict is verdict


@pytest.mark.parametrize(
    ("gpus", "device", "verdict"),
    [
        ((), "cpu", Verdict.OK),
        (("H200",), "cpu", Verdict.OK),
        (("H200",), "cuda", Verdict.OK),
        ((), "cuda", Verdict.FAIL),
    ],
)
def test_gpu(gpus: tuple[str, ...], device: str, verdict: Verdict) -> None:
    assert extras.check_gpu(machine(gpus=gpus), device).verdict is verdict
