"""The laboratory: a small reasoner made here, every method under one budget, and what it shows (docs/lab.md)."""
