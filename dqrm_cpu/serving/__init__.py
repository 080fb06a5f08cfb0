"""Scores raw rows with an exported model file: NumPy is all that it needs."""

from dqrm_cpu.serving.model import Model, UnusableRowError

__all__ = ["Model", "UnusableRowError"]
