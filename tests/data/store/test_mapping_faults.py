"""A file that is cut short under its mapping ends a process with its name, whichever thread reads it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.data.store.stored_rows import StoredRows
from dqrm_cpu.errors import DataError
from launching import clean_environ
from stored import write_data_set

READER = Path(__file__).parent / "truncating_reader.py"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The folder in which `truncating_reader.py` ran, and how its children ended."""
    folder = tmp_path_factory.mktemp("faults")
    for name in ("thread", "openmp"):
        (folder / name).mkdir()
        write_data_set(folder / name, [20_000])
    # pytest's own handler of faults is not inherited, and would otherwise stay.
    environ = {name: value for name, value in clean_environ().items() if name != "PYTHONFAULTHANDLER"}
    command = [sys.executable, "-W", "ignore", str(READER), str(folder)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    statuses = dict(line.split() for line in done.stdout.splitlines())
    return folder, {name: int(status) for name, status in statuses.items()}


@pytest.mark.parametrize("where", ["thread", "openmp"])
def test_a_file_that_is_cut_short_while_it_is_read_is_named(where: str, ended: tuple[Path, dict[str, int]]) -> None:
    folder, statuses = ended
    output = (folder / f"{where}.txt").read_text()
    assert output.startswith(f"dqrm-cpu: error: {folder}/{where}/train-0.shard can no longer be read: it was cut short")
    assert output.endswith("go on by --resume auto\n")
    assert statuses[where] == 1


def test_a_signal_that_is_no_fault_ends_as_usual(ended: tuple[Path, dict[str, int]]) -> None:
    folder, statuses = ended
    assert statuses["sent"] == -signal.SIGBUS
    assert (folder / "sent.txt").read_text() == ""


def test_a_file_that_lost_a_few_bytes_stops_the_reading(tmp_path: Path) -> None:
    """They lie within the last page and would read as zeros, without a fault."""
    write_data_set(tmp_path, [400])
    path = tmp_path / "train-0.shard"
    stored = StoredRows(tmp_path, read_manifest(tmp_path), "train")
    stored.rows(0, 400)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=r"train-0\.shard was cut short while it was in use"):
        stored.rows(0, 400)
