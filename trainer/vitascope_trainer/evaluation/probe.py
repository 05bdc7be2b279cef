"""Read what a clip shows, without being told what it should: the probe that models are judged by.

Everything but the shape is image processing; the shape is told by a small network that was trained on rendered clips
only. Works on clips of 5 frames and 64x64 pixels or more, of any aspect ratio.

Shapes: T frames, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vitascope_trainer.evaluation.backgrounds import Backdrop, read_backdrop
from vitascope_trainer.evaluation.classifier import shape_logits
from vitascope_trainer.evaluation.crops import chosen_frames, crop, shown_frames, tone_share, turning
from vitascope_trainer.evaluation.motions import name_motion
from vitascope_trainer.evaluation.objects import Part, find_parts, texture_tone
from vitascope_trainer.evaluation.regions import Array, centres_and_areas, dilated
from vitascope_trainer.world.drawing import signed_distance
from vitascope_trainer.world.scenes import COLOURS, SHAPES, TEXTURES

_SIDE = 128  # of the clips that are looked at; larger ones are reduced
_MOST_FRAMES = 25
_SHAPE_FRAMES = 5
_STEADY_FRAMES = 12
_HALF = {"single": 0.1925, "pair": 0.1425, "changing": 0.275}
"""Radius between small and large: of one object, of one of two, and the largest of one that grows or shrinks."""


@dataclass(frozen=True)
class Seen:
    """An object as the probe sees it; the fields are named like those of a scene's `Thing`."""

    shape: str
    colour: str
    motion: str
    size: str
    """Small or large, whichever is nearer."""
    texture: str
    shape_steadiness: float
    """Share of the frames that show the object, up to twelve of them, in which its shape reads as the clip's."""
    colour_steadiness: float
    """Share of the frames in which the colour is the clip's."""


@dataclass(frozen=True)
class Reading:
    """What the probe sees in a clip."""

    things: tuple[Seen, ...]
    """None, one, two, or three for more than two."""
    background: str | None
    """None where the clip looks like no background."""
    camera: str | None
    relation: str = ""
    """Where the first of two is, seen from the second."""
    flicker: float = 0.0
    """Mean change from frame to frame beside the objects, the camera's taken away, in levels of 255."""

    @property
    def count(self) -> int:
        """Give the number of objects."""
        return len(self.things)


def read(frames_THWC: NDArray[np.uint8]) -> Reading:
    """Read a clip of bytes, (T, H, W, 3)."""
    video = _reduced(frames_THWC)
    backdrop = read_backdrop(video)
    if backdrop is None:
        return Reading((), None, None)
    parts = find_parts(video, backdrop)
    light = video.mean(axis=-1)
    things = tuple(_seen(video, light, backdrop, part, len(parts)) for part in parts)
    relation = _relation(parts) if len(parts) == 2 else ""
    return Reading(things, backdrop.name, backdrop.camera, relation, _flicker(video, backdrop, parts))


def _reduced(frames_THWC: NDArray[np.uint8]) -> Array:
    """Give the clip in [0, 1], at most 25 of its frames, reduced by a whole number if it is large."""
    num_frames, height, width = frames_THWC.shape[:3]
    if num_frames > _MOST_FRAMES:
        frames_THWC = frames_THWC[np.linspace(0, num_frames - 1, _MOST_FRAMES).round().astype(int)]
    video = frames_THWC.astype(np.float32) / 255.0
    factor = min(height, width) // _SIDE
    if factor < 2:
        return video
    rows, columns = height // factor, width // factor
    video = video[:, : rows * factor, : columns * factor]
    small: Array = video.reshape(-1, rows, factor, columns, factor, 3).mean(axis=(2, 4))
    return small


