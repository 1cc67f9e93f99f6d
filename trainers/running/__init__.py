"""A run: from a config to trained weights, on any number of processes."""
