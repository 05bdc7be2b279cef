"""The procedural world: what the built-in model learns to draw, and the sentences that describe it.

A scene is one flat-coloured shape that moves over a background. Every attribute is exact, so a clip carries its own
labels.

Shapes: T frames, H rows, W columns. Images and masks are in [0, 1]; lengths are fractions of the frame's side; y points
down.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SHAPES = ("circle", "square", "triangle", "star", "ring")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 135, 10),
    "yellow": (250, 230, 30),
    "green": (30, 170, 50),
    "cyan": (20, 215, 215),
    "blue": (35, 70, 230),
    "purple": (140, 40, 175),
    "pink": (250, 120, 190),
}
MOTIONS = ("right", "left", "up", "down", "bounce", "orbit", "spin", "grow", "shrink", "still")
BACKGROUNDS = (
    "black", "white", "gray", "dark blue", "dark green", "light blue",
    "blue gradient", "sunset gradient", "checkerboard", "stripes",
)  # fmt: skip
SIZES = ("small", "large", "unsaid")

_FLAT = {
    "black": (8, 8, 8),
    "white": (247, 247, 247),
    "gray": (128, 128, 128),
    "dark blue": (12, 20, 75),
    "dark green": (10, 62, 28),
    "light blue": (165, 208, 245),
}
# Scenes in which object and background are too close to tell apart, besides those that share a name.
_TOO_CLOSE = {("blue", "dark blue"), ("green", "dark green"), ("blue", "blue gradient"), ("cyan", "light blue")}


@dataclass(frozen=True)
class Scene:
    """What a clip shows; the fields are the labels that the probe is asked for."""

    shape: str
    colour: str
    motion: str
    background: str
    size: str = "unsaid"

    @property
    def is_possible(self) -> bool:
        """Say whether the scene can be seen: a circle's spin cannot, nor blue on blue."""
        if self.motion == "spin" and self.shape in ("circle", "ring"):
            return False
        return (self.colour, self.background) not in _TOO_CLOSE

    @property
    def is_held_out(self) -> bool:
        """Say whether the combination of colour, shape and motion is kept away from training (one in five)."""
        colour = list(COLOURS).index(self.colour)
        return (2 * colour + 3 * SHAPES.index(self.shape) + MOTIONS.index(self.motion)) % 5 == 0


def random_scene(rng: random.Random, held_out: bool | None = False) -> Scene:
    """Draw a possible scene; `held_out` None takes either side of the split."""
    while True:
        scene = Scene(
            shape=rng.choice(SHAPES),
            colour=rng.choice(list(COLOURS)),
            motion=rng.choice(MOTIONS),
            background=rng.choice(BACKGROUNDS),
            size=rng.choices(SIZES, (40, 40, 20))[0],
        )
        if scene.is_possible and (held_out is None or scene.is_held_out == held_out):
            return scene


# ---------------------------------------------------------------- pictures


def background_image(name: str, side: int = 64) -> Array:
    """Draw a background, (side, side, 3)."""
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) / side
    image: NDArray[np.floating[Any]]
    if name in _FLAT:
        image = np.broadcast_to(np.array(_FLAT[name], np.float32), (side, side, 3))
    elif name == "checkerboard":
        on = ((rows * 8).astype(int) + (columns * 8).astype(int)) % 2
        image = np.where(on[..., None] == 1, 205.0, 60.0) * np.ones(3)
    elif name == "stripes":
        on = (columns * 8).astype(int) % 2
        image = np.where(on[..., None] == 1, np.array([235.0, 225.0, 200.0]), np.array([110.0, 80.0, 60.0]))
    else:
        ends = {
            "blue gradient": ((15.0, 30.0, 100.0), (120.0, 180.0, 240.0)),
            "sunset gradient": ((75.0, 35.0, 105.0), (250.0, 165.0, 95.0)),
        }[name]
        top, bottom = (np.array(end) for end in ends)
        image = top + (bottom - top) * rows[..., None]
    return np.asarray(image / 255.0, np.float32)


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
    else:  # five-pointed star: fold the plane onto one half point, then measure to one edge (Inigo Quilez, sdStar5)
        k1x, k1y, k2x, k2y = 0.809016994375, -0.587785252292, -0.809016994375, -0.587785252292
        radius, inner = 1.15 * radius, 0.5
        x, y = np.abs(x), -y
        dot: Array = np.maximum(k1x * x + k1y * y, 0.0)
        x, y = x - 2 * dot * k1x, y - 2 * dot * k1y
        dot = np.maximum(k2x * x + k2y * y, 0.0)
        x, y = x - 2 * dot * k2x, y - 2 * dot * k2y
        x, y = np.abs(x), y - radius
        edge_x, edge_y = inner * -k1y, inner * k1x - 1.0
        along = np.clip((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2), 0.0, radius)
        distance = np.hypot(x - edge_x * along, y - edge_y * along) * np.sign(y * edge_x - x * edge_y)
    return distance


