"""A disk whose n-th operation fails, or that is full for a while; for runs within this process."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_OF_PATHS = ("open", "rename", "replace", "mkdir", "unlink")
_OF_DESCRIPTORS = ("write", "fsync", "ftruncate")


class FailingDisk:
    """Counts what is changed below `folder`; `fails` decides for each operation by its number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.fails: Callable[[int], bool] = lambda number: False
        self.code = errno.ENOSPC
        for name in (*_OF_PATHS, *_OF_DESCRIPTORS):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def watched(target: Any, *arguments: Any, **more: Any) -> Any:
            if self._is_change(name, target, arguments):
                self.count += 1
                if self.fails(self.count):
                    raise OSError(self.code, os.strerror(self.code), str(target))
            return operation(target, *arguments, **more)

        return watched

    def _is_change(self, name: str, target: Any, arguments: tuple[Any, ...]) -> bool:
        if name in _OF_DESCRIPTORS:
            return str(Path(f"/proc/self/fd/{target}").readlink()).startswith(str(self.folder))
        if not str(os.fspath(target)).startswith(str(self.folder)):
            return False
        return name != "open" or bool(arguments[0] & (os.O_WRONLY | os.O_RDWR))
