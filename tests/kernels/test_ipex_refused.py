"""`--kernels ipex` outside of its environment: refused before anything is imported, with the way out."""

import sys

import pytest
import torch

from dqrm_cpu.kernels import ipex_kernels
from dqrm_cpu.kernels.ipex_kernels import IpexUnavailableError, piece_width, register_floats, require_ipex
from dqrm_cpu.kernels.select import select_kernels


def test_refused_where_ipex_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipex_kernels, "installed_version", lambda package: None)
    loaded = set(sys.modules)
    with pytest.raises(IpexUnavailableError, match=r"which is not installed: `make test-ipex` makes \.venv-ipex"):
        select_kernels("ipex", torch.device("cpu"))
    assert not any(name.startswith("intel_extension") for name in set(sys.modules) - loaded)


@pytest.mark.parametrize(
    ("ipex", "torch_version", "reason"),
    [
        ("2.8.0", "2.13.0+cpu", r"need torch 2\.8, this is 2\.13\.0\+cpu: `make test-ipex`"),
        ("2.7.0", "2.7.0", r"need intel-extension-for-pytorch 2\.8, this is 2\.7\.0"),
        ("2.8.0", "2.80.0", r"need torch 2\.8, this is 2\.80\.0"),
    ],
)
def test_refused_beside_another_torch(ipex: str, torch_version: str, reason: str) -> None:
    with pytest.raises(IpexUnavailableError, match=reason):
        require_ipex(ipex, torch_version)


@pytest.mark.parametrize("torch_version", ["2.8.0", "2.8.0+cpu", "2.8.1+cu128"])
def test_accepted_with_its_own_torch(torch_version: str) -> None:
    require_ipex("2.8.0", torch_version)


def test_absence_is_seen_in_the_metadata() -> None:
    assert ipex_kernels.installed_version("no-such-package-at-all") is None
    assert ipex_kernels.installed_version("pytest") == pytest.__version__


@pytest.mark.parametrize(
    ("level", "floats"),
    [("AVX512", 16), ("AVX512_BF16", 16), ("AMX", 16), ("AVX2_VNNI", 8), ("AVX2", 8), ("DEFAULT", 8)],
)
def test_register_of_each_level(level: str, floats: int) -> None:
    assert register_floats(level) == floats


@pytest.mark.parametrize(
    ("dim", "register", "width"),
    [(1, 16, 1), (31, 16, 31), (32, 16, 16), (33, 16, None), (128, 16, 16), (15, 8, 15), (16, 8, 8), (20, 8, None)],
)
def test_pieces(dim: int, register: int, width: int | None) -> None:
    assert piece_width(dim, register) == width
