"""What a run has left in its folder, for people to look at; imports no JAX."""
