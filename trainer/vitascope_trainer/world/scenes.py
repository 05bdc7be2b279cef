"""What a clip of the procedural world shows: its attributes, their split into seen and held-out, and a random draw.

Every attribute is exact, so a clip carries its own labels.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, replace

Colour = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "ring", "heart")
COLOURS: dict[str, Colour] = {
    "red": (220, 30, 35),
    "orange": (250, 135, 10),
    "yellow": (250, 230, 30),
    "green": (30, 170, 50),
    "cyan": (20, 215, 215),
    "blue": (35, 70, 230),
    "purple": (140, 40, 175),
    "pink": (250, 120, 190),
    "white": (250, 250, 250),
    "black": (8, 8, 8),
}
SIZES = ("small", "large", "unsaid")
TEXTURES = ("plain", "striped", "spotted")
DIRECTIONS: dict[str, tuple[int, int]] = {
    "right": (1, 0),
    "left": (-1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up right": (1, -1),
    "up left": (-1, -1),
    "down right": (1, 1),
    "down left": (-1, 1),
}
MOTIONS = (*DIRECTIONS, "bounce", "orbit", "spin", "grow", "shrink", "zigzag", "still")
TRAVELS = (*DIRECTIONS, "bounce", "orbit", "zigzag")
"""The motions that take an object elsewhere."""
PAIR_MOTIONS = ("right", "left", "up", "down", "bounce", "spin", "grow", "shrink", "still")
RELATIONS = ("left of", "right of", "above", "below", "behind", "in front of", "beside")
"""Where the first object is, seen from the second; `beside` is said of two alike, the first on the left."""
OPPOSITE = {"left of": "right of", "above": "below", "behind": "in front of"}
OPPOSITE |= {after: before for before, after in OPPOSITE.items()}
"""What a relation is called from the other object's side; `beside` has no other side."""
CAMERAS = ("fixed", "pan left", "pan right", "zoom in", "zoom out")

FLAT: dict[str, Colour] = {
    "black": (8, 8, 8),
    "white": (247, 247, 247),
    "gray": (128, 128, 128),
    "red": (205, 45, 45),
    "orange": (240, 145, 40),
    "yellow": (240, 215, 60),
    "green": (45, 160, 65),
    "cyan": (40, 195, 200),
    "blue": (45, 85, 215),
    "purple": (130, 55, 165),
    "pink": (240, 135, 185),
    "dark red": (105, 16, 20),
    "dark green": (10, 62, 28),
    "dark blue": (12, 20, 75),
    "dark purple": (80, 20, 108),
    "light blue": (165, 208, 245),
    "light green": (178, 232, 178),
}
"""Backgrounds of one colour."""
GRADIENTS: dict[str, tuple[Colour, Colour]] = {
    "blue gradient": ((15, 30, 100), (120, 180, 240)),
    "sunset gradient": ((75, 35, 105), (250, 165, 95)),
}
"""Backgrounds that run from a colour at the top to one at the bottom."""
PATTERNS = ("stripes", "checkerboard", "dots")
PALETTES: dict[str, tuple[Colour, Colour]] = {
    "": ((230, 218, 195), (62, 45, 75)),
    "red": ((240, 170, 165), (165, 35, 40)),
    "green": ((175, 225, 170), (35, 115, 55)),
    "blue": ((165, 195, 245), (40, 70, 165)),
}
"""Light and dark tone of a pattern; the nameless one is cream on aubergine."""
BACKGROUNDS = (
    *FLAT,
    *GRADIENTS,
    *(f"{palette} {pattern}".strip() for pattern in PATTERNS for palette in PALETTES),
)

_DISTINCT = 62.0  # nearer than that (root mean square over the channels), object and background are not told apart


@dataclass(frozen=True)
class Thing:
    """An object and what it does."""

    shape: str
    colour: str
    motion: str
    size: str = "unsaid"
    texture: str = "plain"

    @property
    def is_held_out(self) -> bool:
        """Say whether the combination of colour, shape and motion is kept away from training (one in five)."""
        number = 2 * list(COLOURS).index(self.colour) + 3 * SHAPES.index(self.shape) + MOTIONS.index(self.motion)
        return number % 5 == 0


