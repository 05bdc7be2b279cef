"""The probe is right about real clips and no better than chance about anything else."""

import random

import numpy as np
import pytest

from vitascope_trainer.probe import ATTRIBUTES, Reading, read, scores
from vitascope_trainer.world import MOTIONS, random_scene, render


@pytest.mark.parametrize("num_frames", [17, 33])
def test_real_clips_are_read_rightly_and_wrong_labels_are_noticed(num_frames: int) -> None:
    rng = random.Random(num_frames)
    scenes = [random_scene(rng, held_out=None) for _ in range(60)]
    readings = [read(render(scene, num_frames, rng)[0]) for scene in scenes]
    right = scores(readings, scenes)
    assert all(right[name] >= 0.98 for name in ATTRIBUTES), right
    rotated = scores(readings, scenes[1:] + scenes[:1])
    assert all(rotated[name] <= 0.4 for name in ATTRIBUTES), rotated
    assert rotated["all"] == 0.0


def test_every_motion_is_told_apart() -> None:
    rng = random.Random(9)
    seen: set[str] = set()
    while len(seen) < len(MOTIONS):
        scene = random_scene(rng, held_out=None)
        if scene.motion not in seen:
            seen.add(scene.motion)
            assert read(render(scene, 33, rng)[0]).motion == scene.motion


def test_an_empty_stage_has_no_object() -> None:
    assert read(np.full((17, 64, 64, 3), 247, np.uint8)) == Reading(None, None, None, "white")


def test_noise_is_not_mistaken_for_an_answer() -> None:
    rng = np.random.default_rng(1)
    scenes = [random_scene(random.Random(i)) for i in range(20)]
    readings = [read(rng.integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)) for _ in scenes]
    assert scores(readings, scenes)["all"] == 0.0
