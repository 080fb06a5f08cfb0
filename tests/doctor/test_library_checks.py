"""OpenMP runtimes, and what may be there or not: oneCCL, IPEX, a GPU."""

from pathlib import Path

import pytest

from dqrm_cpu.base.hardware import Package
from dqrm_cpu.doctor import libraries
from dqrm_cpu.doctor.finding import Verdict
from dqrm_cpu.doctor.libraries import OneCclFacts, OpenmpFacts
from dqrm_cpu.kernels import select
from dqrm_cpu.kernels.interface import KernelsUnavailableError
from planted import XEON, machine

MAPS = """\
7f00-7f01 r-xp 00000000 08:01 11   /opt/torch lib/libgomp-a34b3233.so.1
7f01-7f02 r--p 00001000 08:01 11   /opt/torch lib/libgomp-a34b3233.so.1
7f02-7f03 r-xp 00000000 08:01 12   /usr/lib/libgomp.so.1.0.0
7f03-7f04 r-xp 00000000 08:01 13   /opt/intel/libiomp5.so
7f04-7f05 r-xp 00000000 08:01 14   /opt/llvm/libomp.so.5
7f05-7f06 r-xp 00000000 08:01 15   /usr/lib/libompdevice.so
7f06-7f07 r-xp 00000000 08:01 16   /opt/numba/omppool.cpython-311-x86_64-linux-gnu.so
7f07-7f08 rw-p 00000000 00:00 0
7f08-7f09 rw-p 00000000 00:00 0    [heap]
"""


def test_openmp_runtimes_are_found_among_the_mapped_files() -> None:
    assert libraries.mapped_runtimes(MAPS) == (
        "/opt/intel/libiomp5.so",
        "/opt/llvm/libomp.so.5",
        "/opt/torch lib/libgomp-a34b3233.so.1",
        "/usr/lib/libgomp.so.1.0.0",
    )


@pytest.mark.parametrize(
    ("facts", "verdict", "mend"),
    [
        (OpenmpFacts(("/usr/lib/libgomp.so.1",)), Verdict.OK, ""),
        (OpenmpFacts(("/a/libgomp.so.1", "/b/libgomp.so.1")), Verdict.WARNING, "export LD_PRELOAD=libgomp.so.1"),
        (OpenmpFacts((), "no libtorch"), Verdict.FAIL, "pip install --force-reinstall torch numba"),
    ],
)
def test_openmp(facts: OpenmpFacts, verdict: Verdict, mend: str) -> None:
    finding = libraries.check_openmp(facts)
    assert (finding.verdict, finding.mend) == (verdict, mend)


def test_kernels_that_do_not_run_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise KernelsUnavailableError("no OpenMP here")

    monkeypatch.setattr(select, "select_kernels", refuse)
    finding = libraries.check_openmp(libraries._probe_openmp())
    assert (finding.verdict, finding.found) == (Verdict.FAIL, "the kernels do not run beside torch: no OpenMP here")


def test_oneccl_files_of_a_wheel(tmp_path: Path) -> None:
    library, header = tmp_path / "lib/ccl/cpu/lib/libccl.so", tmp_path / "include/oneapi/ccl.hpp"
    for path in (library, header):
        assert libraries.read_oneccl(tmp_path).library == ""
        path.parent.mkdir(parents=True)
        path.touch()
    assert libraries.read_oneccl(tmp_path).library == str(library)


ONECCL = machine(packages=(Package("oneccl-devel", "2021.13.1"),))


@pytest.mark.parametrize(
    ("facts", "mend"),
    [
        (OneCclFacts("", False, "/usr/bin/g++"), "pip install --force-reinstall 'dqrm-cpu[oneccl]'"),
        (
            OneCclFacts("/lib/libccl.so", False, ""),
            "apt-get install g++ (or dnf install gcc-c++), or set CXX",
        ),
    ],
)
def test_oneccl_that_cannot_be_used(facts: OneCclFacts, mend: str) -> None:
    finding = libraries.check_oneccl(ONECCL, facts)
    assert (finding.verdict, finding.mend) == (Verdict.WARNING, mend)


@pytest.mark.parametrize("facts", [OneCclFacts("", False, ""), OneCclFacts("/lib/libccl.so", False, "g++")])
def test_oneccl_is_optional(facts: OneCclFacts) -> None:
    assert libraries.check_oneccl(XEON, facts).verdict is Verdict.OK


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
    assert libraries.check_ipex(machine(packages=packages)).verdict is verdict


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
    assert libraries.check_gpu(machine(gpus=gpus), device).verdict is verdict