@dataclass(frozen=True)
class Scene:
    """What a clip shows; the fields are the labels that the probe is asked for."""

    things: tuple[Thing, ...]
    background: str
    relation: str = ""
    """Empty for one object."""
    camera: str = "fixed"

    @property
    def is_possible(self) -> bool:
        """Say whether the scene can be seen: a circle's spin cannot, nor blue on blue."""
        for thing in self.things:
            if thing.motion == "spin" and thing.shape in ("circle", "ring") and thing.texture == "plain":
                return False
            if thing.texture != "plain" and thing.shape == "ring":
                return False
            if any(_distance(COLOURS[thing.colour], tone) < _DISTINCT for tone in tones(self.background)):
                return False
        if self.camera != "fixed" and self.background in FLAT:
            return False
        if self.camera.startswith("pan") and self.background in GRADIENTS:
            return False
        if len(self.things) == 2:
            first, second = self.things
            if self.relation == "beside":
                return first == second
            return _distance(COLOURS[first.colour], COLOURS[second.colour]) >= _DISTINCT
        return True

    @property
    def canonical(self) -> Scene:
        """Give the same picture with its objects in the order in which one is left of, above or behind the other."""
        if self.relation not in ("right of", "below", "in front of"):
            return self
        return replace(self, things=self.things[::-1], relation=OPPOSITE[self.relation])

    @property
    def has_held_out_thing(self) -> bool:
        """Say whether the scene is kept away from training whatever else it shows, because of one of its objects."""
        return any(thing.is_held_out for thing in self.things)

    @property
    def is_held_out(self) -> bool:
        """Say whether the scene is kept away from training, because of an object or of how two of them combine.

        Two objects combine alike from either side: "A left of B" is held out if and only if "B right of A" is.
        """
        return self.has_held_out_thing or self.is_held_out_pair

    @property
    def is_held_out_pair(self) -> bool:
        """Say whether the scene is kept away from training because of how its two objects combine (one in five)."""
        if len(self.things) < 2:
            return False
        same = self.canonical
        first, second = (f"{thing.colour} {thing.shape}" for thing in same.things)
        return zlib.crc32(f"{first} {same.relation} {second}".encode()) % 5 == 0


def tones(background: str) -> tuple[Colour, ...]:
    """Give the colours that a background consists of, or the ends of its gradient."""
    if background in FLAT:
        return (FLAT[background],)
    if background in GRADIENTS:
        return GRADIENTS[background]
    return PALETTES[background.rpartition(" ")[0]]


def _distance(one: Colour, other: Colour) -> float:
    squares = [(a - b) ** 2 for a, b in zip(one, other, strict=True)]
    return float((sum(squares) / 3.0) ** 0.5)


@dataclass(frozen=True)
class Mix:
    """How often a random scene shows what goes beyond one plain object before a fixed camera."""

    two: float = 0.3
    texture: float = 0.1
    camera: float = 0.08
    pattern: float = 0.28
    """Share of the backgrounds; of the others five in six are flat."""
    small_on_pattern: float = 0.0
    """Share of the scenes in which one small object moves over a pattern: the hardest to draw with a sharp outline."""


def random_scene(rng: random.Random, held_out: bool | None = False, mix: Mix = Mix()) -> Scene:
    """Draw a possible scene; `held_out` None takes either side of the split."""
    kind = rng.random()
    while True:
        if kind >= 1.0 - mix.small_on_pattern:
            scene = _any_small_on_pattern(rng)
        else:
            scene = _any_pair(rng, mix) if kind < mix.two else _any_single(rng, mix)
        if scene.is_possible and (held_out is None or scene.is_held_out == held_out):
            return scene


def _any_background(rng: random.Random, pattern: float) -> str:
    kind = rng.random()
    if kind < (1.0 - pattern) * 5 / 6:
        return rng.choice(list(FLAT))
    if kind < 1.0 - pattern:
        return rng.choice(list(GRADIENTS))
    return _any_pattern(rng)


def _any_pattern(rng: random.Random) -> str:
    palette = rng.choice(("", "", *PALETTES))
    return f"{palette} {rng.choice(PATTERNS)}".strip()


def _any_single(rng: random.Random, mix: Mix) -> Scene:
    has_camera = rng.random() < mix.camera
    thing = Thing(
        shape=rng.choice(SHAPES),
        colour=rng.choice(list(COLOURS)),
        motion=rng.choice(("still", "spin", "grow", "shrink")) if has_camera else rng.choice(MOTIONS),
        size=rng.choices(SIZES, (35, 35, 30))[0],
        texture=rng.choice(TEXTURES[1:]) if rng.random() < mix.texture else "plain",
    )
    return Scene((thing,), _any_background(rng, mix.pattern), camera=rng.choice(CAMERAS[1:]) if has_camera else "fixed")


def _any_small_on_pattern(rng: random.Random) -> Scene:
    thing = Thing(rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(TRAVELS), "small")
    return Scene((thing,), _any_pattern(rng))


def _any_pair(rng: random.Random, mix: Mix) -> Scene:
    relation = rng.choice(RELATIONS)
    motion = rng.choice(PAIR_MOTIONS)
    sizes = ("unsaid", "unsaid", "small", "large")
    first = Thing(rng.choice(SHAPES), rng.choice(list(COLOURS)), motion, rng.choice(sizes))
    if relation == "beside":
        return Scene((first, first), _any_background(rng, mix.pattern), relation)
    other = "still" if rng.random() < 0.45 else motion
    second = Thing(rng.choice(SHAPES), rng.choice(list(COLOURS)), other, rng.choice(sizes))
    return Scene((first, second), _any_background(rng, mix.pattern), relation)
