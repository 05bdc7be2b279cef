"""Draw scenes: analytic outlines by signed distance, patterns by formula, one pixel of anti-aliasing.

Shapes: T frames, H rows, W columns. Images and masks are in [0, 1] until they become bytes. Lengths are fractions of
the frame's shorter side, so the same scene fits every aspect ratio; y points down and (0, 0) is the top left corner.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitascope_trainer.world.scenes import (
    COLOURS,
    DIRECTIONS,
    FLAT,
    GRADIENTS,
    Scene,
    Thing,
    tones,
)

Array = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]

_RADIUS = {"small": (0.125, 0.15), "large": (0.235, 0.26), "unsaid": (0.15, 0.24)}
_PAIR_RADIUS = {"small": (0.10, 0.115), "large": (0.17, 0.18), "unsaid": (0.13, 0.155)}
_BOUNCE = (
    0.28  # height of a bounce, of which there are two in a clip: higher, and four frames of it blur into one latent
)
_CELL = 1 / 8  # width of a stripe and of a checkerboard's field


@dataclass(frozen=True)
class Path:
    """Where an object is, frame by frame: centre, radius and angle, each (T,)."""

    x_T: Array
    y_T: Array
    radius_T: Array
    angle_T: Array


def background_image(name: str, height: int, width: int) -> Array:
    """Draw a background, (H, W, 3)."""
    if name in FLAT:
        flat = np.asarray(FLAT[name], np.float32) / 255.0
        return np.broadcast_to(flat, (height, width, 3)).copy()
    x_W, y_H = _pixel_centres(width, height)
    x, y = np.meshgrid(x_W, y_H)
    return _painted(name, x, y, 1.0 / min(height, width), height / min(height, width))


def _pixel_centres(width: int, height: int) -> tuple[Array, Array]:
    side = min(width, height)
    x_W, y_H = ((np.arange(count, dtype=np.float32) + 0.5) / side for count in (width, height))
    return x_W.astype(np.float32), y_H.astype(np.float32)


def _painted(name: str, x: Array, y: Array, pixel: float, tall: float) -> Array:
    """Paint a gradient or a pattern at points; `pixel` is a pixel's width there, `tall` the frame's height."""
    light, dark = (np.asarray(tone, np.float32) / 255.0 for tone in tones(name))
    share: Array  # of the dark tone
    if name in GRADIENTS:
        share = np.clip(y / tall, 0.0, 1.0)
    elif name.endswith("stripes"):
        share = _wave(x, pixel)
    elif name.endswith("checkerboard"):
        across, down = 2 * _wave(x, pixel) - 1, 2 * _wave(y, pixel) - 1
        share = 0.5 - 0.5 * across * down
    else:  # light dots on the dark tone, one to a field of two cells
        gap_x, gap_y = (np.abs(np.mod(each, 2 * _CELL) - _CELL) for each in (x, y))
        share = 1.0 - np.clip(0.5 - (np.hypot(gap_x, gap_y) - 0.6 * _CELL) / pixel, 0.0, 1.0)
    painted: Array = light + share[..., None].astype(np.float32) * (dark - light)
    return painted


def _wave(x: Array, pixel: float) -> Array:
    """Give 0 in even cells and 1 in odd ones, with edges one pixel wide."""
    phase = np.mod(x / _CELL, 2.0)
    edge = np.minimum(np.abs(phase - 1.0), np.minimum(phase, 2.0 - phase)) * _CELL / pixel
    inside = np.clip(0.5 + edge, 0.0, 1.0)
    wave: Array = np.where(phase >= 1.0, inside, 1.0 - inside)
    return wave.astype(np.float32)


def signed_distance(shape: str, x: Array, y: Array, radius: Array) -> Array:
    """Give the distance in units of x to the outline of a shape centred at 0, negative inside."""
    distance: Array
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "ring":
        distance = np.abs(np.hypot(x, y) - 0.74 * radius) - 0.26 * radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.85 * radius
    elif shape == "triangle":  # three half-planes; the corners lie 1.15 radii from the centre
        distance = np.maximum(y, 0.8660254 * np.abs(x) - 0.5 * y) - 0.575 * radius
    elif shape == "heart":
        distance = _heart(x, y, 0.9 * radius)
    else:
        distance = _star(x, y, 1.15 * radius)
    return distance


def _star(x: Array, y: Array, radius: Array) -> Array:
    """Fold the plane onto one half point of the five, then measure to one edge (Inigo Quilez, sdStar5)."""
    k1x, k1y, k2x, k2y, inner = 0.809016994375, -0.587785252292, -0.809016994375, -0.587785252292, 0.5
    x, y = np.abs(x), -y
    dot: Array = np.maximum(k1x * x + k1y * y, 0.0)
    x, y = x - 2 * dot * k1x, y - 2 * dot * k1y
    dot = np.maximum(k2x * x + k2y * y, 0.0)
    x, y = x - 2 * dot * k2x, y - 2 * dot * k2y
    x, y = np.abs(x), y - radius
    edge_x, edge_y = inner * -k1y, inner * k1x - 1.0
    along = np.clip((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2), 0.0, radius)
    distance: Array = np.hypot(x - edge_x * along, y - edge_y * along) * np.sign(y * edge_x - x * edge_y)
    return distance


def _heart(x: Array, y: Array, radius: Array) -> Array:
    """Two half discs over a wedge that runs to a point (after Inigo Quilez, sdHeart), `radius` to each side."""
    size = radius / 0.6
    x, y = np.abs(x) / size, 0.52 - y / size
    lobe = np.hypot(x - 0.25, y - 0.75) - 0.3535534
    half = 0.5 * np.maximum(x + y, 0.0)
    wedge = np.sqrt(np.minimum(x * x + (y - 1.0) ** 2, (x - half) ** 2 + (y - half) ** 2)) * np.sign(x - y)
    distance: Array = np.where(x + y > 1.0, lobe, wedge) * size
    return distance


def plan(scene: Scene, num_frames: int, rng: random.Random, wide: float, tall: float, begin: float = 0.0) -> list[Path]:
    """Decide each object's path over the clip, in the order of `scene.things`.

    A motion takes the whole clip, whatever its length; `begin` > 0 starts that share of it later, for clips that show
    the second part of a motion and what follows: what crosses the frame then leaves it, what circles goes on.
    """
    u = np.linspace(begin, begin + 1.0, num_frames, dtype=np.float32)
    if len(scene.things) == 1:
        return [_single(scene.things[0], u, rng, wide, tall)]
    return _pair(scene, u, rng, wide, tall)


def _single(thing: Thing, u: Array, rng: random.Random, wide: float, tall: float) -> Path:
    r = rng.uniform(*_RADIUS[thing.size])
    low = max(0.19, r + 0.03)
    along = u + rng.uniform(-0.05, 0.05) * (1 - u)
    mid_x, mid_y = (0.5 * side + rng.uniform(-0.06, 0.06) for side in (wide, tall))
    x, y = np.full_like(u, mid_x), np.full_like(u, mid_y)
    radius, angle = np.full_like(u, r), np.zeros_like(u)
    if thing.motion in DIRECTIONS:
        step_x, step_y = DIRECTIONS[thing.motion]
        reach_x, reach_y = (0.5 * side - low for side in (wide, tall))
        if step_x and step_y:
            reach_x = reach_y = min(reach_x, reach_y)
        x = x + np.float32(0.0) if not step_x else 0.5 * wide + step_x * reach_x * (2 * along - 1)
        y = y + np.float32(0.0) if not step_y else 0.5 * tall + step_y * reach_y * (2 * along - 1)
        if not (step_x and step_y):  # leave the middle line
            x, y = x + rng.uniform(-0.06, 0.06) * (step_x == 0), y + rng.uniform(-0.06, 0.06) * (step_y == 0)
    elif thing.motion == "bounce":
        y = (tall - low) - min(_BOUNCE, 0.95 * (tall - 2 * low)) * np.abs(np.cos(2 * np.pi * u))
    elif thing.motion == "orbit":
        reach, start = rng.uniform(0.2, 0.235), rng.uniform(0, 2 * math.pi)
        x = 0.5 * wide + reach * np.cos(start + 2 * np.pi * u)
        y = 0.5 * tall + reach * np.sin(start + 2 * np.pi * u)
    elif thing.motion == "zigzag":
        x = low + (wide - 2 * low) * along
        y = mid_y + min(0.2, 0.5 * tall - low) * _triangle_wave(2.5 * u)
    else:
        radius, angle = _in_place(thing.motion, u, rng, radius, {"small": 0.85, "large": 1.1}.get(thing.size, 1.0))
    return _path(x, y, radius, angle)


def _in_place(motion: str, u: Array, rng: random.Random, radius: Array, factor: float) -> tuple[Array, Array]:
    if motion == "spin":
        return radius, np.pi * u
    if motion in ("grow", "shrink"):
        least, most = rng.uniform(0.09, 0.11) * factor, rng.uniform(0.27, 0.30) * factor
        share = u if motion == "grow" else 1 - u
        return np.clip(least + (most - least) * share, 0.04, 0.36), np.zeros_like(u)
    return radius, np.zeros_like(u)


def _triangle_wave(u: Array) -> Array:
    """Give a wave between -1 and 1 of period 1 that starts at 0 and rises."""
    wave: Array = 1.0 - 4.0 * np.abs(np.mod(u + 0.25, 1.0) - 0.5)
    return wave


def _pair(scene: Scene, u: Array, rng: random.Random, wide: float, tall: float) -> list[Path]:
    jitter_x, jitter_y = rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)
    apart = 0.235
    offset_x, offset_y = {
        "left of": (-apart, 0.0),
        "right of": (apart, 0.0),
        "beside": (-apart, 0.0),
        "above": (0.0, -apart),
        "below": (0.0, apart),
        "behind": (-0.04, -0.07),
        "in front of": (0.04, 0.07),
    }[scene.relation]
    is_stacked = scene.relation in ("behind", "in front of")
    paths = []
    for index, thing in enumerate(scene.things):
        sign = 1.0 if index == 0 else -1.0
        r = rng.uniform(*_PAIR_RADIUS[thing.size])
        if is_stacked:  # the one behind is larger, or nobody would see it
            is_back = (scene.relation == "behind") == (index == 0)
            r = rng.uniform(0.235, 0.255) if is_back else rng.uniform(0.11, 0.13)
        x = np.full_like(u, 0.5 * wide + sign * offset_x + jitter_x)
        y = np.full_like(u, 0.5 * tall + sign * offset_y + jitter_y)
        radius, angle = np.full_like(u, r), np.zeros_like(u)
        if thing.motion in DIRECTIONS:
            step_x, step_y = DIRECTIONS[thing.motion]
            x = x + step_x * (0.10 if offset_x and not is_stacked else 0.18) * (2 * u - 1)
            y = y + step_y * (0.10 if offset_y and not is_stacked else 0.18) * (2 * u - 1)
        elif thing.motion == "bounce":
            y = y + 0.10 - 0.20 * np.abs(np.cos(2 * np.pi * u))
        elif thing.motion == "spin":
            angle = np.pi * u
        elif thing.motion in ("grow", "shrink"):
            share = u if thing.motion == "grow" else 1 - u
            radius = radius * np.clip(0.6 + 0.6 * share, 0.3, 1.4)
        paths.append(_path(x, y, radius, angle))
    return paths


def _path(*columns: Array) -> Path:
    return Path(*(column.astype(np.float32) for column in columns))


def coverage(thing: Thing, path: Path, height: int, width: int) -> tuple[Array, Array, slice, slice]:
    """Give the share of each pixel that a moving object covers and the share of its light texture, each (T, h, w).

    They are drawn for the rows and columns that the object passes over, which come third and fourth.
    """
    side = min(height, width)
    reach = float(path.radius_T.max()) * 1.25 + 1.5 / side
    top, bottom = _span(path.y_T, reach, side, height)
    left, right = _span(path.x_T, reach, side, width)
    rows = ((np.arange(top, bottom, dtype=np.float32) + 0.5) / side)[None, :, None] - path.y_T[:, None, None]
    columns = ((np.arange(left, right, dtype=np.float32) + 0.5) / side)[None, None, :] - path.x_T[:, None, None]
    if path.angle_T.any():
        cos, sin = np.cos(path.angle_T)[:, None, None], np.sin(path.angle_T)[:, None, None]
        rows, columns = cos * rows - sin * columns, cos * columns + sin * rows
    else:
        rows, columns = np.broadcast_arrays(rows, columns)
    radius = path.radius_T[:, None, None]
    distance = signed_distance(thing.shape, columns.astype(np.float32), rows.astype(np.float32), radius)
    share = np.clip(0.5 - distance * side, 0.0, 1.0).astype(np.float32)
    return share, _texture(thing.texture, columns, rows, radius, side), slice(top, bottom), slice(left, right)


def _span(centre_T: Array, reach: float, side: int, limit: int) -> tuple[int, int]:
    low, high = float(centre_T.min()) - reach, float(centre_T.max()) + reach + 1 / side
    return int(np.clip(low * side, 0, limit)), int(np.clip(high * side, 0, limit))


def _texture(texture: str, x: Array, y: Array, radius: Array, side: int) -> Array:
    if texture == "plain":
        return np.zeros((1, 1, 1), np.float32)
    pixel = 1.0 / (side * radius)
    across, down = x / radius, y / radius
    if texture == "striped":  # two light bands
        gap = np.abs(np.abs(down + 0.05) - 0.38) - 0.15
    else:  # four light spots
        gap = np.hypot(np.abs(across) - 0.33, np.abs(down - 0.05) - 0.33) - 0.18
    light: Array = np.clip(0.5 - gap / pixel, 0.0, 1.0).astype(np.float32)
    return light


def render(
    scene: Scene, num_frames: int, height: int, width: int, rng: random.Random, begin: float = 0.0
) -> tuple[Bytes, Bytes]:
    """Draw a clip, (T, H, W, 3), and the objects' mask, (T, H, W) of 0..255."""
    side = min(height, width)
    wide, tall = width / side, height / side
    paths = plan(scene, num_frames, rng, wide, tall, begin)
    scale_T, shift_T = camera_path(scene.camera, np.linspace(0.0, 1.0, num_frames, dtype=np.float32))
    if scene.camera == "fixed":
        frames = np.repeat(background_image(scene.background, height, width)[None], num_frames, axis=0)
    else:
        frames = seen_by_camera(scene.background, height, width, scale_T, shift_T)
        paths = [_moved(path, scale_T, shift_T, wide, tall) for path in paths]
    mask = np.zeros((num_frames, height, width), np.float32)
    order = list(zip(scene.things, paths, strict=True))
    if scene.relation == "in front of":
        order.reverse()
    for thing, path in order:
        share, light, rows, columns = coverage(thing, path, height, width)
        colour = np.array(COLOURS[thing.colour], np.float32) / 255.0
        other = colour + 0.75 * ((0.0 if colour.mean() > 0.6 else 1.0) - colour)
        box = frames[:, rows, columns]
        box += share[..., None] * (colour + light[..., None] * (other - colour) - box)
        mask[:, rows, columns] = np.maximum(mask[:, rows, columns], share)
    return (frames * 255 + 0.5).astype(np.uint8), (mask * 255 + 0.5).astype(np.uint8)


