"""One run: what it is set up from, what it collects, checks and says, and how it ends."""
