"""The procedural world: clips, captions and the split."""

import random

import numpy as np
import pytest

from vitascope_trainer.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Scene,
    caption,
    caption_and_gap,
    held_out_prompts,
    random_scene,
    render,
    vocabulary,
)


@pytest.mark.parametrize("num_frames", [17, 33])
def test_a_clip_shows_its_object_where_the_mask_says(num_frames: int) -> None:
    scene = Scene("circle", "red", "right", "black")
    frames, mask = render(scene, num_frames, random.Random(1))
    assert frames.shape == (num_frames, 64, 64, 3)
    assert mask.shape == (num_frames, 64, 64)
    inside, outside = frames[mask == 255], frames[mask == 0]
    assert np.abs(inside.astype(int) - COLOURS["red"]).max() <= 1
    assert outside.max() <= 9
    columns = [np.nonzero(frame.any(axis=0))[0].mean() for frame in mask]
    assert columns == sorted(columns)
    assert columns[0] < 22
    assert columns[-1] > 42


def test_the_whole_motion_fits_either_length() -> None:
    scene = Scene("square", "green", "grow", "white")
    short, long = (render(scene, num_frames, random.Random(2))[1] for num_frames in (17, 33))
    assert np.array_equal(short, long[::2])


def test_a_second_object_lies_on_top() -> None:
    scenes = Scene("square", "red", "still", "black", "large"), Scene("circle", "blue", "still", "black", "small")
    frames, _ = render(scenes[0], 5, random.Random(3), second=scenes[1])
    colours = {tuple(pixel) for pixel in frames.reshape(-1, 3)}
    assert COLOURS["red"] in colours
    assert COLOURS["blue"] in colours


def test_captions_stay_inside_the_vocabulary_and_the_tokeniser() -> None:
    rng, words = random.Random(4), {*vocabulary(), "zzz"}
    for _ in range(2000):
        text = caption(random_scene(rng, held_out=None), rng)
        spoken = text.replace(",", " ").split()
        assert set(spoken) <= words, text
        assert len(spoken) < 40


def test_a_caption_leaves_out_what_it_says_it_leaves_out() -> None:
    rng, gaps = random.Random(5), set()
    scene = Scene("ring", "purple", "spin", "stripes")
    for _ in range(300):
        text, gap = caption_and_gap(scene, rng)
        gaps.add(gap)
        says_background = any(word in text for word in ("strip",))
        assert says_background == (gap != "background"), text
        assert (("purple" in text) or ("violet" in text)) == (gap != "colour"), text
    assert gaps == {"", "colour", "motion", "background", "size", "shape"}


def test_the_split_keeps_a_fifth_of_the_combinations_from_training() -> None:
    scenes = [Scene(shape, colour, motion, "black") for shape in SHAPES for colour in COLOURS for motion in MOTIONS]
    assert sum(scene.is_held_out for scene in scenes) * 5 == len(scenes)
    rng = random.Random(6)
    assert not any(random_scene(rng).is_held_out for _ in range(500))


def test_held_out_prompts_are_held_out_and_always_the_same() -> None:
    prompts = held_out_prompts(32)
    assert prompts == held_out_prompts(32)
    assert all(scene.is_held_out and scene.is_possible for _, scene in prompts)
    assert len({scene.motion for _, scene in prompts}) == len(MOTIONS)
    assert len({scene.background for _, scene in prompts}) == len(BACKGROUNDS)
    for prompt, scene in prompts:
        assert scene.colour in prompt
        assert scene.shape in prompt


def test_what_nobody_could_see_is_impossible() -> None:
    assert not Scene("circle", "red", "spin", "black").is_possible
    assert not Scene("star", "blue", "still", "dark blue").is_possible
    assert Scene("star", "blue", "spin", "black").is_possible
