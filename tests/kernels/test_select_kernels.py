"""Which implementation serves which device."""

import pytest
import torch

from dqrm_cpu.kernels.select import UnknownKernelsError, select_kernels


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [("auto", "cpu", "numba"), ("numba", "cpu", "numba"), ("torch", "cpu", "torch"), ("auto", "cuda", "torch")],
)
def test_choice(name: str, device: str, expected: str) -> None:
    assert select_kernels(name, torch.device(device)).name == expected


def test_numba_is_refused_off_the_cpu() -> None:
    with pytest.raises(UnknownKernelsError, match="choose auto or torch"):
        select_kernels("numba", torch.device("cuda"))


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(UnknownKernelsError, match="'fast' do not exist; choose one of auto, numba, torch"):
        select_kernels("fast", torch.device("cpu"))
