"""INT4 quantization-aware training of DLRM click models on Intel CPUs (DQRM, arXiv 2410.20046)."""

__version__ = "0.1.0"
