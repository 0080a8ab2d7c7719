"""The sampling loop over the KV cache, and what is counted before and after it."""
