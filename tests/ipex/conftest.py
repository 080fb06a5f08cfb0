"""These tests need IPEX, which needs a torch of its own: elsewhere they are left out, and the summary says so."""

import sys
import warnings
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
collect_ignore_glob: list[str] = []

try:
    metadata.version("intel-extension-for-pytorch")
except metadata.PackageNotFoundError:
    collect_ignore_glob.append("test_*.py")
    warnings.warn("tests/ipex is left out: it needs the environment that `make test-ipex` makes", stacklevel=1)
