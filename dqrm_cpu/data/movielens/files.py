"""Where the recbole package keeps MovieLens-100k. Nothing of it is imported: what it requires need not be there."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from dqrm_cpu.errors import DataError

_PACKAGE = "recbole"
_INSTALL = f"pip install --no-deps {_PACKAGE}==1.2.1"
_FOLDER = "recbole/dataset_example/ml-100k"
KINDS = ("inter", "item", "user")


def installed_files() -> dict[str, Path]:
    """ml-100k.inter, .item and .user by their kind."""
    try:
        package = distribution(_PACKAGE)
    except PackageNotFoundError:
        raise DataError(
            f"MovieLens-100k comes with the package {_PACKAGE}, which is not installed; run {_INSTALL}"
        ) from None
    return files_in(Path(str(package.locate_file(_FOLDER))))


def files_in(folder: Path) -> dict[str, Path]:
    """The three files in a folder."""
    found = {kind: folder / f"ml-100k.{kind}" for kind in KINDS}
    for path in found.values():
        if not path.is_file():
            raise DataError(f"{path} is not there; install {_PACKAGE} again: {_INSTALL} --force-reinstall")
    return found
