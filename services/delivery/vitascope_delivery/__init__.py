"""Delivery: signed links and byte ranges over the object store, for what SQL names and nothing else."""
