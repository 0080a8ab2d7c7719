"""Problems from their sources, and the random-access pipeline that turns them into prompt batches."""
