"""Commands that run on your own machine and launch others: on TPU slices, or as a sweep."""