def _trajectory(scene: Scene, num_frames: int, rng: random.Random) -> tuple[Array, Array, Array, Array]:
    """Give centre x, centre y, radius and angle per frame; a motion spans the whole clip, whatever its length."""
    u = np.linspace(0.0, 1.0, num_frames, dtype=np.float32)
    low_r, high_r = {"small": (0.145, 0.165), "large": (0.235, 0.26), "unsaid": (0.15, 0.25)}[scene.size]
    r = rng.uniform(low_r, high_r)
    x, y = np.full_like(u, rng.uniform(0.44, 0.56)), np.full_like(u, rng.uniform(0.44, 0.56))
    radius, angle = np.full_like(u, r), np.zeros_like(u)
    low = max(0.21, r + 0.03)
    path = low + (1 - 2 * low) * u + rng.uniform(-0.05, 0.05) * (1 - u) * (low > 0.26) * 0.5
    across = np.full_like(u, rng.uniform(0.38, 0.62))
    match scene.motion:
        case "right":
            x, y = path, across
        case "left":
            x, y = 1 - path, across
        case "down":
            x, y = across, path
        case "up":
            x, y = across, 1 - path
        case "bounce":
            floor = 1 - low
            x, y = across, floor - (1 - 2 * low) * 0.95 * np.abs(np.cos(2 * np.pi * u))
        case "orbit":
            reach, start = rng.uniform(0.2, 0.235), rng.uniform(0, 2 * np.pi)
            x = 0.5 + reach * np.cos(start + 2 * np.pi * u)
            y = 0.5 + reach * np.sin(start + 2 * np.pi * u)
        case "spin":
            angle = np.pi * u
        case "grow" | "shrink":
            factor = {"small": 0.85, "large": 1.1, "unsaid": 1.0}[scene.size]
            first, last = rng.uniform(0.10, 0.12) * factor, rng.uniform(0.27, 0.30) * factor
            radius = first + (last - first) * (u if scene.motion == "grow" else 1 - u)
        case "still":
            x, y = np.full_like(u, rng.uniform(0.4, 0.6)), np.full_like(u, rng.uniform(0.4, 0.6))
    return x, y, radius.astype(np.float32), angle.astype(np.float32)


def coverage(
    shape: str, x_T: Array, y_T: Array, radius_T: Array, angle_T: Array, side: int = 64
) -> tuple[Array, slice, slice]:
    """Give the share of each pixel that a moving shape covers, (T, h, w), and the rows and columns it lies in."""
    reach = radius_T.max() * 1.25 + 1.5 / side
    top, bottom = (int(np.clip((edge) * side, 0, side)) for edge in (y_T.min() - reach, y_T.max() + reach + 1 / side))
    left, right = (int(np.clip((edge) * side, 0, side)) for edge in (x_T.min() - reach, x_T.max() + reach + 1 / side))
    rows = ((np.arange(top, bottom, dtype=np.float32) + 0.5) / side)[None, :, None] - y_T[:, None, None]
    columns = ((np.arange(left, right, dtype=np.float32) + 0.5) / side)[None, None, :] - x_T[:, None, None]
    if angle_T.any():
        cos, sin = np.cos(angle_T)[:, None, None], np.sin(angle_T)[:, None, None]
        rows, columns = cos * rows - sin * columns, cos * columns + sin * rows
    else:
        rows, columns = np.broadcast_arrays(rows, columns)
    distance = signed_distance(shape, columns.astype(np.float32), rows.astype(np.float32), radius_T[:, None, None])
    return np.clip(0.5 - distance * side, 0.0, 1.0).astype(np.float32), slice(top, bottom), slice(left, right)


