"""These tests look at pages in Chromium: where it is not installed they are left out, and the summary says so."""

import os
import shutil
import warnings
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

collect_ignore_glob: list[str] = []

if shutil.which("chromium") is None:
    collect_ignore_glob.append("test_*.py")
    warnings.warn("tests/browser is left out: it needs chromium (Debian: apt-get install chromium)", stacklevel=1)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # As root, as in a container, Chromium has no sandbox to start in; it opens only what is ours or installed.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        yield chromium
        chromium.close()
