"""The sampling loop over the KV cache, its memory estimate, and repetition statistics."""
