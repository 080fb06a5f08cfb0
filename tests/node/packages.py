"""ONNX Runtime for Node and for browsers, as tests need it: npm installs it once, outside the repository."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_PACKAGE_FILES = ("package.json", "package-lock.json")
_INSTALL = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error")


def node_modules() -> Path:
    """Installs the packages of package-lock.json, unless they are there; returns their folder."""
    content = b"".join((HERE / name).read_bytes() for name in _PACKAGE_FILES)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dqrm-cpu-tests"
    folder = cache / f"node-{hashlib.sha256(content).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name in _PACKAGE_FILES:
                shutil.copy(HERE / name, folder)
            subprocess.run(_INSTALL, cwd=folder, check=True, timeout=240)
            (folder / "whole").touch()
    return folder / "node_modules"


def run_node(script: str, document: Any) -> Any:
    """Runs a script of this folder with JSON on its standard input; returns the JSON that it prints."""
    command = ["node", str(HERE / script), str(node_modules())]
    done = subprocess.run(command, input=json.dumps(document), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


if __name__ == "__main__":
    print(node_modules())
