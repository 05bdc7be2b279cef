"""The probe is right about real clips and about nothing else, and the report says what was found."""

import itertools
import json
import random
import string
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from typer.testing import CliRunner

from vitascope_models.conditioning import first_frame
from vitascope_models.load import random_weights
from vitascope_models.sampling import Guidance
from vitascope_trainer.evaluation.__main__ import app as evaluation_app
from vitascope_trainer.evaluation.classifier import WEIGHTS, degraded
from vitascope_trainer.evaluation.classifier import app as classifier_app
from vitascope_trainer.evaluation.classifier import load as load_classifier
from vitascope_trainer.evaluation.crops import turning
from vitascope_trainer.evaluation.fidelity import psnr_db, ssim
from vitascope_trainer.evaluation.given import WAYS
from vitascope_trainer.evaluation.judging import Report, consistency, gate, judge, rotated, score_sets
from vitascope_trainer.evaluation.loading import load_model, seconds_per_clip, settings_of
from vitascope_trainer.evaluation.objects import Part
from vitascope_trainer.evaluation.probe import Reading, read
from vitascope_trainer.evaluation.prompts import (
    NEW_COLOURS,
    NEW_SHAPES,
    SETS,
    STRANGE_COLOURS,
    STRANGE_MOTIONS,
    STRANGE_SHAPES,
    all_prompts,
)
from vitascope_trainer.evaluation.report import BEGIN, END, as_json, as_markdown, fill, sheet_bytes, with_scores
from vitascope_trainer.evaluation.scoring import Rate, agreement, score
from vitascope_trainer.generation import Given, Settings, generate
from vitascope_trainer.world.captions import caption
from vitascope_trainer.world.drawing import background_image, render
from vitascope_trainer.world.scenes import BACKGROUNDS, MOTIONS, RELATIONS, Mix, Scene, Thing, random_scene

Bytes = NDArray[np.uint8]

SETTINGS = Settings(64, 64, 17, 4, Guidance(2.0), 2.0, "euler")


def _clip(scene: Scene, num_frames: int = 17, height: int = 64, width: int = 64, seed: int = 0) -> Reading:
    return read(render(scene, num_frames, height, width, random.Random(seed))[0])


def _scenes(count: int, seed: int) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng, held_out=True) for _ in range(count)]


@pytest.mark.parametrize(("side", "num_frames", "count"), [(64, 17, 40), (128, 9, 24)])
def test_real_clips_are_read_rightly_and_wrong_labels_are_noticed(side: int, num_frames: int, count: int) -> None:
    scenes = _scenes(count, seed=side)
    rng = random.Random(1)
    readings = [read(render(scene, num_frames, side, side, rng)[0]) for scene in scenes]
    right = score(readings, scenes)
    for name in ("count", "colour", "motion", "background", "shape", "size", "texture", "relation", "binding"):
        assert right[name].share >= 0.98 or right[name].num_right >= right[name].num_asked - 1, (name, right)
    wrong = score(readings, rotated(scenes))
    assert all(wrong[name].share <= 0.25 for name in ("colour", "motion", "background", "shape", "binding")), wrong
    assert wrong["all four"].num_right == 0


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_told_from_the_others(motion: str) -> None:
    assert _clip(Scene((Thing("triangle", "red", motion),), "black")).things[0].motion == motion


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_relation_is_told_from_the_others(relation: str) -> None:
    first = Thing("square", "red", "still")
    second = first if relation == "beside" else Thing("circle", "yellow", "still")
    scene = Scene((first, second), "dark blue", relation)
    reading = _clip(scene)
    found = agreement(reading, scene)
    assert found["relation"]
    assert found["count"]
    assert found["colour"]


@pytest.mark.parametrize("camera", ["pan left", "pan right", "zoom in", "zoom out"])
def test_a_moving_camera_is_not_taken_for_a_moving_object(camera: str) -> None:
    reading = _clip(Scene((Thing("star", "yellow", "still", "small"),), "blue checkerboard", camera=camera))
    assert reading.camera == camera
    assert reading.things[0].motion == "still"


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_stage_has_no_object(background: str) -> None:
    frame = (background_image(background, 64, 96) * 255).astype(np.uint8)
    assert read(np.repeat(frame[None], 9, axis=0)) == Reading((), background, "fixed")


