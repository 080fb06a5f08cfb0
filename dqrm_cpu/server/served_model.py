"""The model that answers now: a file that may be replaced by a newer one while requests come in."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from dqrm_cpu.errors import DqrmError
from dqrm_cpu.serving import Model

_LOG = logging.getLogger("dqrm_cpu.server")


class ServedModel:
    """The model in a file: opened and read to its end at the start, and again whenever another file has its name."""

    def __init__(self, path: Path, watch: Callable[[bool], None], products: str) -> None:
        """`watch` is told of every file that took the place of another one, and whether it could be used."""
        self.path, self._watch, self._products = path, watch, products
        self._seen = _identity(path)
        self.model = _opened(path, products)
        self.generation = 1

    def current(self) -> Model:
        """Returns the model that answers now."""
        return self.model

    async def follow(self, period_s: float) -> None:
        """Looks at the file again and again; a new one takes over once all of it has been read and checked.

        A file that is no model, or reads other columns, is left alone, and the old one goes on.
        """
        while True:
            await asyncio.sleep(period_s)
            identity = _identity(self.path)
            if identity in (None, self._seen):
                continue
            self._seen = identity
            try:
                newer = await asyncio.to_thread(_opened, self.path, self._products)
                self._require_same_columns(newer)
            except DqrmError as error:
                _LOG.error("the model stays as it was: %s", error)
                self._watch(False)
                continue
            self.model = newer
            self.generation += 1
            _LOG.info("%s has been replaced: model %d answers now", self.path, self.generation)
            self._watch(True)

    def _require_same_columns(self, newer: Model) -> None:
        """Raises DqrmError for a model that requests made for this one do not suit."""
        missing = sorted(set(newer.description.columns) - set(self.model.description.columns))
        if missing:
            raise DqrmError(f"{self.path} reads column {missing[0]!r}, which no request has; start a server of its own")


def _opened(path: Path, products: str) -> Model:
    """Opens and reads a whole file; one thread scores, as a server has one process for each core."""
    model = Model.open(path, verify=True, threads=1, products=products)
    model.load_kernels()
    return model


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Tells one file under a name from the next one; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
