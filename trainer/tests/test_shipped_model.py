"""The weights in the repository draw what a prompt says; one that training never showed, that is."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vitascope_models.sampling import Guidance, size_shift
from vitascope_trainer.evaluation.given import continued
from vitascope_trainer.evaluation.judging import gate
from vitascope_trainer.evaluation.loading import load_model, settings_of
from vitascope_trainer.evaluation.probe import read
from vitascope_trainer.evaluation.prompts import first_prompts
from vitascope_trainer.evaluation.scoring import score
from vitascope_trainer.generation import generate
from vitascope_trainer.sources import Bucket
from vitascope_trainer.train_dit import tokens_per_frame
from vitascope_trainer.world.scenes import Scene, Thing

pytestmark = pytest.mark.model

FOLDER = Path(__file__).parents[2] / "models" / "vita-mini-6"
NUM_STEPS = 12  # half the default: the probe hardly notices, and the test takes half the time


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_32_held_out_prompts_come_out_right() -> None:
    least = {"colour": 0.95, "background": 0.95, "motion": 0.95, "shape": 0.85, "count": 0.9, "all four": 0.84}
    assert gate(FOLDER, least, num_frames=17, num_steps=NUM_STEPS) == {}


@pytest.mark.slow
def test_what_is_small_and_moves_over_a_pattern_keeps_its_shape() -> None:
    least = {"colour": 0.9, "background": 0.9, "motion": 0.9, "shape": 0.8, "count": 0.9, "all four": 0.75}
    assert gate(FOLDER, least, "small", count=10, num_frames=17, num_steps=NUM_STEPS) == {}


@pytest.mark.slow
def test_two_objects_are_told_apart() -> None:
    least = {"colour": 0.9, "background": 0.9, "count": 0.8, "relation": 0.8, "binding": 0.6}
    assert gate(FOLDER, least, "pairs", count=10, num_frames=17, num_steps=NUM_STEPS) == {}


def test_the_empty_prompt_shows_what_was_asked_for_by_chance_alone() -> None:
    model = load_model(FOLDER)
    settings = replace(settings_of(model.card, "64x64", 17, NUM_STEPS), guidance=Guidance(1.0))
    scenes = [prompt.scene for prompt in first_prompts("plain", 16)]
    rates = score([read(clip) for clip in generate(model, [""] * 16, range(16), settings)], scenes)
    assert rates["all four"].num_right == 0
    assert all(rates[name].num_right <= 6 for name in ("colour", "motion", "background", "shape")), rates


def test_the_demo_shows_exactly_what_its_prompt_says() -> None:
    model = load_model(FOLDER)
    prompt = "a small green star bouncing on a striped background"
    scene = Scene((Thing("star", "green", "bounce", "small"),), "stripes")
    clips = generate(model, [prompt] * 3, range(3), settings_of(model.card, num_steps=NUM_STEPS))
    readings = [read(clip) for clip in clips]
    rates = score(readings, [scene] * 3)
    assert {name: rate.num_right for name, rate in rates.items()} == dict.fromkeys(rates, 3)
    # It is a star in most frames, and not only where it is slow.
    assert np.mean([each.things[0].shape_steadiness for each in readings]) > 0.6, readings


@pytest.mark.slow
@pytest.mark.parametrize("way", ["first frame", "beginning"])
def test_what_is_given_is_continued(way: str) -> None:
    settings = settings_of(load_model(FOLDER).card, num_frames=17, num_steps=NUM_STEPS)
    made = [continued(FOLDER, way, settings, index) for index in range(4)]
    rates = score([each.reading for each in made], [each.scene for each in made])
    assert all(rates[name].num_right >= 3 for name in ("background", "motion", "colour")), rates
    # A clip that began anew would be as far from the given one as any two of the same scene: about 15 dB.
    assert all(each.next_db > 18.0 for each in made), [each.next_db for each in made]


def test_the_same_seed_gives_the_same_bytes() -> None:
    model = load_model(FOLDER)
    settings = settings_of(model.card, num_frames=9, num_steps=4)
    prompt = "a small red circle moving right on a black background"
    first, again, other = (next(generate(model, [prompt], [seed], settings)) for seed in (5, 5, 6))
    assert first.shape == (9, settings.height_px, settings.width_px, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_card_shifts_a_schedule_by_size_as_the_training_shifted_its_times() -> None:
    card = load_model(FOLDER).card
    assert len(card.sizes) > 1
    for size in card.sizes:
        tokens, default = (_num_tokens(each) for each in (size, card.defaults.size))
        assert card.shift_for(size) == pytest.approx(size_shift(card.defaults.shift, tokens, default))


def _num_tokens(size: str) -> int:
    width, height = map(int, size.split("x"))
    return tokens_per_frame(Bucket(1, height, width))
