"""Starts the server: one process, or several that share the port and the pages of the model's file."""

import ctypes
import json
import os
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import uvicorn

from dqrm_cpu.server.app import Application, ServerSettings
from dqrm_cpu.server.connection import LimitedConnection
from dqrm_cpu.server.monitoring import SHARED_FOLDER

_SETTINGS = "DQRM_SERVER_SETTINGS"
"""The variable by which the processes of a server learn their settings."""

_KEEP_ALIVE_S = 5
_SWITCH_S = 0.0005
"""After how long the thread that scores many rows lets go of Python's lock: by default it delays others by 5 ms."""

_SIGNAL_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def serve(settings: ServerSettings, host: str, port: int, workers: int, most_connections: int, grace_s: int) -> None:
    """Answers until it is told to stop: what came in before is answered, for `grace_s` seconds at most."""
    sys.setswitchinterval(_SWITCH_S)
    common = {
        "host": host,
        "port": port,
        "http": LimitedConnection,
        "loop": "asyncio",
        "lifespan": "on",
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "ws": "none",
        "timeout_keep_alive": _KEEP_ALIVE_S,
        "limit_concurrency": most_connections,
        "timeout_graceful_shutdown": grace_s,
    }
    if workers == 1:
        uvicorn.run(Application(settings), **common)  # type: ignore[arg-type]
        return
    with tempfile.TemporaryDirectory(prefix="dqrm-metrics-") as folder:
        os.environ[SHARED_FOLDER] = folder
        os.environ[_SETTINGS] = json.dumps([os.getpid(), asdict(settings)], default=str)
        uvicorn.run("dqrm_cpu.server.run:application", factory=True, workers=workers, **common)  # type: ignore[arg-type]


def application() -> Application:
    """Makes the application of one of several processes, which ends with the one that started it, however that ends."""
    sys.setswitchinterval(_SWITCH_S)
    ctypes.CDLL(None).prctl(_SIGNAL_WITH_PARENT, signal.SIGTERM)
    parent, settings = json.loads(os.environ[_SETTINGS])
    if os.getppid() != parent:  # it has ended already
        raise SystemExit(1)
    paths = {name: Path(settings[name]) for name in ("model", "onnx", "web_runtime") if settings[name] is not None}
    return Application(ServerSettings(**{**settings, **paths}))
