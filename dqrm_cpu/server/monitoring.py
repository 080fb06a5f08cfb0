"""What Prometheus is told: requests, their time, rows scored together, models replaced."""

import os

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_ROWS = (1, 4, 16, 64, 256, 1024, 2048, 4096)

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder by which several processes answer with the figures of all of them."""


class Monitoring:
    """The figures of this process, or of all processes of a server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._known: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        here = self._registry
        self._requests = Counter("dqrm_requests", "Requests answered.", ["route", "status"], registry=here)
        self._seconds = Histogram(
            "dqrm_request_seconds", "Time to answer, the body's included.", ["route"], buckets=_SECONDS, registry=here
        )
        self._rows = Histogram("dqrm_forward_rows", "Rows scored together.", buckets=_ROWS, registry=here)
        self._replaced = Counter("dqrm_model_replaced", "Files that took the model's place.", ["used"], registry=here)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        known = self._known.get((route, status))
        if known is None:  # once: to find what labels stand for takes longer than to count
            known = self._known[route, status] = self._requests.labels(route, str(status)), self._seconds.labels(route)
        known[0].inc()
        known[1].observe(seconds)

    def scored(self, rows: int) -> None:
        """Counts a forward."""
        self._rows.observe(rows)

    def replaced(self, used: bool) -> None:
        """Counts a file that took the place of the model, and whether it could be used."""
        self._replaced.labels("yes" if used else "no").inc()

    def text(self) -> tuple[bytes, bytes]:
        """Returns all figures as Prometheus reads them, and the type of that text."""
        registry = self._registry
        if SHARED_FOLDER in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST.encode()
