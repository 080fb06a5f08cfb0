"""INT4 quantization-aware training of DLRM click models on Intel CPUs (DQRM, arXiv 2410.20046)."""

from dqrm_cpu.kernel_cache import choose_cache_folder

__version__ = "0.1.0"

# Before anything imports numba.
choose_cache_folder()
