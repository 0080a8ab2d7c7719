"""The two jitted steps of learning, their optimiser and teachers, and checkpoints."""
