"""A command that serves, started as somebody types it, and asked for a probability over HTTP."""

import json
import socket
import subprocess
import time
import urllib.request
from pathlib import Path


def answers_rows(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Runs a server, on a free port, until it has scored a row of which nothing is known."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["bash", "-c", f"exec {command} --port {port}"]
    server = subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 120
        with socket.socket() as one:
            while one.connect_ex(("127.0.0.1", port)):
                assert server.poll() is None and time.monotonic() < end, server.stderr and server.stderr.read()
                time.sleep(0.1)
        address = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(f"{address}/v2/models/model", timeout=60) as answer:
            columns = [column["name"] for column in json.load(answer)["inputs"]]
        body = json.dumps({"rows": [dict.fromkeys(columns)]}).encode()
        with urllib.request.urlopen(f"{address}/predict", body, timeout=60) as answer:
            (probability,) = json.load(answer)["probabilities"]
        assert 0 < probability < 1
    finally:
        server.terminate()
        server.communicate(timeout=60)
