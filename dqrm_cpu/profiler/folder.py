"""The folder of a profile's results."""

import tempfile
from pathlib import Path

from dqrm_cpu.errors import ConfigError


def make_folder(folder: Path) -> None:
    """Refuses what cannot be written into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder} cannot be written: {error.strerror}; give another --out")
