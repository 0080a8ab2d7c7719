"""Score and train steps, optimiser, checkpoints, metrics: the only place where model meets objective."""
