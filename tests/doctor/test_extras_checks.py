"""oneCCL, IPEX, a GPU: what may be there or not."""

from pathlib import Path

import pytest

from dqrm_cpu.doctor import extras
from dqrm_cpu.doctor.finding import Verdict
from dqrm_cpu.profile.hardware import Package
from planted import XEON, machine


def test_oneccl_library_of_a_wheel(tmp_path: Path) -> None:
    library = tmp_path / "lib/ccl/cpu/lib/libccl.so"
    library.parent.mkdir(parents=True)
    library.touch()
    assert extras.read_oneccl(tmp_path).library == str(library)


def test_oneccl_without_its_library(tmp_path: Path) -> None:
    installed = machine(packages=(Package("oneccl-devel", "2021.13.1"),))
    assert extras.check_oneccl(installed, extras.OneCclFacts("", False)).verdict is Verdict.WARNING


@pytest.mark.parametrize("facts", [extras.OneCclFacts("", False), extras.OneCclFacts("/lib/libccl.so", False)])
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
