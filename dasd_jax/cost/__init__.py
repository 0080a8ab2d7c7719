"""What a compiled program costs on a chip: FLOPs counted from the model, collectives read from the compiler's text."""
