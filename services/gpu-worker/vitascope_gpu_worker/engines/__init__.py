"""Engines: the model families that the worker can drive."""
