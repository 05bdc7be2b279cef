"""The procedural world: what scenes there are, how they are split, and that clips show what they say."""

import random
from dataclasses import replace

import numpy as np
import pytest

from vitascope_trainer.world.drawing import background_image, render
from vitascope_trainer.world.scenes import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    DIRECTIONS,
    MOTIONS,
    OPPOSITE,
    PATTERNS,
    RELATIONS,
    SHAPES,
    TEXTURES,
    TRAVELS,
    Mix,
    Scene,
    Thing,
    random_scene,
)

RED = np.array(COLOURS["red"])


def one(shape: str = "circle", colour: str = "red", motion: str = "still", background: str = "black") -> Scene:
    return Scene((Thing(shape, colour, motion),), background)


def centres(mask: np.ndarray) -> np.ndarray:
    return np.array([[each.mean() for each in np.nonzero(frame > 127)] for frame in mask])  # (T, row and column)


def where(frames: np.ndarray, colour: str) -> np.ndarray:
    """Rows and columns of a colour in the first frame."""
    return np.argwhere(np.abs(frames[0].astype(int) - COLOURS[colour]).max(axis=-1) <= 2)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (64, 96), (96, 64)])
def test_a_clip_shows_its_object_where_the_mask_says(height: int, width: int) -> None:
    frames, mask = render(one(), 17, height, width, random.Random(1))
    assert frames.shape == (17, height, width, 3)
    assert mask.shape == (17, height, width)
    assert np.abs(frames[mask == 255].astype(int) - RED).max() <= 1
    assert np.abs(frames[mask == 0].astype(int) - 8).max() <= 1


@pytest.mark.parametrize("motion", DIRECTIONS)
def test_a_direction_is_where_the_object_goes(motion: str) -> None:
    path = centres(render(one(motion=motion), 17, 64, 64, random.Random(2))[1])
    across, down = DIRECTIONS[motion]
    for moved, wanted in zip(path[-1] - path[0], (down, across), strict=True):
        assert moved == pytest.approx(0, abs=1) if not wanted else moved * wanted > 16


@pytest.mark.parametrize("motion", ["bounce", "orbit", "zigzag"])
def test_a_course_returns_or_crosses(motion: str) -> None:
    path = centres(render(one(motion=motion), 33, 64, 64, random.Random(3))[1])
    rows, columns = path[:, 0], path[:, 1]
    turns = int((np.diff(np.sign(np.diff(rows))) != 0).sum())
    assert turns >= {"bounce": 3, "orbit": 1, "zigzag": 4}[motion]
    assert (np.ptp(columns) > 16) == (motion != "bounce")


def test_growing_spinning_and_standing_still_stay_in_place() -> None:
    for motion in ("grow", "shrink", "spin", "still"):
        mask = render(one("square", motion=motion), 17, 64, 64, random.Random(4))[1]
        assert np.ptp(centres(mask), axis=0).max() < 1.5
        area = mask.sum(axis=(1, 2)) / 255
        assert area[-1] / area[0] == pytest.approx({"grow": 8, "shrink": 1 / 8}.get(motion, 1), rel=0.35)
        assert (np.abs(mask[8].astype(int) - mask[4]).max() > 200) == (motion != "still")


def test_a_motion_takes_the_whole_clip_whatever_its_length_and_size() -> None:
    scene = one("square", "green", "grow", "white")
    short, long = (render(scene, num_frames, 64, 64, random.Random(5))[1] for num_frames in (17, 33))
    assert np.array_equal(short, long[::2])
    large = render(scene, 17, 128, 128, random.Random(5))[1]
    halved = large.reshape(17, 64, 2, 64, 2).mean(axis=(2, 4))
    assert np.abs(halved - short).mean() < 1.0


def test_a_later_beginning_goes_on_where_the_motion_is_by_then() -> None:
    scene = one(motion="right")
    whole = render(scene, 33, 64, 64, random.Random(6))[1]
    second_half = render(scene, 33, 64, 64, random.Random(6), begin=0.5)[1]
    assert centres(second_half[:1])[0] == pytest.approx(centres(whole[16:17])[0], abs=0.6)
    assert second_half[-1].sum() < 0.7 * second_half[0].sum()  # it is leaving the frame by then


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_objects_stand_as_the_relation_says(relation: str) -> None:
    first, second = Thing("square", "red", "still"), Thing("circle", "cyan", "still")
    if relation == "beside":
        second = first
    frames, _ = render(Scene((first, second), "black", relation), 5, 64, 64, random.Random(7))
    if relation == "beside":
        columns = where(frames, "red")[:, 1]
        assert columns.min() < 24
        assert columns.max() > 40
        return
    a, b = (where(frames, colour) for colour in ("red", "cyan"))
    apart = a.mean(axis=0) - b.mean(axis=0)
    match relation:
        case "left of":
            assert apart[1] < -16
        case "right of":
            assert apart[1] > 16
        case "above":
            assert apart[0] < -16
        case "below":
            assert apart[0] > 16
        case "behind":
            assert len(b) > 60  # whole
            assert len(a) > 2 * len(b)
        case _:
            assert len(a) > 60
            assert len(b) > 2 * len(a)


