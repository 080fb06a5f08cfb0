"""Runs a configuration, and variants of it in turns, to see where their time goes."""
