"""Find the objects of a clip: what differs from the background, told apart by colour and by place.

Shapes: T frames, H rows, W columns. Video is in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vitascope_trainer.evaluation.backgrounds import Backdrop
from vitascope_trainer.evaluation.regions import Array, Mask, components, dilated, eroded, hull
from vitascope_trainer.world.scenes import COLOURS, tones

_NOTICEABLE = 0.14  # a pixel that differs by more from the background, in its most different channel, is an object's
_LEAST_AREA = 0.006  # of the shorter side squared; what is smaller is a speck
_LEAST_SHARE = 0.04  # of the pixels of all objects; a colour that has less is no object's
_MOST_FRAMES_GONE = 0.4

_NAMES = tuple(COLOURS)
_BASES = np.array([COLOURS[name] for name in _NAMES], np.float32) / 255.0
_TONES = _BASES + 0.75 * ((_BASES.mean(axis=1, keepdims=True) <= 0.6).astype(np.float32) - _BASES)
"""The colour of each colour's stripes and spots, as the world draws them."""
_PALETTE = np.concatenate([_BASES, _TONES])


@dataclass(frozen=True)
class Part:
    """One object's pixels."""

    colour: str
    mask_THW: Mask
    """What is seen of it."""
    whole_THW: Mask
    """With what another object hides of it, as far as its outline tells."""
    cover_THW: Array = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    """How much of each pixel the object covers."""
    doubtful_THW: Mask | None = None
    """Where another object leaves the cover uncertain."""
    is_over: bool = False
    """Whether it hides part of the other object."""
    is_under: bool = False


def find_parts(video_THWC: Array, backdrop: Backdrop) -> list[Part]:
    """Give the objects, the largest first; three stand for more than two."""
    pixel = _pixel(video_THWC)
    mask = _different(video_THWC, backdrop, pixel)
    if mask.mean() < 0.2 * _LEAST_AREA:
        return []
    inner = eroded(mask, pixel)
    if inner.sum() < 0.25 * mask.sum():
        inner = mask
    nearest = np.bincount(_nearest(video_THWC[inner]), minlength=len(_PALETTE)).reshape(2, -1)
    base, tone = nearest / max(1, nearest.sum())
    first = int(np.argmax(base + np.minimum(tone, base)))
    names = [first, *(int(c) for c in np.argsort(-base)[:4] if c != first and base[c] > _LEAST_SHARE)]
    picture = np.broadcast_to(backdrop.picture_THWC, video_THWC.shape)
    if len(names) > 1:
        owner_THW = np.full(mask.shape, -1)
        owner_THW[mask] = np.array(names)[_owner(video_THWC[mask], picture[mask], names)]
        masks = {name: _without_scraps(_without_specks(owner_THW == name), pixel) for name in names}
        names = sorted((c for c in names if _is_object(masks[c], _LEAST_AREA)), key=lambda c: -int(masks[c].sum()))
    if len(names) < 2:
        parts = _of_one_colour(_NAMES[names[0] if names else first], mask, pixel)
    else:
        parts = [part for name in names for part in _of_one_colour(_NAMES[name], masks[name], pixel)]
    if len(parts) == 2:
        parts = _layered(parts, pixel)
    return [replace(part, cover_THW=_cover(video_THWC, picture, part, parts)) for part in parts[:3]]


def _cover(video_THWC: Array, picture_THWC: Array, part: Part, parts: list[Part]) -> Array:
    """Give how far each pixel has gone from what is behind the object to the object's colour."""
    behind = picture_THWC
    under = [other for other in parts if other.is_under and part.is_over]
    for other in under:
        behind = np.where(other.whole_THW[..., None], np.median(video_THWC[other.mask_THW], axis=0), behind)
    near = dilated(part.mask_THW, 1)
    from_NC = behind[near]
    way = np.median(video_THWC[part.mask_THW], axis=0) - from_NC
    cover = np.zeros(part.mask_THW.shape, np.float32)
    along = ((video_THWC[near] - from_NC) * way).sum(axis=1) / np.maximum((way**2).sum(axis=1), 1e-3)
    cover[near] = np.clip(along, 0.0, 1.0)
    return cover


