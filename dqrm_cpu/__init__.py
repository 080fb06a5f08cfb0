"""INT4 quantization-aware training of DLRM click models on Intel CPUs (DQRM, arXiv 2410.20046)."""

from dqrm_cpu.openmp import prepare_openmp

__version__ = "0.1.0"

# Before anything imports torch or numba: the OpenMP runtime that comes first serves both.
prepare_openmp()
