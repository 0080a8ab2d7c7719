"""Token statistics, token credit and losses: arrays in, arrays out, no model."""
