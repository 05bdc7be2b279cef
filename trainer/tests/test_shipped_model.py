"""The weights in the repository draw what a prompt says; one that training never showed, that is."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from vitascope_trainer.evaluate import Model, generate, load_model
from vitascope_trainer.probe import read, scores
from vitascope_trainer.world import held_out_prompts

pytestmark = pytest.mark.model

FOLDER = Path(__file__).parents[2] / "models" / "vita-mini-1"
NUM_STEPS = 8  # a third of the default: the probe hardly notices, and the test takes a third of the time


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_model(FOLDER)
    torch.set_num_threads(before)


def test_held_out_prompts_come_out_right_and_the_controls_do_not(model: Model) -> None:
    prompts = held_out_prompts(32)
    scenes = [scene for _, scene in prompts]
    clips = [generate(model, prompt, seed, "4", NUM_STEPS) for seed, (prompt, _) in enumerate(prompts)]
    readings = [read(clip) for clip in clips]
    right = scores(readings, scenes)
    rotated = scores(readings, scenes[1:] + scenes[:1])
    empty = [read(generate(model, "", seed, "4", NUM_STEPS, guidance_scale=1.0)) for seed in range(16)]
    unguided = scores(empty, scenes[:16])
    for name in ("colour", "motion", "background"):
        assert right[name] >= 0.9, right
        assert rotated[name] <= 0.3, rotated
        assert unguided[name] <= 0.3, unguided


def test_two_seconds_work_too(model: Model) -> None:
    prompts = held_out_prompts(40)[32:]
    clips = [generate(model, prompt, seed, "2", NUM_STEPS) for seed, (prompt, _) in enumerate(prompts)]
    assert clips[0].shape == (17, 64, 64, 3)
    right = scores([read(clip) for clip in clips], [scene for _, scene in prompts])
    assert min(right[name] for name in ("colour", "motion", "background")) >= 0.75, right


def test_the_same_seed_gives_the_same_bytes(model: Model) -> None:
    prompt = "a small red circle moving right on a black background"
    first, again, other = (generate(model, prompt, seed, "2", 4) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
