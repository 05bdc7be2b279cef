"""What a step draws: clips from a window, what is given of them, crops, attributes; all a function of the step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from vitascope_trainer.attributes import CLASSES, attributes_of
from vitascope_trainer.config import ConditionShares
from vitascope_trainer.latents import Batch, Window, object_cells
from vitascope_trainer.recipes import tiny, vita_mini_2
from vitascope_trainer.seeds import seeded
from vitascope_trainer.sources import Bucket, Said, WorldSource
from vitascope_trainer.train_dit import flow_times, given
from vitascope_trainer.train_vae import Excerpt, cropped, excerpt
from vitascope_trainer.world.scenes import Mix, Scene, Thing, random_scene

BUCKET = Bucket(9, 32, 32)


def batch(count: int, continues: bool = False) -> Batch:
    torch.manual_seed(0)
    latents, last = torch.randn(count, 4, 5, 2, 2), torch.randn(count, 4, 2, 2)
    return Batch(latents, last, None, [continues] * count, [Said("")] * count)


def source(later: float = 0.0) -> WorldSource:
    return WorldSource(3, Mix(), later)


def test_a_clip_is_the_same_whenever_it_is_asked_for() -> None:
    one, again, other = (source().clip(index, BUCKET).frames_THWC for index in (5, 5, 6))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert source().fingerprint(BUCKET) == source().fingerprint(BUCKET)
    assert source().fingerprint(BUCKET) != source(0.5).fingerprint(BUCKET)
    assert source().fingerprint(BUCKET) != source().fingerprint(Bucket(9, 32, 48))


@pytest.mark.parametrize(("bias", "spread"), [(0.4, 1.0), (-0.2, 1.3)])
def test_flow_times_are_logit_normal(bias: float, spread: float) -> None:
    stage = tiny().dit.model_copy(update={"time_bias": bias, "time_spread": spread})
    logits = flow_times(20_000, stage, torch.Generator().manual_seed(1)).logit()
    assert float(logits.mean()) == pytest.approx(bias, abs=0.03)
    assert float(logits.std()) == pytest.approx(spread, rel=0.03)


def test_clips_that_begin_part_way_say_so() -> None:
    continues = [source(0.5).clip(index, BUCKET).is_continuation for index in range(60)]
    assert 15 < sum(continues) < 45
    assert not any(source().clip(index, BUCKET).is_continuation for index in range(20))


def test_a_window_gives_what_the_step_says_whatever_came_before() -> None:
    def window() -> Window[int]:
        return Window(lambda index: index * 10, size=20, fresh=4)

    run = window()
    drawn = [run.draw(step, 6, seeded("w", step)) for step in range(30)]
    assert window().draw(29, 6, seeded("w", 29)) == drawn[29]
    for step, items in enumerate(drawn):
        assert len({index for index, _ in items}) == 6
        assert all(4 * step <= index < 4 * step + 20 and item == index * 10 for index, item in items)


def test_each_kind_of_condition_comes_as_often_as_it_should() -> None:
    shares = ConditionShares(first_frame=0.2, keyframes=0.2, last_frame=0.1, prefix=0.3)
    clips = batch(2000)
    condition = given(clips, shares, seeded("given")).condition_BETHW
    known, hinted, hint = condition[:, 0, :, 0, 0], condition[:, 1, :, 0, 0], condition[:, 2:]
    kinds = Counter((int(k.sum()), int(h.sum())) for k, h in zip(known, hinted, strict=True))
    expected = {(0, 0): 400, (1, 0): 400, (1, 1): 400, (0, 1): 200, (2, 0): 200, (3, 0): 200, (4, 0): 200}
    assert kinds.keys() == expected.keys()
    assert all(abs(kinds[kind] - count) < 90 for kind, count in expected.items())
    assert bool((known.diff(dim=1) <= 0).all()), "what is known comes first"
    has_hint = hinted[:, -1] > 0
    assert torch.equal(hint[has_hint][:, :, -1], clips.last_BCHW[has_hint])
    assert not hint[:, :, :-1].any()
    assert not hint[~has_hint].any()


def test_a_clip_that_begins_part_way_always_gets_a_beginning_and_never_all() -> None:
    drawn = given(batch(200, continues=True), ConditionShares(), seeded("later"))
    num_known = drawn.known_B1THW[:, 0, :, 0, 0].sum(dim=1)
    assert set(num_known.tolist()) == {2.0, 3.0, 4.0}
    assert not drawn.condition_BETHW[:, 1:].any()


def test_a_crop_shows_the_object() -> None:
    mask = torch.zeros(5, 64, 64, dtype=torch.uint8)
    mask[:, 8:24, 40:56] = 255
    piece = Excerpt(torch.zeros(5, 64, 64, 3, dtype=torch.uint8), mask)
    shown = 0
    for number in range(40):
        crop = cropped(piece, 32, seeded("crop", number))
        assert crop.frames_THWC.shape == (5, 32, 32, 3)
        assert crop.mask_THW is not None
        shown += int(crop.mask_THW.sum() > 0)
    assert shown > 30, "one random crop in two would show a part of it"


def test_excerpts_have_their_size_and_are_the_same_each_time() -> None:
    stage = vita_mini_2().vae
    one, again = (excerpt(source(), 4, stage, seed=1) for _ in range(2))
    assert one.frames_THWC.shape == (17, 64, 64, 3)
    assert torch.equal(one.frames_THWC, again.frames_THWC)
    assert excerpt(source(), 0, tiny().vae, seed=1).frames_THWC.shape == (9, 32, 32, 3)


def test_objects_are_found_on_the_latent_grid() -> None:
    mask = torch.zeros(5, 16, 24, dtype=torch.uint8)
    mask[0, 3, 3] = 100
    mask[3, 12, 20] = 200
    cells = object_cells(mask)
    assert cells.shape == (2, 2, 3)
    assert cells[0].tolist() == [[100, 0, 0], [0, 0, 0]]
    assert cells[1].tolist() == [[0, 0, 0], [0, 0, 200]]


def test_attributes_do_not_depend_on_which_object_is_named_first() -> None:
    red, blue = Thing("star", "red", "up", "small"), Thing("ring", "blue", "still")
    one = attributes_of(Scene((red, blue), "white", "right of"), frozenset())
    other = attributes_of(Scene((blue, red), "white", "left of"), frozenset())
    assert one == other
    assert (one["shape"], one["other shape"], one["relation"]) == ("ring", "star", "left of")
    assert "size" not in one, "what is unsaid is not asked for"
    gaps = attributes_of(Scene((red, blue), "white", "right of"), frozenset(("colour", "background")))
    assert set(one) - set(gaps) == {"colour", "other colour", "background"}


@pytest.mark.parametrize("seed", range(3))
def test_every_attribute_has_a_class(seed: int) -> None:
    rng = seeded("attributes", seed)
    for _ in range(200):
        found = attributes_of(random_scene(rng, held_out=None, mix=Mix(0.5, 0.5, 0.5)), frozenset())
        assert all(value in CLASSES[name] for name, value in found.items())
        assert {"shape", "colour", "motion", "background", "camera", "relation", "other shape"} <= set(found)