@pytest.mark.parametrize("camera", CAMERAS[1:])
def test_a_camera_moves_the_background(camera: str) -> None:
    scene = replace(one(background="checkerboard"), camera=camera)
    frames, _ = render(scene, 9, 64, 64, random.Random(8))
    assert np.abs(frames[0, :8].astype(int) - frames[3, :8]).max() > 100
    fixed, _ = render(one(background="checkerboard"), 9, 64, 64, random.Random(8))
    assert np.array_equal(fixed[0, :8], fixed[3, :8])


def test_backgrounds_differ_and_fit_every_size() -> None:
    pictures = {name: background_image(name, 64, 96) for name in BACKGROUNDS}
    assert all(picture.shape == (64, 96, 3) for picture in pictures.values())
    names = list(pictures)
    for index, name in enumerate(names):
        for other in names[:index]:
            assert np.abs(pictures[name] - pictures[other]).max() > 0.08, (name, other)


@pytest.mark.parametrize("texture", TEXTURES[1:])
def test_a_texture_leaves_most_of_the_object_its_colour(texture: str) -> None:
    frames, mask = render(
        Scene((Thing("square", "red", "still", "large", texture),), "white"), 1, 128, 128, random.Random(9)
    )
    own = np.abs(frames[mask == 255].astype(int) - RED).max(axis=-1) <= 2
    assert 0.5 < own.mean() < 0.95


def test_scenes_are_possible_various_and_on_their_side_of_the_split() -> None:
    rng = random.Random(10)
    for held_out in (False, True):
        scenes = [random_scene(rng, held_out=held_out) for _ in range(1500)]
        assert all(scene.is_possible and scene.is_held_out == held_out for scene in scenes)
        assert {thing.shape for scene in scenes for thing in scene.things} == set(SHAPES)
        assert {thing.motion for scene in scenes for thing in scene.things} == set(MOTIONS)
        assert {scene.background for scene in scenes} == set(BACKGROUNDS)
        assert {scene.relation for scene in scenes} == {"", *RELATIONS}
    share = sum(random_scene(rng, held_out=None).is_held_out for _ in range(2000)) / 2000
    assert 0.15 < share < 0.45


def test_small_moving_objects_on_patterns_come_as_often_as_asked_for() -> None:
    rng = random.Random(12)
    mix = Mix(two=0.5, pattern=0.0, small_on_pattern=0.3)
    scenes = [random_scene(rng, mix=mix) for _ in range(1500)]
    on_pattern = [scene for scene in scenes if scene.background.endswith(PATTERNS)]
    assert len(on_pattern) / 1500 == pytest.approx(0.3, abs=0.04)
    assert all(len(each.things) == 1 and each.things[0].size == "small" for each in on_pattern)
    assert {each.things[0].motion for each in on_pattern} == set(TRAVELS)
    assert sum(len(scene.things) == 2 for scene in scenes) / 1500 == pytest.approx(0.5, abs=0.05)


def test_a_pair_and_its_mirror_image_are_on_the_same_side_of_the_split() -> None:
    rng = random.Random(11)
    pairs = [random_scene(rng, held_out=None, mix=Mix(two=1.0)) for _ in range(600)]
    for scene in (each for each in pairs if each.relation != "beside"):
        mirrored = Scene(scene.things[::-1], scene.background, OPPOSITE[scene.relation])
        assert mirrored.is_held_out == scene.is_held_out
        assert mirrored.canonical == scene.canonical


def test_impossible_scenes_are_refused() -> None:
    assert not one("circle", motion="spin").is_possible
    assert not one(colour="blue", background="blue").is_possible
    assert not replace(one(background="black"), camera="pan left").is_possible  # nothing shows it
    assert not replace(one(background="blue gradient"), camera="pan left").is_possible
    assert one("star", "green", "bounce", "stripes").is_possible


def test_the_same_seed_gives_the_same_clip() -> None:
    scenes = [random_scene(random.Random(seed)) for seed in (1, 1, 2)]
    clips = [render(scene, 9, 64, 64, random.Random(3))[0] for scene in scenes]
    assert np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])
