"""Measures a training step and its kernels against other ways to do the same, in one interleaved run."""