def camera_path(camera: str, u: Array) -> tuple[Array, Array]:
    """Give magnification and sideways position of the camera per frame."""
    scale, shift = np.ones_like(u), np.zeros_like(u)
    if camera == "zoom in":
        scale = 1.0 + 0.6 * u
    elif camera == "zoom out":
        scale = 1.6 - 0.6 * u
    elif camera == "pan right":
        shift = 0.5 * (u - 0.5)
    elif camera == "pan left":
        shift = -0.5 * (u - 0.5)
    return scale.astype(np.float32), shift.astype(np.float32)


def seen_by_camera(name: str, height: int, width: int, scale_T: Array, shift_T: Array) -> Array:
    """Draw a background as a camera of these magnifications and positions sees it, (T, H, W, 3)."""
    x_W, y_H = _pixel_centres(width, height)
    wide, tall = width / min(width, height), height / min(width, height)
    views = []
    for scale, shift in zip(scale_T, shift_T, strict=True):
        x, y = np.meshgrid((x_W - wide / 2) / scale + wide / 2 + shift, (y_H - tall / 2) / scale + tall / 2)
        views.append(_painted(name, x, y, 1.0 / (min(height, width) * float(scale)), tall))
    return np.stack(views)


def _moved(path: Path, scale_T: Array, shift_T: Array, wide: float, tall: float) -> Path:
    x = (path.x_T - shift_T - wide / 2) * scale_T + wide / 2
    y = (path.y_T - tall / 2) * scale_T + tall / 2
    return _path(x, y, path.radius_T * scale_T, path.angle_T)
