"""Judge what a model makes of given frames: a first picture, a first and a last one, a beginning, a clip to change.

What is given comes from clips that the world draws, of scenes that training never showed.

Shapes: T frames, H rows, W columns.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vitascope_common.references import ReferenceRole, num_continued_frames
from vitascope_models.conditioning import change, extension, first_frame, keyframes
from vitascope_trainer.evaluation.fidelity import psnr_db
from vitascope_trainer.evaluation.loading import Model, Progress, loaded, shared_out
from vitascope_trainer.evaluation.probe import Reading, read
from vitascope_trainer.evaluation.prompts import unseen_scene
from vitascope_trainer.evaluation.scoring import Rate, score
from vitascope_trainer.generation import Given, Settings, generate
from vitascope_trainer.sheets import thumbnails
from vitascope_trainer.world.captions import plain_caption
from vitascope_trainer.world.drawing import render
from vitascope_trainer.world.scenes import COLOURS, Mix, Scene

Bytes = NDArray[np.uint8]

WAYS = {
    "first frame": ReferenceRole.FIRST_FRAME,
    "first and last frame": ReferenceRole.LAST_FRAME,
    "beginning": ReferenceRole.CONTINUE,
    "change of colour": ReferenceRole.CHANGE,
}
"""The ways to give frames, and the reference that asks most of a model in each."""
_STRENGTH = 0.75  # of a change: what is left of the clip says where the object is, and no longer its colour


@dataclass(frozen=True)
class Continued:
    """A clip that was made from given frames."""

    text: str
    scene: Scene
    """What it was to show."""
    reading: Reading
    thumbnails_THWC: Bytes
    kept_db: float
    """PSNR of the frames that were given; infinite if none is to stay as it was."""
    next_db: float
    """PSNR of the next four frames against those of the clip that the given ones come from."""


@dataclass(frozen=True)
class Kept:
    """What a way of giving frames comes to."""

    rates: Mapping[str, Rate]
    kept_db: float
    """Mean, in dB."""
    next_db: float
    """Mean, in dB."""
    first: Continued


def judge_given(
    folder: Path, ways: Sequence[str], settings: Settings, count: int, processes: int, progress: Progress
) -> dict[str, Kept]:
    """Make and read `count` clips for each way, of `WAYS`."""
    found = {}
    for way in ways if count else ():
        made = shared_out(partial(continued, folder, way, settings), range(count), processes, progress)
        rates = score([each.reading for each in made], [each.scene for each in made])
        kept, after = (float(np.mean(each)) for each in zip(*((m.kept_db, m.next_db) for m in made), strict=True))
        found[way] = Kept(rates, kept, after, made[0])
    return found


def continued(folder: Path, way: str, settings: Settings, index: int) -> Continued:
    """Make clip number `index` of a way; it is the same whenever it is asked for."""
    rng = random.Random(f"given {way} {index}")
    scene = unseen_scene(rng, Mix(two=0.0, texture=0.0, camera=0.0))
    real, _ = render(scene, settings.num_frames, settings.height_px, settings.width_px, rng)
    asked = _recoloured(scene, rng) if way == "change of colour" else scene
    model = loaded(folder)
    given, num_kept = _given(model, way, torch.from_numpy(real), settings)
    text = plain_caption(asked)
    (clip,) = generate(model, [text], [index], settings, given=given)
    kept_db = psnr_db(real[:num_kept], clip[:num_kept]) if num_kept else inf
    after = slice(num_kept, num_kept + 4)
    return Continued(text, asked, read(clip), thumbnails(clip), kept_db, psnr_db(real[after], clip[after]))


def _given(model: Model, way: str, real_THWC: torch.Tensor, settings: Settings) -> tuple[Given, int]:
    """Give what the clip is made from, and how many of its frames are to be as they were given."""
    num_frames = settings.num_frames
    shape = model.vae.latent_shape(num_frames, settings.height_px, settings.width_px)
    with torch.no_grad():
        if way == "first frame":
            return Given(first_frame(model.vae, real_THWC[0], shape)), 1
        if way == "first and last frame":
            return Given(keyframes(model.vae, real_THWC[0], real_THWC[-1], shape)), 1
        if way == "beginning":
            num_given = num_continued_frames(num_frames, shape[1])
            return Given(extension(model.vae, real_THWC[:num_given], shape)), num_given
        clean, start = change(model.vae, real_THWC, _STRENGTH)
        return Given(clean_1CTHW=clean, start=start), 0


def _recoloured(scene: Scene, rng: random.Random) -> Scene:
    (thing,) = scene.things
    others = [replace(scene, things=(replace(thing, colour=colour),)) for colour in COLOURS if colour != thing.colour]
    return rng.choice([other for other in others if other.is_possible])
