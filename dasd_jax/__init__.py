"""Direction-Adaptive Self-Distillation (arXiv 2605.22263) for language models on TPUs, in JAX."""
