"""Which OpenMP runtimes are mapped, and what that means."""

import pytest

from dqrm_cpu.doctor import openmp
from dqrm_cpu.doctor.finding import Verdict
from dqrm_cpu.doctor.openmp import OpenmpFacts
from dqrm_cpu.kernels import select
from dqrm_cpu.kernels.interface import KernelsUnavailableError

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
    assert openmp.mapped_runtimes(MAPS) == (
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
    finding = openmp.check_openmp(facts)
    assert (finding.verdict, finding.mend) == (verdict, mend)


def test_kernels_that_do_not_run_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise KernelsUnavailableError("no OpenMP here")

    monkeypatch.setattr(select, "select_kernels", refuse)
    finding = openmp.check_openmp(openmp._probe())
    assert (finding.verdict, finding.found) == (Verdict.FAIL, "the kernels do not run beside torch: no OpenMP here")
