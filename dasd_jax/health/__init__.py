"""Figures of how a policy writes: doubt, revision, arithmetic, diversity, length. Plain Python, without JAX."""
