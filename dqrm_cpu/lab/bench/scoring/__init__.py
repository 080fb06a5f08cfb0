"""Scoring with an exported file against other ways to score the same model."""