def render(
    scene: Scene, num_frames: int, rng: random.Random, side: int = 64, second: Scene | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a clip, (T, H, W, 3), and the object's mask, (T, H, W) of 0..255; `second` adds another object on top."""
    frames = np.repeat(background_image(scene.background, side)[None], num_frames, axis=0)
    mask = np.zeros((num_frames, side, side), np.float32)
    for each in (scene, second):
        if each is None:
            continue
        alpha, rows, columns = coverage(each.shape, *_trajectory(each, num_frames, rng), side=side)
        box = frames[:, rows, columns]
        box += alpha[..., None] * (np.array(COLOURS[each.colour], np.float32) / 255.0 - box)
        mask[:, rows, columns] = np.maximum(mask[:, rows, columns], alpha)
    return (frames * 255 + 0.5).astype(np.uint8), (mask * 255 + 0.5).astype(np.uint8)


# ---------------------------------------------------------------- sentences

_SHAPE_WORDS = {
    "circle": ("circle", "circle", "ball", "disc", "disk", "sphere", "dot"),
    "square": ("square", "square", "box", "block", "cube"),
    "triangle": ("triangle", "triangle", "pyramid"),
    "star": ("star",),
    "ring": ("ring", "ring", "donut", "hoop"),
}
_COLOUR_WORDS = {
    "red": ("red", "red", "red", "crimson", "scarlet"),
    "orange": ("orange", "orange", "tangerine"),
    "yellow": ("yellow", "yellow", "golden", "lemon"),
    "green": ("green", "green", "green", "emerald"),
    "cyan": ("cyan", "cyan", "turquoise", "teal", "aqua"),
    "blue": ("blue", "blue", "blue", "royal blue"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "rose"),
}
_SIZE_WORDS = {
    "small": ("small", "small", "little", "tiny"),
    "large": ("large", "large", "big", "huge", "giant"),
    "unsaid": ("",),
}
# (-ing form, finite form)
_MOTION_WORDS = {
    "right": (
        ("moving right", "moves right"), ("moving to the right", "moves to the right"),
        ("moving from left to right", "moves from left to right"), ("sliding right", "slides right"),
        ("going to the right", "goes to the right"), ("drifting right", "drifts right"),
    ),
    "left": (
        ("moving left", "moves left"), ("moving to the left", "moves to the left"),
        ("moving from right to left", "moves from right to left"), ("sliding left", "slides left"),
        ("going to the left", "goes to the left"), ("drifting left", "drifts left"),
    ),
    "up": (
        ("moving up", "moves up"), ("rising", "rises"), ("floating up", "floats up"),
        ("moving upwards", "moves upwards"), ("moving from bottom to top", "moves from bottom to top"),
        ("going up", "goes up"),
    ),
    "down": (
        ("moving down", "moves down"), ("falling", "falls"), ("falling down", "falls down"), ("sinking", "sinks"),
        ("moving downwards", "moves downwards"), ("moving from top to bottom", "moves from top to bottom"),
        ("dropping", "drops"),
    ),
    "bounce": (
        ("bouncing", "bounces"), ("bouncing up and down", "bounces up and down"),
        ("jumping", "jumps"), ("hopping up and down", "hops up and down"),
    ),
    "orbit": (
        ("orbiting", "orbits"), ("circling", "circles around"), ("moving in a circle", "moves in a circle"),
        ("orbiting around the center", "orbits around the center"), ("going around in a circle", "goes in a circle"),
    ),
    "spin": (
        ("spinning", "spins"), ("rotating", "rotates"), ("turning", "turns"), ("spinning around", "spins around"),
        ("rotating in place", "rotates in place"),
    ),
    "grow": (
        ("growing", "grows"), ("getting bigger", "gets bigger"), ("expanding", "expands"),
        ("growing larger", "grows larger"), ("becoming larger", "becomes larger"),
    ),
    "shrink": (
        ("shrinking", "shrinks"), ("getting smaller", "gets smaller"), ("contracting", "contracts"),
        ("becoming smaller", "becomes smaller"),
    ),
    "still": (
        ("standing still", "stands still"), ("staying still", "stays still"), ("resting", "rests"),
        ("not moving", "does not move"), ("staying in place", "stays in place"), ("sitting still", "sits still"),
    ),
}  # fmt: skip
_BACKGROUND_WORDS = {
    "black": ("a black background", "a black background", "black"),
    "white": ("a white background", "a white background", "white"),
    "gray": ("a gray background", "a grey background", "gray"),
    "dark blue": ("a dark blue background", "a navy background", "a navy blue background", "dark blue"),
    "dark green": ("a dark green background", "a forest green background", "dark green"),
    "light blue": ("a light blue background", "a sky blue background", "a pale blue background", "light blue"),
    "blue gradient": ("a blue gradient background", "a blue gradient", "a gradient from dark to light blue"),
    "sunset gradient": ("a sunset gradient background", "a sunset gradient", "a sunset background", "a sunset sky"),
    "checkerboard": ("a checkerboard background", "a checkerboard", "a checkered background", "a chessboard"),
    "stripes": ("a striped background", "stripes", "vertical stripes", "a background with stripes"),
}
_PREFIXES = ("a video of", "an animation of", "a clip of", "a movie of", "a short video of", "animated", "show me")
_SUFFIXES = (
    "cinematic", "high quality", "smooth animation", "simple", "minimal", "4k", "slowly", "smoothly", "in the scene",
    "on the screen", "flat colors", "please",
)  # fmt: skip
_SPARE_WORDS = (
    "the an is are it that this there which one and of with in on at over against across through by for",
    "shape object figure background backdrop scene frame screen color colored colour",
    "bright vivid dark light pale solid plain round nice beautiful very slow slowly fast quickly steady calm",
)
_UNKNOWN = "zzz"  # never in the vocabulary: becomes <unk>


def caption(scene: Scene, rng: random.Random, plain: bool = False) -> str:
    """Say a scene in one of many ways; `plain` says every attribute, in one order, without noise."""
    return caption_and_gap(scene, rng, plain)[0]


def caption_and_gap(scene: Scene, rng: random.Random, plain: bool = False) -> tuple[str, str]:
    """Give a caption and the name of the attribute that it leaves out, "" for none."""
    colour, shape, size = (
        rng.choice(words[key])
        for words, key in (
            (_COLOUR_WORDS, scene.colour), (_SHAPE_WORDS, scene.shape), (_SIZE_WORDS, scene.size)
        )
    )  # fmt: skip
    if plain:
        size, colour, shape = ("" if scene.size == "unsaid" else scene.size), scene.colour, scene.shape
    progressive, finite = rng.choice(_MOTION_WORDS[scene.motion])
    background = rng.choice(_BACKGROUND_WORDS[scene.background])
    left_out = "" if plain or rng.random() > 0.3 else rng.choice(("colour", "motion", "background", "size", "shape"))
    if left_out == "colour":
        colour = ""
    if left_out == "size":
        size = ""
    if left_out == "shape":
        shape = rng.choice(("shape", "object", "figure"))
    article = rng.choice(("a", "a", "the", "one", "")) if not plain else "a"
    thing = " ".join(word for word in (article, size, colour, shape) if word)
    place = rng.choice(("on", "on", "over", "against", "in front of")) if not plain else "on"
    order = 0 if plain else rng.choice((0, 0, 0, 1, 2))
    if left_out == "background":
        text = f"{thing} {rng.choice((progressive, finite))}"
    elif left_out == "motion":
        text = rng.choice((f"{thing} {place} {background}", f"{place} {background}, {thing}"))
    elif order == 0:
        text = f"{thing} {rng.choice((progressive, finite, 'is ' + progressive))} {place} {background}"
    elif order == 1:
        text = f"{place} {background}, {thing} {rng.choice((progressive, finite))}"
    else:
        text = f"{background} with {thing} {progressive}"
    if plain:
        return text, ""
    if rng.random() < 0.2:
        text = f"{rng.choice(_PREFIXES)} {text}"
    if rng.random() < 0.2:
        text = f"{text}, {rng.choice(_SUFFIXES)}"
    if rng.random() < 0.1:
        words = text.split()
        for _ in range(rng.randint(1, 3)):
            words.insert(rng.randint(0, len(words)), _UNKNOWN)
        text = " ".join(words)
    return text, left_out


def vocabulary() -> list[str]:
    """List every word the captions can use, sorted, without the special tokens."""
    texts: list[str] = [*_PREFIXES, *_SUFFIXES, *_SPARE_WORDS, *COLOURS, *SHAPES, *SIZES[:2], "is", "in front of"]
    tables: list[dict[str, Any]] = [_SHAPE_WORDS, _COLOUR_WORDS, _SIZE_WORDS, _BACKGROUND_WORDS]
    for table in tables:
        for words in table.values():
            texts.extend(words)
    for pairs in _MOTION_WORDS.values():
        for pair in pairs:
            texts.extend(pair)
    return sorted({word for text in texts for word in re.findall(r"[a-z0-9]+", text.lower())})


def held_out_prompts(count: int = 32, seed: int = 13) -> list[tuple[str, Scene]]:
    """List prompts of scenes that training never showed, every attribute said; the same list for the same seed.

    The default seed is one whose 32 prompts use every colour, motion and background.
    """
    rng = random.Random(seed)
    prompts = []
    for _ in range(count):
        scene = random_scene(rng, held_out=True)
        prompts.append((caption(scene, rng, plain=True), scene))
    return prompts
