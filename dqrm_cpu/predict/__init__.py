"""Probabilities of raw or prepared rows, by a trained run or a packed model."""
