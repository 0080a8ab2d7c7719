"""Problem sources and the random-access pipeline that turns problems into prompt batches."""
