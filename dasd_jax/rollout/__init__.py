"""The sampling loop over the KV cache, and the verifier that scores what it wrote.

Nothing is imported here: the verifier's worker processes must start without JAX.
"""
