"""A whole city on one machine, for demonstration."""
