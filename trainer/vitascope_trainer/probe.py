"""Read the attributes of a clip by rules alone, so that a model is judged by something that was never trained.

The background is the nearest of the ten that exist; the object is what differs from it; its colour, its path and its
size over time give colour and motion; the best overlap with a drawn outline gives the shape.

Shapes: T frames, H rows, W columns. Masks are in [0, 1]; lengths are fractions of the frame's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitascope_trainer.world import BACKGROUNDS, COLOURS, SHAPES, Array, Scene, background_image, signed_distance

ATTRIBUTES = ("colour", "motion", "background", "shape")
_NOTICEABLE = 0.16  # a pixel that differs by more from the background, in its most different channel, is the object's


@dataclass(frozen=True)
class Reading:
    """What the probe sees; None where it sees no object."""

    shape: str | None
    colour: str | None
    motion: str | None
    background: str


def read(frames_THWC: NDArray[np.uint8]) -> Reading:
    """Read a clip of bytes, (T, H, W, 3)."""
    video = frames_THWC.astype(np.float32) / 255.0
    background = _background(video)
    difference = np.abs(video - background_image(background, video.shape[1])).max(axis=-1)
    mask = _without_specks(difference > _NOTICEABLE)
    area = mask.mean(axis=(1, 2))
    if np.median(area) < 0.004:
        return Reading(None, None, None, background)
    motion = _motion(mask, area)
    return Reading(_shape(mask, motion), _colour(video, mask), motion, background)


def _background(video: Array) -> str:
    """Take the background whose picture differs least, where a pixel counts as wrong from a fifth of the range on."""
    errors = {
        name: float(np.minimum(np.abs(video - background_image(name, video.shape[1])).mean(axis=-1), 0.2).mean())
        for name in BACKGROUNDS
    }
    return min(errors, key=lambda name: errors[name])


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep pixels that have at least three of their eight neighbours in the mask: specks go, objects stay."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1))).astype(np.int8)
    height, width = mask.shape[1:]
    neighbours = sum(
        padded[:, dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)
    )
    return mask & (np.asarray(neighbours) >= 3)


def _colour(video: Array, mask: NDArray[np.bool_]) -> str:
    """Take the nearest colour to the object's median one, edges left out."""
    inner = mask.copy()
    for axis in (1, 2):
        for shift in (-1, 1):
            inner &= np.roll(mask, shift, axis=axis)
    pixels = video[inner] if inner.sum() > 50 else video[mask]
    median = np.median(pixels, axis=0) * 255.0
    return min(COLOURS, key=lambda name: float(np.square(median - np.array(COLOURS[name])).sum()))


def _centres(mask: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Give the mean position, x and y, of each frame that shows the object."""
    height, width = mask.shape[1:]
    weight = mask.sum(axis=(1, 2)).astype(np.float32)
    shown = weight > 0
    x = (mask.sum(axis=1) @ (np.arange(width) + 0.5))[shown] / weight[shown] / width
    y = (mask.sum(axis=2) @ (np.arange(height) + 0.5))[shown] / weight[shown] / height
    return x.astype(np.float32), y.astype(np.float32)


def _motion(mask: NDArray[np.bool_], area: Array) -> str:
    """Name the motion from the centre's path, the size and the outline's change."""
    x, y = _centres(mask)
    size = np.sqrt(area[area > 0])
    ends = max(1, len(x) // 8)
    growth = float(size[-ends:].mean() / size[:ends].mean())
    dx, dy = float(x[-ends:].mean() - x[:ends].mean()), float(y[-ends:].mean() - y[:ends].mean())
    range_x, range_y = float(np.ptp(x)), float(np.ptp(y))
    travelled = max(range_x, range_y)
    if travelled < 0.18:
        if growth > 1.5:
            return "grow"
        if growth < 1 / 1.5:
            return "shrink"
        return "spin" if _turning(mask) > 0.2 else "still"
    if abs(dx) > 0.6 * travelled and abs(dx) > 1.5 * range_y:
        return "right" if dx > 0 else "left"
    if abs(dy) > 0.6 * travelled and abs(dy) > 1.5 * range_x:
        return "down" if dy > 0 else "up"
    if range_y > 2 * range_x:
        return "bounce"
    return "orbit" if range_x > 0.2 and range_y > 0.2 else "bounce"


def _turning(mask: NDArray[np.bool_]) -> float:
    """Give the largest share of the outline's area, over time, that differs from the first frame's, centres aligned."""
    first = mask[0].astype(np.int8)
    best = 0.0
    for frame in mask[1:]:
        changes = []
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                moved = np.roll(frame, (dy, dx), axis=(0, 1))
                changes.append(float(np.abs(moved - first).sum()) / max(1.0, float(first.sum())))
        best = max(best, min(changes))
    return best


def _shape(mask: NDArray[np.bool_], motion: str) -> str:
    """Take the outline that overlaps best, over five frames, when drawn with the object's area and place."""
    area = mask.sum(axis=(1, 2))
    big = np.argsort(-area[1:])[: max(5, len(area) // 2)] + 1
    chosen = big[np.linspace(0, len(big) - 1, 5).astype(int)]
    angles = np.linspace(0, 2 * np.pi / 3, 12, endpoint=False) if motion == "spin" else np.zeros(1)
    scores = {
        shape: sum(max(_overlap(mask[index], shape, float(angle)) for angle in angles) for index in chosen)
        for shape in SHAPES
    }
    return max(scores, key=lambda shape: scores[shape])


# The area of each outline at radius 1 and where its mean lies below its centre, both by counting pixels.
_GRID = (np.arange(-160, 160, dtype=np.float32) + 0.5) / 128.0
_UNIT = {shape: signed_distance(shape, _GRID[None, :], _GRID[:, None], np.ones((), np.float32)) < 0 for shape in SHAPES}
_AREA = {shape: float(unit.sum()) / 128.0**2 for shape, unit in _UNIT.items()}
_DROP = {shape: float((unit.sum(axis=1) @ _GRID) / unit.sum()) for shape, unit in _UNIT.items()}


def _overlap(mask: NDArray[np.bool_], shape: str, angle: float) -> float:
    """Give intersection over union of a mask and an outline of its area around its mean."""
    side = mask.shape[0]
    rows, columns = np.nonzero(mask)
    radius = np.array((len(rows) / _AREA[shape]) ** 0.5, np.float32)
    drop = _DROP[shape] * float(radius)
    cos, sin = np.cos(angle), np.sin(angle)
    best = 0.0
    for nudge_y, nudge_x in ((0, 0), (0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)):
        y = np.arange(side, dtype=np.float32)[:, None] - (rows.mean() + nudge_y)
        x = np.arange(side, dtype=np.float32)[None, :] - (columns.mean() + nudge_x)
        turned_x, turned_y = cos * x + sin * y, cos * y - sin * x + drop
        drawn = signed_distance(shape, turned_x.astype(np.float32), turned_y.astype(np.float32), radius) < 0
        best = max(best, float((drawn & mask).sum()) / max(1.0, float((drawn | mask).sum())))
    return best


def scores(readings: Sequence[Reading], scenes: Sequence[Scene]) -> dict[str, float]:
    """Give the share of clips whose reading agrees with the scene, per attribute and for all of them at once."""
    agree = [
        [getattr(r, name) == getattr(s, name) for name in ATTRIBUTES] for r, s in zip(readings, scenes, strict=True)
    ]
    table = np.array(agree, dtype=np.float64)
    return {name: float(table[:, column].mean()) for column, name in enumerate(ATTRIBUTES)} | {
        "all": float(table.all(axis=1).mean())
    }
