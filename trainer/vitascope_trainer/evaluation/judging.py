"""Judge a model: make clips for unseen prompts, read them, count what is right, and run the controls beside it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vitascope_models.sampling import Guidance
from vitascope_models.vae import VAE, from_uint8
from vitascope_trainer.evaluation.fidelity import psnr_db, ssim
from vitascope_trainer.evaluation.given import Kept
from vitascope_trainer.evaluation.loading import Progress, loaded, settings_of, shared_out
from vitascope_trainer.evaluation.probe import Reading, read
from vitascope_trainer.evaluation.prompts import Prompt, first_prompts, unseen_scene
from vitascope_trainer.evaluation.scoring import Rate, score
from vitascope_trainer.generation import Settings, generate
from vitascope_trainer.sheets import thumbnails
from vitascope_trainer.world.drawing import render
from vitascope_trainer.world.scenes import Mix, Scene

Bytes = NDArray[np.uint8]

_MOST_LOST = 0.03  # of the share of all four, by which an attention may be worse than the full one


@dataclass(frozen=True)
class Judged:
    """A clip that was made and read."""

    reading: Reading
    thumbnails_THWC: Bytes


def judge(
    folder: Path,
    texts: Sequence[str],
    settings: Settings,
    seed: int,
    processes: int = 1,
    progress: Progress = lambda _: None,
) -> list[Judged]:
    """Make and read a clip per text; clip i has seed `seed + i`, however many processes share the work."""
    return shared_out(partial(_judged, folder, settings), list(enumerate(texts, seed)), processes, progress)


def _judged(folder: Path, settings: Settings, task: tuple[int, str]) -> Judged:
    seed, text = task
    (clip,) = generate(loaded(folder), [text], [seed], settings)
    return Judged(read(clip), thumbnails(clip))


def rates_of(
    folder: Path,
    prompts: Sequence[Prompt],
    settings: Settings,
    seed: int,
    processes: int = 1,
    progress: Progress = lambda _: None,
) -> dict[str, Rate]:
    """Judge a model by prompts and score what it made."""
    judged = judge(folder, [prompt.text for prompt in prompts], settings, seed, processes, progress)
    return score([each.reading for each in judged], [prompt.scene for prompt in prompts])


@dataclass(frozen=True)
class Report:
    """What an evaluation found."""

    model_id: str
    settings: Settings
    sets: Mapping[str, Mapping[str, Rate]]
    """By set of prompts, then by attribute; `all` is every prompt whose scene training cannot have shown."""
    controls: Mapping[str, Mapping[str, Rate]]
    """Real clips; the labels of other clips; the empty prompt."""
    attention: Mapping[str, Mapping[str, Rate]]
    """By temporal attention, on the plain prompts of `attention_count`."""
    consistency: Mapping[str, Mapping[str, float]]
    """By set of prompts: flicker, and how steady colours and shapes are."""
    fidelity: Mapping[str, Mapping[str, float]]
    """PSNR (dB) and SSIM of the VAE by size."""
    seconds_per_clip: float = 0.0
    """Of one clip by itself, made with `num_threads` threads."""
    num_threads: int = 1
    formats: Mapping[str, Mapping[str, Rate]] = field(default_factory=dict)
    """By other sizes, lengths and solvers, on the first plain prompts."""
    given: Mapping[str, Kept] = field(default_factory=dict)
    """By what is given besides the prompt."""

    @property
    def attention_allowed(self) -> tuple[str, ...]:
        """Give the temporal attentions that come within 3 points of full attention on `all four`; none if not compared.

        These are the ones that the model may be run with.
        """
        if "full" not in self.attention:
            return ()
        least = self.attention["full"]["all four"].share - _MOST_LOST - 1e-9
        return tuple(mode for mode, rates in self.attention.items() if rates["all four"].share >= least)


def score_sets(readings: Sequence[Reading], prompts: Sequence[Prompt]) -> dict[str, dict[str, Rate]]:
    """Score each set by itself, and all prompts together whose scene training cannot have shown."""
    return {name: score(some, scenes) for name, (some, scenes) in _by_set(readings, prompts).items()}


def consistency_of_sets(readings: Sequence[Reading], prompts: Sequence[Prompt]) -> dict[str, dict[str, float]]:
    """Give how consistent the clips of each set are over time, and those of all as in `score_sets`."""
    return {name: consistency(some, scenes) for name, (some, scenes) in _by_set(readings, prompts).items()}


def _by_set(readings: Sequence[Reading], prompts: Sequence[Prompt]) -> dict[str, tuple[list[Reading], list[Scene]]]:
    pairs = list(zip(readings, prompts, strict=True))
    chosen = {"all": [pair for pair in pairs if pair[1].is_unseen]}
    for kind in dict.fromkeys(prompt.kind for prompt in prompts):
        chosen[kind] = [pair for pair in pairs if pair[1].kind == kind]
    return {
        name: ([reading for reading, _ in some], [prompt.scene for _, prompt in some]) for name, some in chosen.items()
    }


def rotated(scenes: Sequence[Scene]) -> list[Scene]:
    """Give every clip the label of another one: what a model that ignores its prompt would score.

    Labels move by half a turn of a shuffled order, the same every time, as neighbours may be minimal pairs.
    """
    order = list(range(len(scenes)))
    random.Random(0).shuffle(order)
    half = len(order) // 2
    partner = dict(zip(order, order[half:] + order[:half], strict=True))
    return [scenes[partner[index]] for index in range(len(scenes))]


def real_clips(scenes: Sequence[Scene], settings: Settings, seed: int = 1) -> list[Reading]:
    """Read clips that the world itself draws: the best that any model can score."""
    rng = random.Random(seed)
    size = settings.num_frames, settings.height_px, settings.width_px
    return [read(render(scene, *size, rng)[0]) for scene in scenes]


def controls(
    folder: Path,
    readings: Sequence[Reading],
    real: Sequence[Reading],
    scenes: Sequence[Scene],
    settings: Settings,
    num_empty: int,
    processes: int,
    progress: Progress,
) -> dict[str, dict[str, Rate]]:
    """Score what has to come out near 1 (`real` clips) and what has to come out near chance.

    There may be as many clips of the empty prompt as there are scenes.
    """
    unguided = replace(settings, guidance=Guidance(1.0))
    empty = judge(folder, [""] * num_empty, unguided, 9_000, processes, progress=progress)
    every = max(1, len(scenes) // max(1, num_empty))
    return {
        "real clips": score(real, scenes),
        "labels of another clip": score(readings, rotated(scenes)),
        "empty prompt": score([each.reading for each in empty], scenes[::every][:num_empty]),
    }


def consistency(readings: Sequence[Reading], scenes: Sequence[Scene]) -> dict[str, float]:
    """Give flicker beside the objects, and the shares of the asked objects' frames with the clip's colour and shape.

    An object that is not there keeps neither.
    """
    asked = sum(max(len(scene.things), reading.count) for reading, scene in zip(readings, scenes, strict=True))
    things = [thing for reading in readings for thing in reading.things]
    if not things:
        return {}
    return {
        "flicker": float(np.median([reading.flicker for reading in readings])),
        "colour kept": sum(thing.colour_steadiness for thing in things) / asked,
        "shape kept": sum(thing.shape_steadiness for thing in things) / asked,
    }


def vae_fidelity(
    vae: VAE, size_px: int, mix: Mix, num_clips: int, num_frames: int = 17, seed: int = 3
) -> dict[str, float]:
    """Give mean and least PSNR (dB) and mean SSIM over clips with held-out objects, encoded and decoded."""
    rng = random.Random(seed)
    found = []
    for _ in range(num_clips):
        frames, _ = render(unseen_scene(rng, mix), num_frames, size_px, size_px, rng)
        with torch.no_grad():
            latents = vae.encode(from_uint8(torch.from_numpy(frames)[None]))
        decoded = torch.cat(list(vae.decode_stream(latents))).numpy()
        found.append((psnr_db(frames, decoded), ssim(frames, decoded)))
    psnr, similarity = (float(each) for each in np.mean(found, axis=0))
    return {"psnr_db": psnr, "least_psnr_db": min(one for one, _ in found), "ssim": similarity}


def gate(
    folder: Path,
    least: Mapping[str, float],
    kind: str = "plain",
    count: int = 32,
    size: str | None = None,
    num_frames: int | None = None,
    num_steps: int | None = None,
) -> dict[str, tuple[float, float]]:
    """Make clips for unseen prompts of a set and give the attributes whose share falls short, with what was wanted.

    Empty: the model passes. `least` names attributes of `scoring.agreement` and the share that each needs.
    """
    settings = settings_of(loaded(folder).card, size, num_frames, num_steps)
    rates = rates_of(folder, first_prompts(kind, count), settings, seed=500)
    return {name: (rates[name].share, want) for name, want in least.items() if rates[name].share < want}
