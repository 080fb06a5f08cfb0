"""IPEX's fused update behind our kernels, without what importing IPEX does to the other contestants."""

import torch

from dqrm_cpu.bench.contestant import AbsentError
from dqrm_cpu.kernels.interface import Kernels, KernelsUnavailableError
from dqrm_cpu.kernels.select import select_kernels


def load_ipex_kernels() -> Kernels:
    """Raises AbsentError where IPEX does not load."""
    # Importing IPEX replaces it, which would turn plain PyTorch's contestants into something else.
    embedding_bag = torch.embedding_bag
    try:
        return select_kernels("ipex", torch.device("cpu"))
    except KernelsUnavailableError as error:
        raise AbsentError(str(error)) from error
    finally:
        torch.embedding_bag = embedding_bag
