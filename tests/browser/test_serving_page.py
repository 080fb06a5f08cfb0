"""The page of a server in Chromium: a pasted row gets the model's probability, on a desk and on a phone."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser
from serving_process import serving
from test_serving import LOG_SCHEMA, as_csv, dicts, log_rows

from dqrm_cpu.serving import Model
from scoring import SMALL, succeed

pytestmark = pytest.mark.slow


def test_a_pasted_row_is_scored(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(as_csv(log_rows(900, seed=1)))
    (tmp_path / "schema.toml").write_text(LOG_SCHEMA)
    succeed("prepare", tmp_path / "rows.csv", "--schema", tmp_path / "schema.toml", "--out", tmp_path / "data")
    succeed("train", "--data", tmp_path / "data", "--run-dir", tmp_path / "run", *SMALL)
    succeed("export", tmp_path / "run")
    row = dicts(log_rows(1, seed=7))[0] | {"price": "2.5"}
    model = tmp_path / "run" / "model.safetensors"
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
            assert page.evaluate("document.documentElement.scrollWidth") == width
            page.click("button[type=reset]")
            page.fill("#f-price", "cheap")
            page.click("text=Score")
            page.wait_for_selector("#error:not(:empty)")
            assert "column price: 'cheap' is not a number" in page.inner_text("#error")
            page.close()
    # The browser itself reports the answer 400 to its console, and nothing else is there.
    assert [text for text in complaints if "400" not in text] == []