def _pixel(video_THWC: Array) -> int:
    """Give the width of an edge in pixels at the clip's size."""
    return max(1, round(float(min(video_THWC.shape[1:3])) / 80))


def _different(video_THWC: Array, backdrop: Backdrop, pixel: int) -> Mask:
    """Mark what differs from the background.

    Beside a pattern's edges, which a clip may have soft or a pixel off, only what no mixture of its tones is.
    """
    picture = backdrop.picture_THWC
    mask = np.abs(video_THWC - picture).max(axis=-1) > _NOTICEABLE
    if backdrop.is_patterned:
        light, dark = (np.array(tone, np.float32) / 255.0 for tone in tones(backdrop.name))
        is_dark = ((picture - light) * (dark - light)).sum(axis=-1) > 0.5 * ((dark - light) ** 2).sum()
        beside_edge = dilated(is_dark, pixel + 1) & dilated(~is_dark, pixel + 1)
        unsure = np.broadcast_to(beside_edge, mask.shape) & mask
        mask[unsure] = _miss(video_THWC[unsure], light, dark) > _NOTICEABLE**2
    return _without_specks(mask)


def _without_specks(mask_THW: Mask) -> Mask:
    """Keep pixels with at least three of their eight neighbours in the mask."""
    padded = np.pad(mask_THW, ((0, 0), (1, 1), (1, 1))).astype(np.int8)
    height, width = mask_THW.shape[1:]
    around = sum(padded[:, dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3))
    return mask_THW & (np.asarray(around) >= 4)


def _nearest(pixels_NC: Array) -> NDArray[np.intp]:
    squares = (_PALETTE**2).sum(axis=1) - 2.0 * pixels_NC @ _PALETTE.T
    return np.asarray(squares.argmin(axis=1))


def _owner(pixels_NC: Array, behind_NC: Array, names: list[int]) -> NDArray[np.intp]:
    """Give which of some colours comes nearest to each pixel, mixed with the background's or with its texture's."""
    misses = [
        np.minimum(_miss(pixels_NC, behind_NC, _BASES[name]), _miss(pixels_NC, _TONES[name], _BASES[name]))
        for name in names
    ]
    return np.asarray(np.argmin(misses, axis=0))


def _miss(pixels_NC: Array, one_NC: Array, other_C: Array) -> Array:
    """Give the squared distance of pixels from the nearest mixture of two colours."""
    way = other_C - one_NC
    share = ((pixels_NC - one_NC) * way).sum(axis=1) / np.maximum((way**2).sum(axis=-1), 1e-6)
    missed: Array = np.square(one_NC + np.clip(share, 0.0, 1.0)[:, None] * way - pixels_NC).sum(axis=1)
    return missed


def _is_object(mask_THW: Mask, least: float) -> bool:
    """Say whether a mask is large enough in most frames."""
    side = min(mask_THW.shape[1:])
    areas = mask_THW.sum(axis=(1, 2)) / side**2
    return bool(np.quantile(areas, _MOST_FRAMES_GONE) > least)


def _without_scraps(mask_THW: Mask, pixel: int) -> Mask:
    """Drop pieces that are small beside the largest one, frame by frame."""
    kept = np.zeros_like(mask_THW)
    for index, mask in enumerate(mask_THW):
        pieces = components(mask)
        for piece in pieces:
            if piece.sum() >= max(0.08 * pieces[0].sum(), 4 * pixel**2):
                kept[index] |= piece
    return kept


