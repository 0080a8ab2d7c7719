"""Rewards: the answer of a response, and the verdict of a scorer in a process of its own."""
