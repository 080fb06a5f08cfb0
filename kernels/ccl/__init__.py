"""The small C++ shim over oneCCL's CPU library, and where the wheel `oneccl-devel` puts what it is built from."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SHIM_SOURCE = Path(__file__).with_name("shim.cpp")


class OneCclFiles(NamedTuple):
    """Paths of oneCCL in one environment; a newer wheel has the same library for GPUs only, which is not looked for."""

    library: Path
    headers: Path

    @property
    def missing(self) -> list[Path]:
        return [path for path in (self.library, self.headers / "oneapi" / "ccl.hpp") if not path.exists()]


def oneccl_files(prefix: Path = Path(sys.prefix)) -> OneCclFiles:
    """Returns where oneCCL's files are in an environment, or would be."""
    return OneCclFiles(prefix / "lib" / "ccl" / "cpu" / "lib" / "libccl.so", prefix / "include")


def find_compiler(environ: Mapping[str, str]) -> str | None:
    """Returns the C++ compiler: CXX where it is set, else g++ on PATH."""
    return shutil.which(environ.get("CXX") or "g++", path=environ.get("PATH"))
