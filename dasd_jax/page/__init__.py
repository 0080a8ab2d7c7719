"""One HTML file about runs: what they left, packed, and the page that shows it; imports no JAX."""
