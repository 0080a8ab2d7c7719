"""The cost of a compiled program on a chip: FLOPs counted from the model, collectives parsed from the HLO text."""
