"""These tests look at pages in Chromium: where it is not installed they are left out, and the summary says so."""

import shutil
import warnings

collect_ignore_glob: list[str] = []

if shutil.which("chromium") is None:
    collect_ignore_glob.append("test_*.py")
    warnings.warn("tests/browser is left out: it needs chromium (Debian: apt-get install chromium)", stacklevel=1)
