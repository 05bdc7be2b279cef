"""The clip that is made again and again: short, and with several checkpoints."""

from tests.conftest import PROMPT, Stack

STEPS = 40
SEED = 7


def make_clip(stack: Stack, steps: int = STEPS, seed: int = SEED) -> str:
    """Ask for the clip; returns its id."""
    return str(stack.client.videos.create(prompt=PROMPT, seed=seed, seconds="2", num_inference_steps=steps).id)
