"""What ranks compare of their code."""

from pathlib import Path

import dqrm_cpu
from dqrm_cpu.base.code_version import code_version


def package(folder: Path) -> Path:
    """Makes a package as in a checkout: the kernels behind a link."""
    (folder / "package" / "comm").mkdir(parents=True)
    (folder / "kernels").mkdir()
    (folder / "package" / "kernels").symlink_to("../kernels")
    (folder / "package" / "comm" / "wire.py").write_text("LIMIT = 127\n")
    (folder / "kernels" / "shim.cpp").write_text("int limit = 127;\n")
    return folder / "package"


def test_every_source_counts_and_nothing_else(tmp_path: Path) -> None:
    made = package(tmp_path)
    found = [code_version(made)]
    (made / "comm" / "notes.txt").write_text("not code")
    assert code_version(made) == found[0]
    for source in ("comm/wire.py", "kernels/shim.cpp"):
        with (made / source).open("a") as file:
            file.write("\n")
        found.append(code_version(made))
    assert len({version["sources"] for version in found}) == 3


def test_a_copy_without_the_link_is_the_same_code(tmp_path: Path) -> None:
    made = package(tmp_path / "a")
    copied = package(tmp_path / "b")
    (copied / "kernels").unlink()
    (tmp_path / "b" / "kernels").rename(copied / "kernels")
    assert code_version(copied) == code_version(made)


def test_libraries_that_compute_are_named() -> None:
    found = code_version()
    assert found["release"] == dqrm_cpu.__version__
    assert found["torch"].startswith("2.")
    assert {"numba", "numpy"} < found.keys()