def test_noise_is_read_as_nothing() -> None:
    reading = read(np.random.default_rng(1).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8))
    assert reading.background is None
    assert reading.count == 0


def _odd_clip(kind: str, seed: int) -> Bytes:
    """Spoil a real clip, as models do that have learnt little."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    num_frames, (height, width) = rng.choice((5, 9)), rng.choice(((64, 64), (64, 96)))
    scene = random_scene(rng, held_out=None, mix=Mix(two=0.5, texture=0.2, camera=0.2))
    clip = render(scene, num_frames, height, width, rng)[0].copy()
    match kind:
        case "noise":
            clip = noise.integers(0, 256, clip.shape, dtype=np.uint8)
        case "blank":
            clip[:] = noise.integers(0, 256, 3)
        case "flicker":
            clip[::2] = 255 - clip[::2]
        case "half-empty":
            clip[:, :, width // 2 :] = clip[0, 0, 0]
        case "half-noisy":
            clip[:, height // 2 :] = noise.integers(0, 256, clip[:, height // 2 :].shape)
        case "gone":
            clip[rng.randrange(num_frames) :] = clip[0, 0, 0]
        case _:
            clip = (clip * np.linspace(1.0, 0.0, num_frames)[:, None, None, None]).astype(np.uint8)
    return clip


@pytest.mark.parametrize("kind", ["noise", "blank", "flicker", "half-empty", "half-noisy", "gone", "fading"])
def test_whatever_a_clip_looks_like_it_is_read(kind: str) -> None:
    for seed in range(10):
        assert read(_odd_clip(kind, seed)).count <= 3


def test_a_view_of_which_nothing_is_left_says_nothing_of_turning() -> None:
    mask = np.zeros((6, 64, 64), bool)
    mask[:, 20:40, 20:40] = True
    cover = mask.astype(np.float32)
    cover[2] = 0.0
    light = np.random.default_rng(1).random(mask.shape, np.float32)
    light[:] = light[0]
    assert turning(Part("red", mask, mask, cover), light) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("num_frames", "height", "width"), [(49, 64, 96), (9, 96, 64), (17, 256, 256)])
def test_other_sizes_and_lengths_are_read_too(num_frames: int, height: int, width: int) -> None:
    scene = Scene((Thing("heart", "pink", "down"),), "dark green")
    assert all(agreement(_clip(scene, num_frames, height, width), scene).values())


def test_a_blurred_and_noisy_clip_is_read_like_a_clean_one() -> None:
    scene = Scene((Thing("star", "green", "right"),), "stripes")
    frames, _ = render(scene, 17, 64, 64, random.Random(2))
    assert all(agreement(read(degraded(frames, 0.7, 5.0, seed=1)), scene).values())


def test_swapped_colours_are_no_binding() -> None:
    def pair(one: str, other: str) -> Scene:
        return Scene((Thing("square", one, "still"), Thing("circle", other, "still")), "black", "left of")

    reading = _clip(pair("red", "cyan"))
    assert agreement(reading, pair("red", "cyan"))["binding"]
    assert not agreement(reading, pair("cyan", "red"))["binding"]


def test_an_object_too_many_is_noticed() -> None:
    one, other = Thing("ring", "red", "still"), Thing("ring", "red", "still")
    found = agreement(_clip(Scene((one, other), "white", "beside")), Scene((one,), "white"))
    assert not found["count"]
    assert not found["all four"]


def test_a_shape_that_is_lost_in_mid_flight_is_not_kept() -> None:
    star, heart = (Scene((Thing(shape, "green", "bounce", "small"),), "stripes") for shape in ("star", "heart"))
    frames, other = (render(scene, 33, 128, 128, random.Random(4))[0] for scene in (star, heart))
    spoiled = frames.copy()
    fast = [t for t in range(33) if abs(np.sin(4 * np.pi * t / 32)) > 0.6]
    spoiled[fast] = other[fast]
    assert read(frames).things[0].shape_steadiness == 1.0
    assert 0.3 <= read(spoiled).things[0].shape_steadiness <= 0.7


def test_an_object_that_is_not_there_keeps_nothing() -> None:
    scene = Scene((Thing("circle", "red", "still"), Thing("square", "cyan", "still")), "black", "left of")
    alone = Scene(scene.things[:1], "black")
    both, one = _clip(scene), _clip(alone)
    assert consistency([both], [scene])["shape kept"] == 1.0
    assert consistency([one], [scene])["shape kept"] == 0.5
    assert consistency([both], [alone])["colour kept"] == 1.0


def test_flicker_is_measured_beside_the_objects() -> None:
    scene = Scene((Thing("circle", "red", "right"),), "gray")
    frames, _ = render(scene, 17, 64, 64, random.Random(3))
    flickering = frames.copy()
    flickering[::2] = np.clip(flickering[::2].astype(int) + 6, 0, 255)
    assert read(frames).flicker < 0.5
    assert read(flickering).flicker > 4.0


def test_prompts_are_unseen_possible_and_the_same_every_time() -> None:
    prompts = all_prompts()
    assert len(prompts) >= 256
    assert prompts == all_prompts()
    assert {kind: sum(prompt.kind == kind for prompt in prompts) for kind in SETS} == SETS
    assert all(prompt.scene.is_possible for prompt in prompts)
    assert all(prompt.is_unseen and prompt.scene.is_held_out for prompt in prompts if prompt.kind != "confusable")
    assert len({prompt.text for prompt in prompts}) >= 0.98 * len(prompts)
    assert {prompt.kind for prompt in all_prompts(20)} == set(SETS)


def test_confusable_prompts_come_in_pairs_that_differ_in_what_they_show() -> None:
    confusable = [prompt for prompt in all_prompts() if prompt.kind == "confusable"]
    for one, other in zip(confusable[::2], confusable[1::2], strict=True):
        assert one.scene != other.scene
        assert one.is_unseen
    assert sum(prompt.is_unseen for prompt in confusable) >= 40


def test_prompts_that_training_may_have_shown_do_not_count_in_all() -> None:
    prompts = [prompt for prompt in all_prompts() if prompt.kind == "confusable"]
    table = score_sets([Reading((), None, None)] * len(prompts), prompts)
    assert table["confusable"]["all four"].num_asked == len(prompts)
    assert table["all"]["all four"].num_asked == sum(prompt.is_unseen for prompt in prompts) < len(prompts)


@pytest.mark.parametrize("kind", [*SETS, "all"])
def test_the_label_of_another_clip_is_right_by_chance_alone(kind: str) -> None:
    scenes = [prompt.scene for prompt in all_prompts() if kind in (prompt.kind, "all")]
    others = rotated(scenes)
    assert sorted(map(repr, others)) == sorted(map(repr, scenes))
    pairs = [(one.things[0], other.things[0]) for one, other in zip(scenes, others, strict=True)]
    for name in ("shape", "colour", "motion"):
        assert sum(getattr(one, name) == getattr(other, name) for one, other in pairs) <= 0.35 * len(pairs)
    alike = [
        sum(getattr(one, name) == getattr(other, name) for name in ("shape", "colour", "motion"))
        for one, other in pairs
    ]
    assert sum(num_same >= 2 for num_same in alike) <= 0.15 * len(alike)


@pytest.fixture(scope="module")
def said() -> set[str]:
    """Every word of 3,000 captions."""
    rng = random.Random(4)
    return {
        word.strip(string.punctuation)
        for _ in range(3000)
        for word in caption(random_scene(rng, held_out=None), rng).text.lower().split()
    }


def test_reworded_prompts_have_new_forms_of_words_that_training_says(said: set[str]) -> None:
    forms = {**NEW_COLOURS, **NEW_SHAPES}
    assert not said & set(forms.values())
    assert all(form[:3] == word[:3] and word in said for word, form in forms.items())
    texts = [prompt.text for prompt in all_prompts() if prompt.kind == "reworded"]
    assert len(set(texts)) == SETS["reworded"]
    assert all(any(form in text for form in forms.values()) for text in texts)


def test_of_strange_words_one_at_least_is_like_none_that_training_says(said: set[str]) -> None:
    beginnings = {word[:4] for word in said}
    for words in (STRANGE_COLOURS, STRANGE_SHAPES, STRANGE_MOTIONS):
        for phrase in itertools.chain.from_iterable(words.values()):
            assert any(len(word) > 2 and word[:4] not in beginnings for word in phrase.split()), phrase


def test_pairs_are_unseen_in_what_binding_asks_and_written_prompts_in_their_objects() -> None:
    prompts = all_prompts()
    assert all(prompt.scene.is_held_out_pair for prompt in prompts if prompt.kind == "pairs")
    written = [prompt for prompt in prompts if prompt.kind == "written"]
    assert len(written) == SETS["written"] == 48
    assert all(prompt.is_unseen and prompt.scene.is_possible for prompt in written)


def test_frames_that_are_given_are_kept_whatever_the_model_draws(tmp_path: Path) -> None:
    folder = _untrained_model(tmp_path / "model")
    model = load_model(folder)
    settings = settings_of(model.card, "64x64", 9, 1)
    real, _ = render(Scene((Thing("circle", "red", "right"),), "gray"), 9, 64, 64, random.Random(5))
    shape = model.vae.latent_shape(9, 64, 64)
    with torch.no_grad():
        guide = first_frame(model.vae, torch.from_numpy(real[0]), shape)
        decoded = next(model.vae.decode_stream(guide.clean_CTHW[None, :, :1])).numpy()
    (clip,) = generate(model, ["a blue star"], [0], settings, given=Given(guide))
    assert np.array_equal(clip[0], decoded[0])
    (free,) = generate(model, ["a blue star"], [0], settings)
    assert not np.array_equal(free[0], decoded[0])


def test_wilsons_interval_matches_the_published_example() -> None:
    low, high = Rate(81, 263).interval  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_fidelity_is_perfect_for_the_same_clip_and_falls_with_noise() -> None:
    frames, _ = render(Scene((Thing("circle", "red", "right"),), "gray"), 3, 64, 64, random.Random(5))
    assert (psnr_db(frames, frames), round(ssim(frames, frames), 6)) == (100.0, 1.0)
    noisy = degraded(frames, 0.0, 10.0, seed=1)
    assert 20.0 < psnr_db(frames, noisy) < 32.0
    assert ssim(frames, noisy) < 0.9


def _untrained_model(folder: Path) -> Path:
    """Write a tiny model with random weights."""
    shipped = yaml.safe_load(next((Path(__file__).parents[2] / "models").glob("vita-mini-*/card.yaml")).read_text())
    architecture = {
        "vae": {"latent_channels": 12, "widths": [8, 8, 8]},
        "text_encoder": {"width": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 40, "num_buckets": 64},
        "dit": {"latent_channels": 12, "width": 16, "num_layers": 1, "num_heads": 2, "text_width": 16},
    }
    card = random_weights(shipped | {"architecture": architecture, "files": {}}, folder, seed=1)
    (folder / "card.yaml").write_text(yaml.safe_dump(card | {"created": "2026-01-01"}))
    return folder


def test_a_model_that_learnt_nothing_does_not_pass_the_gate(tmp_path: Path) -> None:
    model = _untrained_model(tmp_path)
    short = gate(model, {"colour": 0.9, "shape": 0.5}, count=4, size="64x64", num_frames=9, num_steps=1)
    assert set(short) == {"colour", "shape"}
    assert gate(model, {"colour": 0.0}, count=4, size="64x64", num_frames=9, num_steps=1) == {}


def test_a_clip_depends_on_its_own_prompt_and_seed_alone(tmp_path: Path) -> None:
    model = load_model(_untrained_model(tmp_path))
    settings = replace(SETTINGS, num_frames=5, num_steps=2)
    both = list(generate(model, ["a red star", "a blue ring"], [1, 2], settings))
    alone = next(generate(model, ["a blue ring"], [2], settings))
    assert np.abs(both[1].astype(int) - alone).max() <= 1  # a batch's arithmetic may round otherwise
    assert not np.array_equal(both[0], both[1])


def test_a_clip_is_timed_without_loading_and_warming_up(tmp_path: Path) -> None:
    model = load_model(_untrained_model(tmp_path))
    began = time.perf_counter()
    taken = seconds_per_clip(model, ["a red star", "a blue ring"], replace(SETTINGS, num_frames=5, num_steps=1))
    assert 0.0 < taken < (time.perf_counter() - began) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "10"], "4k+1 frames"),
        (["--size", "abc"], "WIDTHxHEIGHT"),
        (["--size", "72x72"], "16k pixels"),
        (["--attention", "foo"], "one of full, causal, window"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    found = CliRunner().invoke(evaluation_app, [str(_untrained_model(tmp_path / "model")), *options])
    assert (found.exit_code, found.output.count("\n")) == (2, 1)
    assert message in found.output


def test_a_place_that_takes_no_results_is_refused_before_the_work(tmp_path: Path) -> None:
    folder, out = _untrained_model(tmp_path / "model"), tmp_path / "docs"
    out.mkdir()
    (out / "model.md").write_text("# About a model\n")
    (tmp_path / "file").touch()
    for place, message in ((out, BEGIN), (tmp_path / "file", "nothing can be written")):
        found = CliRunner().invoke(evaluation_app, [str(folder), "--out", str(place)])
        assert (found.exit_code, found.output.count("\n")) == (2, 1), found.output
        assert message in found.output
    assert (out / "model.md").read_text() == "# About a model\n"


def test_what_a_card_offers_is_judged_as_far_as_it_can_be(tmp_path: Path) -> None:
    folder = _untrained_model(tmp_path / "model")
    card = yaml.safe_load((folder / "card.yaml").read_text())
    card |= {
        "sizes": ["128x128", "64x64", "72x64"],
        "capabilities": ["text_to_video", "extension"],
        "solvers": ["euler"],
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    cheap = ["--size", "64x64", "--frames", "5", "--steps", "1", "--processes", "1", "--vae-count", "0", "--count", "7"]
    few = ["--empty-count", "1", "--attention-count", "0", "--format-count", "1", "--given-count", "1"]
    found = CliRunner().invoke(evaluation_app, [str(folder), *cheap, *few, "--out", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    assert "Left out, 72x64, 5 frames: Clips of" in found.output
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(report["given"]) == {"beginning"}
    assert "128x128, 5 frames" in report["formats"]
    assert "72x64, 5 frames" not in report["formats"]


def test_a_folder_without_a_card_is_refused_in_one_line(tmp_path: Path) -> None:
    found = CliRunner().invoke(evaluation_app, [str(tmp_path)])
    assert (found.exit_code, found.output.count("\n")) == (2, 1)
    assert "card.yaml" in found.output


def test_the_shape_classifier_is_trained_by_a_command(tmp_path: Path) -> None:
    path = tmp_path / "shapes.safetensors"
    found = CliRunner().invoke(classifier_app, [str(path), "--clips", "12", "--steps", "5"])
    assert found.exit_code == 0, found.output
    logits = load_classifier(path)(torch.zeros(3, 2, 32, 32))
    assert logits.shape == (3, 6)
    assert bool(logits.isfinite().all())


def test_the_shape_classifier_stays_small() -> None:
    assert WEIGHTS.stat().st_size <= 300_000


def test_a_report_fills_its_place_in_the_document_and_nothing_else(tmp_path: Path) -> None:
    scenes = _scenes(3, seed=8)
    table = score([_clip(scene) for scene in scenes], scenes)
    modes = {
        mode: {"all four": Rate(num_right, 100)} for mode, num_right in (("full", 90), ("causal", 87), ("window", 86))
    }
    steady = {"all": {"flicker": 0.5, "colour kept": 0.98, "shape kept": 0.912}, "small": {}}
    report = Report("tiny", SETTINGS, {"all": table}, {"real clips": table}, modes, steady, {}, 1.5, 2)
    values = json.loads(as_json(report))
    assert values["sets"]["all"]["all four"]["asked"] == 3
    assert values["attention_allowed"] == ["full", "causal"]
    assert (values["seconds_per_clip"], values["num_threads"]) == (1.5, 2)
    document = tmp_path / "model.md"
    document.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\nthe rest\n")
    fill(document, as_markdown(report, "images/tiny.webp"))
    text = document.read_text()
    assert "old" not in text
    assert text.startswith("# Title")
    assert text.endswith("the rest\n")
    assert "| real clips | 3 |" in text
    assert "| all | 0.50 | 98.0 | 91.2 |" in text
    assert "within 3 points of full on all four: `full`, `causal`." in text
    assert "1.5 s to make one clip by itself (threads: 2)" in text


def test_a_model_is_scored_by_the_command_and_its_card_says_how(tmp_path: Path) -> None:
    folder, out = _untrained_model(tmp_path / "model"), tmp_path / "docs"
    before = yaml.safe_load((folder / "card.yaml").read_text())
    cheap = ["--size", "64x64", "--frames", "5", "--steps", "1", "--processes", "1", "--vae-count", "1"]
    few = ["--count", "7", "--attention-count", "3", "--format-count", "1", "--given-count", "1"]
    command = [str(folder), *cheap, *few, "--out", str(out)]
    assert CliRunner().invoke(evaluation_app, command).exit_code == 0
    assert yaml.safe_load((folder / "card.yaml").read_text()) == before
    found = CliRunner().invoke(evaluation_app, [*command, "--card"])
    assert found.exit_code == 0, found.output
    after = yaml.safe_load((folder / "card.yaml").read_text())
    report = json.loads((out / "evaluation.json").read_text())
    assert set(report["given"]) == set(WAYS)
    assert report["controls"]["empty prompt"]["all four"]["asked"] == report["sets"]["all"]["all four"]["asked"]
    assert report["given"]["first frame"]["rates"]["all four"]["asked"] == 1
    assert all(name in "".join(report["formats"]) for name in ("frames, heun, 1 steps", "rk4", "ddim"))
    assert after["evaluation"]["size"] == "64x64"
    assert after["evaluation"]["plain"]["shape"] == report["sets"]["plain"]["shape"]["share"]
    assert after["evaluation"]["vae_psnr_db"].keys() == {"64x64", "96x96", "128x128", "128x128, small on patterns"}
    assert {**after, "evaluation": 0} == {**before, "evaluation": 0}
    # The clips of the card's own attention are taken over or made, as there are: the same ones either way.
    settings = settings_of(load_model(folder).card, "64x64", 5, 1, "full")
    plain = [prompt for prompt in all_prompts() if prompt.kind == "plain"][:3]
    again = judge(folder, [prompt.text for prompt in plain], settings, seed=1_000)
    rates = score([each.reading for each in again], [prompt.scene for prompt in plain])
    shares = {name: table["right"] for name, table in report["attention"]["full"].items()}
    assert shares == {name: rate.num_right for name, rate in rates.items()}


def test_a_card_allows_the_attentions_that_passed_before_enough_prompts_and_its_own_only_then() -> None:
    default = f"{SETTINGS.width_px}x{SETTINGS.height_px}"

    def judged(num: int, size: str = default) -> dict[str, Any]:
        modes = {"full": Rate(num, num), "causal": Rate(num // 2, num), "window": Rate(num, num)}
        report = Report(
            "tiny", SETTINGS, {}, {}, {mode: {"all four": rate} for mode, rate in modes.items()}, {}, {}, 1.0, 1
        )
        clip = {"defaults": {"size": size, "seconds": "1"}, "num_frames": {"1": SETTINGS.num_frames}}
        return with_scores({"id": "tiny", "attention": {"temporal": "causal", "window": 3}, **clip}, report)

    assert judged(100)["attention"] == {"temporal": "full", "window": 3, "allowed": ["full", "window"]}
    assert judged(100)["evaluation"]["attention"] == {"full": 1.0, "causal": 0.5, "window": 1.0}
    assert judged(10)["attention"] == judged(100, "32x32")["attention"] == {"temporal": "causal", "window": 3}


def test_the_contact_sheet_is_a_small_picture() -> None:
    clips = [np.full((9, 64, 64, 3), level, np.uint8) for level in (0, 200)]
    assert sheet_bytes(clips, ["one", "two"])[8:12] == b"WEBP"
