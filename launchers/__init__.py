"""Commands of a person's own machine that run others: on TPU slices, or many at a time."""
