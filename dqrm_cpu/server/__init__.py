"""Answers requests over HTTP with an exported model."""
