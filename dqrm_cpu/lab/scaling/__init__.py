"""Measures how a training step scales over the cores and sockets of one machine, beside the machine's own limit."""
