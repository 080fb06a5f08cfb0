"""Lookups of rows in packed tables against those of other libraries."""
