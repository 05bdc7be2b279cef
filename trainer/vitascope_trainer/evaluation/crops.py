"""Cut an object out of a frame, as the share of each pixel that it covers, at a fixed size.

Shapes: T frames, H rows, W columns, S rows and columns of a crop. Video is in [0, 1].
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitascope_trainer.evaluation.objects import Part
from vitascope_trainer.evaluation.regions import Array

CROP_SIDE = 32
_SHOWN = 0.9  # of an object, for its outline to be judged
_MARGIN = 1.2  # of a crop around the object's larger extent


def crop(part: Part, t: int) -> Array:
    """Give (2, S, S): how much of each pixel the object covers, and where something else hides it."""
    mask, whole, cover = part.mask_THW[t], part.whole_THW[t], part.cover_THW[t]
    hidden = (whole & ~mask).astype(np.float32)
    rows, columns = np.nonzero(whole)
    middle_y, middle_x = (0.5 * (each.min() + each.max()) for each in (rows, columns))
    extent = max(np.ptp(rows), np.ptp(columns)) + 1.0
    grid = (np.arange(CROP_SIDE) + 0.5) / CROP_SIDE - 0.5
    y, x = middle_y + grid * _MARGIN * extent, middle_x + grid * _MARGIN * extent
    return np.stack([_sampled(each.astype(np.float32), y, x) for each in (cover, hidden)])


def chosen_frames(part: Part, count: int) -> list[int]:
    """Choose frames that show the object large and whole, evenly over the clip."""
    seen = part.mask_THW.sum(axis=(1, 2)).astype(np.float64)
    seen *= seen / np.maximum(part.whole_THW.sum(axis=(1, 2)), 1)
    best = np.sort(np.argsort(-seen)[: max(count, len(seen) // 2)])
    return _spread(best[seen[best] > 0], count)


def shown_frames(part: Part, count: int) -> list[int]:
    """Choose frames evenly over the clip among those in which nothing hides more than a tenth of the object."""
    seen, whole = part.mask_THW.sum(axis=(1, 2)), part.whole_THW.sum(axis=(1, 2))
    return _spread(np.nonzero((seen > 0) & (seen >= _SHOWN * whole))[0], count)


def _spread(frames: NDArray[np.signedinteger[Any]], count: int) -> list[int]:
    if not len(frames):
        return []
    return [int(t) for t in frames[np.unique(np.linspace(0, len(frames) - 1, count).astype(int))]]


def turning(part: Part, light_THW: Array) -> float:
    """Give how much the object's picture differs from itself over time, centre and size taken away.

    Both the outline and the texture count, from the first frame as well as from view to view, as shares of the area.
    """
    frames = [t for t in range(len(part.mask_THW)) if part.mask_THW[t].any() and _visible(part, t).any()]
    if len(frames) < 3:
        return 0.0
    frames = [frames[k] for k in np.unique(np.linspace(0, len(frames) - 1, 9).astype(int))]
    views = [_aligned(part, light_THW, t) for t in frames]
    since_first = [_change(views[0], view) for view in views[1:]]
    since_last = [_change(before, view) for before, view in itertools.pairwise(views)]
    return float(min(np.quantile(since_first, 0.6), np.quantile(since_last, 0.6)))


def _visible(part: Part, t: int) -> Array:
    """Give how much of each pixel the object covers, what hides it taken away; all 0 where it has faded out."""
    cover: Array = np.maximum(part.cover_THW[t], part.whole_THW[t] & ~part.mask_THW[t])
    return cover


def _aligned(part: Part, light_THW: Array, t: int) -> tuple[Array, Array, Array]:
    """Give outline, light inside it and what is known, each (S, S), around the centre and scaled by the area."""
    mask, cover = part.mask_THW[t], _visible(part, t)
    area = float(cover.sum())
    grid = ((np.arange(CROP_SIDE) + 0.5) / CROP_SIDE - 0.5) * 2 * 1.7 * (area / np.pi) ** 0.5
    y = float(cover.sum(axis=1) @ np.arange(cover.shape[0])) / area + grid
    x = float(cover.sum(axis=0) @ np.arange(cover.shape[1])) / area + grid
    light = np.where(mask, light_THW[t] - np.median(light_THW[t][mask]), 0.0)
    known = np.ones_like(mask) if part.doubtful_THW is None else ~part.doubtful_THW[t]
    outline_SS, light_SS, known_SS = (_sampled(each.astype(np.float32), y, x) for each in (cover, light, known))
    return outline_SS, light_SS, known_SS


def _change(first: tuple[Array, Array, Array], second: tuple[Array, Array, Array]) -> float:
    both = first[2] * second[2]
    area = max(1.0, float((first[0] * both).sum()))
    outline = float((np.abs(first[0] - second[0]) * both).sum())
    texture = float((np.abs(first[1] - second[1]) * both * np.minimum(first[0], second[0])).sum())
    return (outline + 2.0 * texture) / area


def _sampled(image_HW: Array, y: Array, x: Array) -> Array:
    """Sample an image bilinearly on a grid of pixel positions; outside it is 0."""
    height, width = image_HW.shape
    padded = np.pad(image_HW, 1)
    y, x = np.clip(y + 1, 0, height + 0.999), np.clip(x + 1, 0, width + 0.999)
    top, left = y.astype(int), x.astype(int)
    down, right = (y - top)[:, None].astype(np.float32), (x - left)[None, :].astype(np.float32)
    upper = padded[top][:, left] * (1 - right) + padded[top][:, left + 1] * right
    lower = padded[top + 1][:, left] * (1 - right) + padded[top + 1][:, left + 1] * right
    blended: Array = upper * (1 - down) + lower * down
    return blended


def tone_share(video_THWC: Array, part: Part, base: Array, tone: Array) -> float:
    """Give the share of the object's pixels that are nearer to its texture's colour than to its own."""
    pixels = video_THWC[part.mask_THW]
    along = (pixels - base) @ (tone - base) / float(((tone - base) ** 2).sum())
    return float(np.clip(along, 0.0, 1.0).mean())
