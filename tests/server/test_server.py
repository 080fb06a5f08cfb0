"""The server as clients meet it: the model's probabilities, limits, hostile requests, a swap and an end under load."""

import json
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_process import Server, serving
from test_serving import LOG_NAMES, LOG_SCHEMA, as_csv, dicts, log_rows

from dqrm_cpu.serving import Model
from scoring import SMALL, succeed

NUMBERS = ("clicks", "price", "age", "visits", "hour")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of the same columns."""
    folder, exported = tmp_path_factory.mktemp("models"), []
    (folder / "rows.csv").write_text(as_csv(log_rows(900, seed=1)))
    (folder / "schema.toml").write_text(LOG_SCHEMA)
    succeed("prepare", folder / "rows.csv", "--schema", folder / "schema.toml", "--out", folder / "data")
    for seed in ("1", "2"):
        run = folder / f"run{seed}"
        succeed("train", "--data", folder / "data", "--run-dir", run, *SMALL, "--seed", seed)
        exported.append(folder / f"{seed}.safetensors")
        succeed("export", run, "--out", exported[-1])
    return exported[0], exported[1]


@pytest.fixture(scope="module")
def server(models: tuple[Path, Path]) -> Iterator[Server]:
    with serving(models[0], "--timeout", "1", "--max-body", "1", "--max-rows", "200") as started:
        yield started


def test_rows_in_json_score_as_in_python(server: Server, models: tuple[Path, Path]) -> None:
    rows = dicts(log_rows(60, seed=3))
    status, found = server.json("POST", "/predict", {"rows": rows})
    assert status == 200
    np.testing.assert_allclose(found["probabilities"], Model.open(models[0]).predict(rows), rtol=1e-6)
    assert server.json("POST", "/predict", {"rows": []}) == (200, {"probabilities": []})


def test_it_scores_in_integers_where_it_is_asked_to(models: tuple[Path, Path]) -> None:
    rows = dicts(log_rows(60, seed=3))
    with serving(models[0], "--products", "int8") as started:
        _, found = started.json("POST", "/predict", {"rows": rows})
    expected = Model.open(models[0], products="int8").predict(rows)
    np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-6)
    assert np.abs(expected - Model.open(models[0]).predict(rows)).max() > 1e-5


@pytest.mark.parametrize("is_binary", [False, True])
def test_tritons_client_talks_to_it(server: Server, models: tuple[Path, Path], is_binary: bool) -> None:
    import tritonclient.http as triton

    client, rows = triton.InferenceServerClient(f"127.0.0.1:{server.port}"), dicts(log_rows(30, seed=5))
    rows = [{**row, "price": k / 7, "hour": k % 24} for k, row in enumerate(rows)]
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("model")
    described = {one["name"]: one["datatype"] for one in client.get_model_metadata("model")["inputs"]}
    assert described == {name: "FP64" if name in NUMBERS else "BYTES" for name in LOG_NAMES[1:]}
    inputs = []
    for name, datatype in described.items():
        dtype: Any = np.float64 if datatype == "FP64" else np.object_
        cells = np.array([row[name] for row in rows], dtype)
        inputs.append(triton.InferInput(name, [len(rows)], datatype))
        inputs[-1].set_data_from_numpy(cells, binary_data=is_binary)
    wanted = triton.InferRequestedOutput("probability", binary_data=is_binary)
    answer = client.infer("model", inputs, outputs=[wanted], request_id="7")
    np.testing.assert_allclose(answer.as_numpy("probability"), Model.open(models[0]).predict(rows), rtol=1e-6)
    assert answer.get_response()["id"] == "7"
    dense, ids = Model.open(models[0]).prepare(rows)
    prepared = [
        triton.InferInput("dense", list(dense.shape), "FP32"),
        triton.InferInput("ids", list(ids.shape), "INT64"),
    ]
    prepared[0].set_data_from_numpy(dense, binary_data=is_binary)
    prepared[1].set_data_from_numpy(ids, binary_data=is_binary)
    again = client.infer("model", prepared).as_numpy("probability")
    np.testing.assert_array_equal(again, answer.as_numpy("probability"))


def infer(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


ONE = {"name": "price", "datatype": "FP32", "shape": [1], "data": [1]}
HOSTILE: list[tuple[str, bytes, int, str]] = [
    ("/predict", b"", 400, "the body must be"),
    ("/predict", b"{", 400, "the body must be"),
    ("/predict", b"[" * 100_000, 400, "the body must be"),
    ("/predict", b'{"rows": {}}', 400, "Expected `array`"),
    ("/predict", b'{"rows": [1]}', 400, "Expected `object`"),
    ("/predict", b'{"rows": [{}]}', 400, "there is no column"),
    ("/predict", b'{"rows": [{"price": NaN}]}', 400, "the body must be"),
    ("/predict", b'{"rows": [{"clicks": "1", "price": "x"}]}', 400, "row 0, column price: 'x' is not a number"),
    ("/predict", b'{"rows": [{"clicks": 1e999}]}', 400, ""),
    ("/predict", json.dumps({"rows": [{}] * 201}).encode(), 413, "201 rows; a request has 200 at most"),
    ("/predict", b" " * (1 << 20) + b"{}", 413, "a body has 1,048,576 bytes at most"),
    ("/v2/models/model/infer", b"\xff\xfe", 400, "cannot be read"),
    ("/v2/models/model/infer", infer(), 400, "no inputs"),
    ("/v2/models/model/infer", infer(ONE, ONE), 400, "given twice"),
    ("/v2/models/model/infer", infer(ONE), 400, "there is no column"),
    ("/v2/models/model/infer", infer({**ONE, "shape": [-1]}), 400, "impossible shape"),
    ("/v2/models/model/infer", infer({**ONE, "shape": [1 << 40, 1 << 40]}), 400, "impossible shape"),
    ("/v2/models/model/infer", infer({**ONE, "shape": [1, 1, 1]}), 400, "one dimension"),
    ("/v2/models/model/infer", infer({**ONE, "shape": [2]}), 400, "not as many values"),
    ("/v2/models/model/infer", infer({**ONE, "datatype": "COMPLEX"}), 400, "known: BYTES, BOOL"),
    ("/v2/models/model/infer", infer({**ONE, "datatype": "UINT8", "data": [300]}), 400, "beyond UINT8"),
    ("/v2/models/model/infer", infer({**ONE, "datatype": "INT32", "data": ["a"]}), 400, "are no INT32"),
    ("/v2/models/model/infer", infer({**ONE, "parameters": {"binary_data_size": 9}}), 400, "beyond the body"),
    ("/v2/models/model/infer", infer({**ONE, "parameters": {"binary_data_size": -1}}), 400, "beyond the body"),
    ("/v2/models/model/infer", infer(ONE, outputs=[{"name": "x"}]), 400, "no output 'x'"),
    ("/v2/models/other/infer", infer(ONE), 404, "the model is called model"),
    ("/nothing", b"", 404, "there is no /nothing"),
    ("/metrics", b"", 405, "takes GET"),
]


@pytest.mark.parametrize(("path", "body", "status", "words"), HOSTILE)
def test_hostile_requests_harm_nobody(server: Server, path: str, body: bytes, status: int, words: str) -> None:
    found = server.ask("POST", path, body)
    assert found[0] == status, found
    assert words in json.loads(found[1])["error"]
    assert server.json("POST", "/predict", {"rows": dicts(log_rows(1, seed=3))})[0] == 200


@pytest.mark.parametrize(
    ("head_bytes", "tail", "words"),
    [
        ("9999999", b"", "is not the length of the JSON"),
        ("x", b"", "is no length"),
        (None, b"\x01\0\0\0a", "behind the last tensor"),
        (None, b"", "beyond the body"),
        (None, b"\x09\0\0\0", "longer than the tensor"),
        (None, b"\x01\0", "beyond the body"),
        (None, struct.pack("<I", 0xFFFFFFFF), "longer than the tensor"),
    ],
)
def test_binary_tensors_are_never_trusted(server: Server, head_bytes: str | None, tail: bytes, words: str) -> None:
    size = 4
    head = infer({"name": "shop", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}})
    length = head_bytes or str(len(head))
    status, body, _ = server.ask("POST", "/v2/models/model/infer", head + tail, Inference_Header_Content_Length=length)
    if tail[:1] == b"\x01" and len(tail) > size:
        words = "longer than the tensor"  # the first four bytes name a byte that is the fifth
    assert (status, words in json.loads(body)["error"]) == (400, True), body


def test_a_body_that_does_not_come_is_not_waited_for(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert server.json("POST", "/predict", {"rows": dicts(log_rows(1, seed=3))})[0] == 200
        assert b"408" in slow.recv(1000).splitlines()[0]
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as chunked:
        chunked.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
        for _ in range(17):
            chunked.sendall(piece)
        assert b"413" in chunked.recv(1000).splitlines()[0]


def test_figures_and_the_page_are_there(server: Server) -> None:
    status, page, headers = server.ask("GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"default-src 'none'" in headers["content-security-policy"].encode()
    assert b"<title>" in page
    assert server.ask("HEAD", "/")[0] == 200
    text = server.ask("GET", "/metrics")[1].decode()
    assert 'dqrm_requests_total{route="/predict",status="200"}' in text
    assert "dqrm_forward_rows_count" in text
    assert server.json("GET", "/v2")[1]["name"] == "dqrm-cpu"


def test_a_new_file_takes_over_without_a_lost_request(models: tuple[Path, Path], tmp_path: Path) -> None:
    """While requests come in: each gets the answer of one of the two models, the later ones that of the new one."""
    path, rows = tmp_path / "model.safetensors", dicts(log_rows(40, seed=6))
    expected = [Model.open(model).predict(rows) for model in models]
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    shutil.copy(models[0], path)
    with serving(path) as server:
        stops = threading.Event()

        def keep_asking() -> list[int]:
            chosen = []
            while not stops.is_set():
                status, found = server.json("POST", "/predict", {"rows": rows})
                assert status == 200
                close = [np.allclose(found["probabilities"], one, rtol=1e-5) for one in expected]
                assert any(close)
                chosen.append(close.index(True))
            return chosen

        with ThreadPoolExecutor(3) as clients:
            asked = [clients.submit(keep_asking) for _ in range(3)]
            time.sleep(0.3)
            (tmp_path / "broken").write_bytes(models[1].read_bytes()[:-1])
            (tmp_path / "broken").replace(path)
            wait_for(lambda: b'dqrm_model_replaced_total{used="no"} 1.0' in server.ask("GET", "/metrics")[1])
            shutil.copy(models[1], tmp_path / "newer")
            (tmp_path / "newer").replace(path)
            wait_for(lambda: b'dqrm_model_replaced_total{used="yes"} 1.0' in server.ask("GET", "/metrics")[1])
            time.sleep(0.3)
            stops.set()
            for one in asked:
                chosen = one.result(60)
                assert chosen[0] == 0
                assert chosen[-1] == 1
                assert chosen == sorted(chosen)


def wait_for(holds: Any) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_requests_under_way_are_answered_before_it_ends(models: tuple[Path, Path], options: tuple[str, ...]) -> None:
    with serving(models[0], *options) as server:
        body = json.dumps({"rows": dicts(log_rows(1, seed=3))}).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as under_way:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            under_way.sendall(head + body[:20])
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            under_way.sendall(body[20:])
            assert b"200 OK" in under_way.recv(4000).splitlines()[0]
        assert server.process.wait(30) in (0, -signal.SIGTERM)


def test_several_processes_answer_with_the_figures_of_all(models: tuple[Path, Path]) -> None:
    with serving(models[0], "--workers", "2") as server:
        for _ in range(12):
            assert server.json("POST", "/predict", {"rows": dicts(log_rows(2, seed=3))})[0] == 200
        text = server.ask("GET", "/metrics")[1].decode()
        line = next(line for line in text.splitlines() if 'route="/predict",status="200"' in line)
        assert float(line.split()[-1]) == 12
        server.process.kill()  # its processes end with it, and set the port free
        wait_for(lambda: not is_taken(server.port))


def is_taken(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_what_is_no_model_is_named_at_once(tmp_path: Path) -> None:
    from commands import dqrm_cpu

    (tmp_path / "file").write_bytes(b"no model at all, and long enough")
    for path, words in ((tmp_path / "none", "cannot be read"), (tmp_path / "file", "is no exported model")):
        output = dqrm_cpu("serve", path)
        assert (output.returncode, words in output.stderr) == (1, True), output.stderr