def _seen(video: Array, light: Array, backdrop: Backdrop, part: Part, count: int) -> Seen:
    x_T, y_T, area_T = centres_and_areas(part.whole_THW)
    height, width = video.shape[1:3]
    wide, tall = width / min(height, width), height / min(height, width)
    scale_T, shift_T = backdrop.scale_T, backdrop.shift_T
    x_T, y_T = (x_T - wide / 2) / scale_T + wide / 2 + shift_T, (y_T - tall / 2) / scale_T + tall / 2
    area_T = area_T / scale_T**2
    motion = name_motion(x_T, y_T, area_T, turning(part, light), slack=0.06 if part.is_under or count == 1 else 0.0)
    frames = chosen_frames(part, _SHAPE_FRAMES)
    logits = shape_logits(np.stack([crop(part, t) for t in frames]))
    shape = SHAPES[int(logits.mean(axis=0).argmax())]
    radius = float(np.sqrt(np.median(area_T[area_T > 0]) / _AREA[shape]))
    kind = "single" if count == 1 else "pair"
    if count == 1 and motion in ("grow", "shrink"):
        radius, kind = float(np.sqrt(np.quantile(area_T, 0.95) / _AREA[shape])), "changing"
    return Seen(
        shape=shape,
        colour=part.colour,
        motion=motion,
        size="small" if radius < _HALF[kind] else "large",
        texture=_texture(video, part, shape),
        shape_steadiness=_shape_steadiness(part, shape),
        colour_steadiness=_colour_steadiness(video, part),
    )


def _shape_steadiness(part: Part, shape: str) -> float:
    """Look at frames all over the clip: fast and slow, near and far, but for those in which another object hides it."""
    frames = shown_frames(part, _STEADY_FRAMES)
    if not frames:
        return 0.0
    logits = shape_logits(np.stack([crop(part, t) for t in frames]))
    return float(np.mean(logits.argmax(axis=1) == SHAPES.index(shape)))


def _colour_steadiness(video: Array, part: Part) -> float:
    palette = np.array(list(COLOURS.values()), np.float32) / 255.0
    own = list(COLOURS).index(part.colour)
    same = []
    for frame, mask in zip(video, part.mask_THW, strict=True):
        if mask.any():
            distance = np.square(np.median(frame[mask], axis=0) - palette).sum(axis=-1)
            same.append(int(distance.argmin()) == own)
    return float(np.mean(same)) if same else 0.0


# What each outline covers at radius 1, and the shares of it that stripes and spots have, by counting pixels.
_GRID = (np.arange(-160, 160, dtype=np.float32) + 0.5) / 128.0
_UNIT = {shape: signed_distance(shape, _GRID[None, :], _GRID[:, None], np.ones((), np.float32)) < 0 for shape in SHAPES}
_AREA = {shape: float(unit.sum()) / 128.0**2 for shape, unit in _UNIT.items()}


def _texture(video: Array, part: Part, shape: str) -> str:
    """Take the texture whose share of the object is nearest to the share that is seen."""
    base, tone = texture_tone(part.colour)
    share = tone_share(video, part, base, tone)
    shares = _texture_shares(shape)
    return min(TEXTURES, key=lambda name: abs(shares[name] - share))


@lru_cache(maxsize=len(SHAPES))
def _texture_shares(shape: str) -> dict[str, float]:
    x, y = _GRID[None, :], _GRID[:, None]
    bands = np.abs(np.abs(y + 0.05 + 0 * x) - 0.38) < 0.15
    spots = np.hypot(np.abs(x) - 0.33, np.abs(y - 0.05) - 0.33) < 0.18
    unit = _UNIT[shape]
    return {"plain": 0.0, "striped": float(bands[unit].mean()), "spotted": float(spots[unit].mean())}


def _relation(parts: list[Part]) -> str:
    """Say where the first of two objects is, seen from the second."""
    one, other = parts
    if one.is_over or other.is_over:
        return "in front of" if one.is_over else "behind"
    (x0, y0, _), (x1, y1, _) = (centres_and_areas(part.whole_THW) for part in parts)
    dx, dy = float(np.nanmedian(x0 - x1)), float(np.nanmedian(y0 - y1))
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _flicker(video: Array, backdrop: Backdrop, parts: list[Part]) -> float:
    picture = np.broadcast_to(backdrop.picture_THWC, video.shape)
    objects = np.zeros(video.shape[:3], bool)
    for part in parts:
        objects |= part.mask_THW
    objects = dilated(objects, 3)
    still = ~(objects[1:] | objects[:-1])
    change = np.abs(np.diff(video - picture, axis=0)).mean(axis=-1)
    return float(255.0 * change[still].mean()) if still.any() else 0.0
