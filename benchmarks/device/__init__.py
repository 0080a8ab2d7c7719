"""Checks for a bare machine with one GPU that nothing outside can reach; benchmarks/README.md says how to use them."""
