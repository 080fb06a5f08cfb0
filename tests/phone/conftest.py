"""These tests run programs of ExecuTorch: without it they are left out, and the summary says so."""

import warnings
from importlib import metadata

collect_ignore_glob: list[str] = []

try:
    metadata.version("executorch")
except metadata.PackageNotFoundError:
    collect_ignore_glob.append("test_*.py")
    warnings.warn("tests/phone is left out: it needs the environment of `make test-executorch`", stacklevel=1)
