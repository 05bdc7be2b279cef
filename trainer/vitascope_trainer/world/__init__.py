"""The procedural world: what the built-in model learns to draw, and the sentences that describe it."""
