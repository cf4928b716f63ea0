"""Device-specific implementations: faster, with the same results."""
