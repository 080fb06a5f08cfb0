"""Packed models: written to a file, read back, measured."""