def _of_one_colour(colour: str, mask_THW: Mask, pixel: int) -> list[Part]:
    """Give the one, two or three objects that a mask of one colour holds."""
    side = min(mask_THW.shape[1:])
    joined = dilated(mask_THW, pixel)  # stripes may be close to the background's colour
    frames = []
    for mask, closed in zip(mask_THW, joined, strict=True):
        pieces = [piece & mask for piece in components(closed)]
        areas = [int(piece.sum()) for piece in pieces]
        least = max(0.5 * _LEAST_AREA * side**2, 0.2 * max(areas, default=0))
        frames.append([piece for piece, area in zip(pieces, areas, strict=True) if area >= least])
    counts = [len(pieces) for pieces in frames if pieces]
    if len(counts) < (1 - _MOST_FRAMES_GONE) * len(frames):
        return []
    count = int(np.bincount(counts).argmax())
    if count == 1:
        whole = np.stack([np.logical_or.reduce([np.zeros_like(mask_THW[0]), *pieces]) for pieces in frames])
        return [Part(colour, whole, whole)] if _is_object(whole, 0.5 * _LEAST_AREA) else []
    return _followed(colour, frames, mask_THW.shape, count)[:3]


def _followed(colour: str, frames: list[list[Mask]], shape: tuple[int, ...], count: int) -> list[Part]:
    """Follow several objects of one colour by nearness; frames that show another number of them are left empty."""
    masks = np.zeros((count, *shape), bool)
    last: list[tuple[float, float]] = []
    for index, pieces in enumerate(frames):
        if len(pieces) != count:
            continue
        places = [tuple(float(each.mean()) for each in np.nonzero(piece)) for piece in pieces]
        if not last:
            order = sorted(range(count), key=lambda k: places[k][::-1])
        else:
            left, order = list(range(count)), []
            for y, x in last:
                order.append(min(left, key=lambda k: (places[k][0] - y) ** 2 + (places[k][1] - x) ** 2))
                left.remove(order[-1])
        last = [(places[k][0], places[k][1]) for k in order]
        for k, which in enumerate(order):
            masks[k, index] = pieces[which]
    return [Part(colour, mask, mask) for mask in masks]


def _layered(parts: list[Part], pixel: int) -> list[Part]:
    """Find out which of two objects hides part of the other, and complete that one."""
    one, other = (part.mask_THW for part in parts)
    touching = (dilated(one, 2 * pixel) & other).any(axis=(1, 2)) & one.any(axis=(1, 2)) & other.any(axis=(1, 2))
    small, large = (0, 1) if one.sum() < other.sum() else (1, 0)
    hulls = [np.zeros_like(one), np.zeros_like(one)]
    inside = []
    for t in np.flatnonzero(touching):
        for k in (0, 1):
            hulls[k][t] = hull(parts[k].mask_THW[t])
        inside.append((parts[small].mask_THW[t] & hulls[large][t]).sum() / parts[small].mask_THW[t].sum())
    if touching.mean() < 0.5 or not inside:
        return parts
    spread = [(hulls[small][t] & hulls[large][t]).sum() / hulls[small][t].sum() for t in np.flatnonzero(touching)]
    if np.quantile(spread, 0.75) < 0.1:  # they only touch
        return parts
    front = small if np.quantile(inside, 0.75) > 0.3 else large
    back = 1 - front
    whole = parts[back].mask_THW | (hulls[back] & parts[front].mask_THW)
    hidden = dilated(whole & ~parts[back].mask_THW, pixel)
    edge = dilated(whole, pixel) & ~eroded(whole, pixel)
    layers = {
        front: replace(parts[front], is_over=True, doubtful_THW=edge),
        back: replace(parts[back], is_under=True, doubtful_THW=hidden, whole_THW=whole),
    }
    return [layers[0], layers[1]]


def texture_tone(colour: str) -> tuple[Array, Array]:
    """Give a colour as it is and as its stripes and spots are, each (3,) in [0, 1]."""
    index = _NAMES.index(colour)
    return _BASES[index], _TONES[index]
