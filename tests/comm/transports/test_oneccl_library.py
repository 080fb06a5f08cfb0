"""The shim over oneCCL: compiled once, whoever comes first, and what is said where it cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dqrm_cpu.comm.transports.oneccl_library import build_shim, oneccl_defaults
from dqrm_cpu.errors import DeviceError
from dqrm_cpu.kernels.ccl import OneCclFiles, oneccl_files
from dqrm_cpu.kernels.sealed import CacheWarning
from launching import clean_environ

COUNTING_COMPILER = '#!/bin/sh\necho compiled >> "$COUNT"\nexec g++ "$@"\n'
BUILD = "import os; from dqrm_cpu.comm.transports.oneccl_library import build_shim; print(build_shim(os.environ))"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_ranks_that_start_at_once_compile_once(tmp_path: Path) -> None:
    compiler = tmp_path / "counting"
    compiler.write_text(COUNTING_COMPILER)
    compiler.chmod(0o755)
    count = tmp_path / "count"
    environ = clean_environ({"XDG_CACHE_HOME": str(tmp_path), "CXX": str(compiler), "COUNT": str(count)})
    ranks = [
        subprocess.Popen([sys.executable, "-c", BUILD], env=environ, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    outputs = {rank.communicate(timeout=120)[0] for rank in ranks}
    assert [rank.returncode for rank in ranks] == [0] * 4
    assert len(outputs) == 1
    assert count.read_text().splitlines() == ["compiled"]
    folder = Path(outputs.pop().strip()).parent
    assert sorted(path.name for path in folder.iterdir()) == ["libdqrm_ccl.so", "lock"]


def test_a_second_call_needs_no_compiler(cache: Path) -> None:
    assert build_shim(os.environ) == build_shim({"PATH": ""})


def test_without_oneccl_the_command_that_installs_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"no .*libccl\.so.*: pip install 'dqrm-cpu\[oneccl\]'"):
        build_shim(os.environ, oneccl_files(tmp_path))


def test_without_a_compiler_the_mend_is_named(cache: Path) -> None:
    with pytest.raises(DeviceError, match=r"no C\+\+ compiler g\+\+: apt-get install g\+\+"):
        build_shim({"PATH": ""})


def test_what_the_compiler_says_is_told_and_nothing_is_left(cache: Path, tmp_path: Path) -> None:
    files = oneccl_files()
    headers = tmp_path / "include"
    (headers / "oneapi").mkdir(parents=True)
    (headers / "oneapi" / "ccl.hpp").write_text("#error of another version\n")
    with pytest.raises(DeviceError, match="of another version"):
        build_shim(os.environ, OneCclFiles(files.library, headers))
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["lock"]


def test_a_folder_that_others_can_write_to_is_not_loaded_from(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsafe = build_shim(os.environ).parent
    unsafe.chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(cache / "elsewhere"))
    assert build_shim(os.environ).parent != unsafe


def test_a_damaged_shim_is_compiled_again(cache: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho compiled > "$last"\n')
    compiler.chmod(0o755)
    environ = {"PATH": os.environ["PATH"], "CXX": str(compiler)}
    shim = build_shim(environ)
    whole = shim.read_bytes()
    shim.write_bytes(whole.replace(b"compiled", b"compiles"))
    with pytest.warns(CacheWarning, match="libdqrm_ccl.so is damaged"):
        assert build_shim(environ).read_bytes() == whole


def test_settings_of_the_user_stay(tmp_path: Path) -> None:
    chosen = {"CCL_ATL_TRANSPORT": "ofi", "FI_PROVIDER": "verbs", "CCL_LOG_LEVEL": "info"}
    assert not chosen.keys() & oneccl_defaults(chosen, through_mpi=True, offload=False, prefix=tmp_path)


@pytest.mark.parametrize(("through_mpi", "provider"), [(True, None), (False, "tcp")])
def test_libfabric_is_told_what_to_use_only_where_oneccl_does(through_mpi: bool, provider: str | None) -> None:
    assert oneccl_defaults({}, through_mpi, offload=False).get("FI_PROVIDER") == provider
