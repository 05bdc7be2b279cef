"""Trains the small model that Vitascope ships: a procedural world, a training loop for two CPU cores, and a probe."""
