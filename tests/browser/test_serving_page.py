"""The page of a server in Chromium: a pasted row gets the model's probability, on a desk and on a phone."""

import json
import shutil
from pathlib import Path

import pytest
from packages import node_modules
from playwright.sync_api import Browser, Page, expect
from serving_process import serving
from test_serving import LOG_SCHEMA, as_csv, dicts, log_rows

from commands import dqrm_cpu
from dqrm_cpu.serving import Model
from scoring import SMALL, succeed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed file, and beside it model.onnx of the same run."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "rows.csv").write_text(as_csv(log_rows(900, seed=1)))
    (folder / "schema.toml").write_text(LOG_SCHEMA)
    succeed("prepare", folder / "rows.csv", "--schema", folder / "schema.toml", "--out", folder / "data")
    succeed("train", "--data", folder / "data", "--run-dir", folder / "run", *SMALL)
    succeed("export", folder / "run")
    succeed("export", folder / "run", "--format", "onnx")
    return folder / "run" / "model.safetensors"


def test_a_pasted_row_is_scored(browser: Browser, model: Path) -> None:
    row = dicts(log_rows(1, seed=7))[0] | {"price": "2.5"}
    expected, columns = f"{Model.open(model).predict([row])[0]:.4f}", Model.open(model).description.columns
    with serving(model) as server:
        complaints: list[str] = []
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.wait_for_selector("#fields input")
            page.fill("#paste", "1\t" + "\t".join(row[name] for name in columns))  # with its label
            page.wait_for_selector("#result:not([hidden])")
            assert page.inner_text("#score") == expected
            assert not page.is_visible("#where")
            assert page.evaluate("document.documentElement.scrollWidth") == width
            page.click("button[type=reset]")
            page.fill("#f-price", "cheap")
            page.click("text=Score")
            page.wait_for_selector("#error:not(:empty)")
            assert "column price: 'cheap' is not a number" in page.inner_text("#error")
            page.close()
    # The browser itself reports the answer 400 to its console, and nothing else is there.
    assert [text for text in complaints if "400" not in text] == []


def watch(page: Page, complaints: list[str], asked: list[str]) -> None:
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))


def paste(page: Page, row: dict[str, str]) -> None:
    page.fill("#paste", json.dumps(row))
    page.wait_for_selector("#result:not([hidden])")


def test_a_row_is_scored_in_the_browser_and_not_sent(browser: Browser, model: Path) -> None:
    row, other = (one | {"price": "2.5"} for one in dicts(log_rows(2, seed=7)))
    expected = [f"{one:.4f}" for one in Model.open(model).predict([row, other])]
    runtime = node_modules() / "onnxruntime-web" / "dist"
    with serving(model, "--onnx", str(model.with_suffix(".onnx")), "--web-runtime", str(runtime)) as server:
        for width in (1280, 390):
            complaints: list[str] = []
            asked: list[str] = []
            page = browser.new_page(viewport={"width": width, "height": 900})
            watch(page, complaints, asked)
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.wait_for_selector("#fields input")
            paste(page, row)
            assert page.inner_text("#score") == expected[0]
            asked.clear()
            page.click("text=in this browser")
            expect(page.locator("#by")).to_contain_text("in this browser, ")
            assert page.inner_text("#score") == expected[0]
            assert f"on the server: {expected[0]}" in page.inner_text("#by")
            assert "ort-wasm-simd-threaded.wasm" in asked
            assert page.evaluate("document.documentElement.scrollWidth") == width
            loaded = len(asked)
            page.fill("#paste", json.dumps(other))
            expect(page.locator("#score")).to_have_text(expected[1])
            page.fill("#f-price", "cheap")
            page.click("text=Score")
            page.wait_for_selector("#error:not(:empty)")
            assert page.inner_text("#error") == "row 0, column price: 'cheap' is not a number"
            page.click("text=on the server")
            page.fill("#f-price", other["price"])
            page.click("text=Score")
            expect(page.locator("#by")).to_contain_text("on the server, ")
            assert asked[loaded:] == ["predict", "predict"]
            page.close()
            assert [text for text in complaints if "400" not in text] == []


def test_files_that_do_not_belong_together_are_refused(model: Path, tmp_path: Path) -> None:
    runtime, onnx = str(node_modules() / "onnxruntime-web" / "dist"), model.with_suffix(".onnx")
    for options, words in (
        (("--onnx", str(onnx)), "--onnx and --web-runtime go together"),
        (("--onnx", str(onnx), "--web-runtime", str(tmp_path)), "has no ort.wasm.min.mjs: give the folder"),
        (("--onnx", str(tmp_path / "model.onnx"), "--web-runtime", runtime), "write both from the same run"),
    ):
        output = dqrm_cpu("serve", model, *options)
        assert (output.returncode, words in output.stderr) == (2, True), output.stderr


def test_files_of_the_model_come_in_pieces_of_one_model(model: Path, tmp_path: Path) -> None:
    packed, onnx = (Path(shutil.copy(path, tmp_path)) for path in (model, model.with_suffix(".onnx")))
    (tables,) = model.parent.glob("model.onnx-*.data")
    shutil.copy(tables, tmp_path)
    runtime = str(node_modules() / "onnxruntime-web" / "dist")
    with serving(packed, "--onnx", str(onnx), "--web-runtime", runtime) as server:
        status, document = server.json("GET", "/browser/files.json")
        tag = f'"{document["checksum"]}"'
        assert (status, document["tables_name"]) == (200, tables.name)
        assert document["bytes"]["tables"] == tables.stat().st_size
        status, body, headers = server.ask("GET", "/browser/tables", Range="bytes=3-12", If_Match=tag)
        assert (status, body) == (206, tables.read_bytes()[3:13])
        assert headers["content-range"] == f"bytes 3-12/{tables.stat().st_size}"
        size = onnx.stat().st_size
        for wrong in ("bytes=9-3", f"bytes={size}-{size + 9}"):
            assert server.ask("GET", "/browser/model.onnx", Range=wrong)[0] == 416
        status, body, _ = server.ask("GET", "/browser/model.onnx", Range="bytes=1-999999999999999")
        assert (status, body) == (206, onnx.read_bytes()[1:])
        assert server.ask("GET", "/browser/tables", Range="bytes=0-9", If_Match='"01234567"')[0] == 412
        assert server.ask("GET", "/browser/../model.onnx")[0] == 404
        assert server.ask("GET", "/browser/config.toml")[0] == 404
        tables_of_next = tmp_path / tables.name.replace(document["checksum"], "01234567")
        (tmp_path / tables.name).rename(tables_of_next)
        onnx.unlink()
        status, answer = server.json("GET", "/browser/files.json")
        assert (status, "the model was replaced" in answer["error"]) == (409, True)
