"""Hostile inputs for every parser; `python -m benchmarks.fuzz` runs them."""
