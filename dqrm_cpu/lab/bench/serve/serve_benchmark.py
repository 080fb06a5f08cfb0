"""`bench serve`: the server on a core of its own, under requests that come at a fixed rate, in each of their forms."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import numpy as np
import psutil

from dqrm_cpu.config import Config
from dqrm_cpu.errors import DqrmError
from dqrm_cpu.lab.bench.harness.benchmark import Benchmark, RunEnvironment
from dqrm_cpu.lab.bench.harness.cases import CASES, quick
from dqrm_cpu.lab.bench.harness.result import CaseResult, ContestantResult, GroupResult, ServedLoad, Timing
from dqrm_cpu.lab.bench.harness.runner import BenchProgress, ProgressObserver
from dqrm_cpu.lab.bench.serve.open_loop import Load, LoadFigures
from dqrm_cpu.lab.bench.serve.random_model import random_rows, write_random_model
from dqrm_cpu.lab.bench.serve.request_forms import FORMS, RequestForm, Rows
from dqrm_cpu.serving import Model

_WINDOW_S, _QUICK_WINDOW_S = 4.0, 0.3
_WARM_S = 2.0
_BODIES = 64
"""Different requests, which come again in their order."""

_START_S = 60.0
_SAME = 1e-5  # of a probability: forwards of other sizes sum in another order
_MODEL = CASES["kaggle_128"]


@dataclass(frozen=True)
class LoadShape:
    """The rows of a request, and the requests of a second."""

    rows: int
    per_s: float | None  # None: half of what the server answers when as much comes as it can take


LOADS: Mapping[str, LoadShape] = MappingProxyType(
    {
        "rows_64": LoadShape(64, 200.0),
        "rows_64_fast": LoadShape(64, 1000.0),
        "rows_1": LoadShape(1, None),
    }
)
"""Loads by the names of their cases."""


def _run(case: str, environment: RunEnvironment, observe: ProgressObserver) -> CaseResult:
    """Raises DqrmError where the server does not start, or answers anything but what the model says."""
    shape, is_quick = LOADS[case], environment.quick
    config = (quick(_MODEL()) if is_quick else _MODEL()).config
    window_s, windows = (_QUICK_WINDOW_S if is_quick else _WINDOW_S), environment.plan.rounds
    entries, absent = [], {}
    if any(find_spec(name) is None for name in ("uvicorn", "httptools", "prometheus_client")):
        absent = {form.name: "not installed; pip install 'dqrm-cpu[serve]'" for form in FORMS}
    server_core, load_core = _cores()
    with tempfile.TemporaryDirectory(prefix="dqrm-cpu-bench-") as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        observe(BenchProgress(case, "writing a model"))
        size = write_random_model(model, config)
        for form in FORMS if not absent else ():
            observe(BenchProgress(case, f"requests as {form.name}"))
            with _server(model, server_core) as (port, server):
                requests = _write_requests(folder / form.name, model, config, shape, form, port)
                load = Load(port, str(requests), window_s if is_quick else _WARM_S, None, core=load_core)
                most = _most_per_s(_in_a_process(load, folder))
                load = replace(load, seconds=windows * window_s, per_s=shape.per_s or most / 2)
                before_s = _cpu_s(server)
                found = _in_a_process(load, folder)
                entries.append(_entry(form, load, most, _cpu_s(server) - before_s, windows, found))
    rate = "half as many a second as it can answer" if shape.per_s is None else f"{shape.per_s:,.0f} a second"
    about = f"requests of {shape.rows} rows, {rate}, {windows * window_s:.0f} s; a model of {size / 1e6:,.0f} MB"
    facts = {"rows": shape.rows, "model_bytes": size, "server_core": server_core, "load_core": load_core}
    return CaseResult(case, about, facts, (GroupResult("requests", FORMS[0].name, tuple(entries), absent),))


def _cores() -> tuple[int, int]:
    """Returns a core for the server and one for the load: the same one where there is no other."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[0], cores[-1]


@contextmanager
def _server(model: Path, core: int) -> Iterator[tuple[int, psutil.Process]]:
    """Runs the server on one core; yields its port and its process once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "dqrm_cpu", "serve", str(model), "--port", str(port)]
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})  # for the process that is started now
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    finally:
        os.sched_setaffinity(0, mine)
    try:
        end = time.monotonic() + _START_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                raise DqrmError(f"the server does not start: {process.communicate()[1].strip()[-300:]}")
            time.sleep(0.05)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.communicate()


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _write_requests(
    folder: Path, model_path: Path, config: Config, shape: LoadShape, form: RequestForm, port: int
) -> Path:
    """Writes the requests, each into a file, and requires that the server gives the model's answers to them."""
    folder.mkdir()
    model = Model.open(model_path)
    for number in range(_BODIES):
        rows: Rows = random_rows(config, shape.rows, number)
        request = form.write(model, rows)
        (folder / f"{number:04}").write_bytes(request)
        if number % 16 == 0:
            found = np.array(form.read(_answer(port, request)))
            if found.shape != (shape.rows,) or np.abs(found - model.predict(rows)).max() > _SAME:
                raise DqrmError(f"the server answers requests as {form.name} with other probabilities than the model")
    return folder


def _answer(port: int, request: bytes) -> bytes:
    """Returns the body of the answer to a request."""
    with socket.create_connection(("127.0.0.1", port), timeout=_START_S) as connection:
        connection.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise DqrmError(f"the server answers {head[:80]!r} {body[:300]!r}")
    return body


def _in_a_process(load: Load, folder: Path) -> LoadFigures:
    figures = folder / "figures.json"
    command = [sys.executable, "-m", "dqrm_cpu.lab.bench.serve.open_loop", json.dumps(asdict(load)), str(figures)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise DqrmError(f"the load ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    return LoadFigures(**json.loads(figures.read_text()))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _most_per_s(found: LoadFigures) -> float:
    return (len(found.latency_s) - sum(found.failed.values())) / found.seconds


def _entry(
    form: RequestForm, load: Load, most: float, cpu_s: float, windows: int, found: LoadFigures
) -> ContestantResult:
    """Gathers figures; a sample is the median latency of one of so many stretches of the load."""
    latency = np.array(found.latency_s)
    samples = tuple(float(np.median(part)) for part in np.array_split(latency, windows))
    served = ServedLoad(
        requests=latency.size,
        failed=sum(found.failed.values()),
        failures=found.failed,
        per_s=load.per_s or 0.0,
        most_per_s=most,
        cpu_s=cpu_s / latency.size,
        p99_s=float(np.quantile(latency, 0.99)),
        p999_s=float(np.quantile(latency, 0.999)),
        largest_s=float(latency.max()),
        latest_start_s=found.latest_start_s,
    )
    return ContestantResult(form.name, form.about, Timing(samples, max(1, latency.size // windows)), load=served)


SERVE = Benchmark(
    name="serve",
    cases=tuple(LOADS),
    default_cases=tuple(LOADS),
    run=_run,
    ratios=(),
    notes=(
        "The server is `dqrm-cpu serve` with one process on one core; the load is a process on another one. The model "
        "has the Kaggle tables and MLPs, its codes and vocabulary are drawn at random.",
        "An open loop: requests leave at fixed times, whether or not others have been answered, and latency counts "
        "from the time at which a request should have left. A sample is the median of a stretch of the load.",
        "most_per_s: a closed loop of eight connections before, for two seconds.",
    ),
    packages=("uvicorn", "httptools", "msgspec"),
)
