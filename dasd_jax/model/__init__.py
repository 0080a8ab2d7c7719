"""The decoder: configuration, parameter table, forward pass, attention, weights from files."""
