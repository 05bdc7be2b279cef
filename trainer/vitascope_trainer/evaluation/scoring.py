"""Compare what the probe reads with what was asked for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from vitascope_trainer.evaluation.probe import Reading, Seen
from vitascope_trainer.world.scenes import OPPOSITE, Scene, Thing

FOUR = ("colour", "motion", "background", "shape")
"""What `all four` asks to be right at once."""
_STACKED = ("behind", "in front of")


@dataclass(frozen=True)
class Rate:
    """How many of how many were right."""

    num_right: int
    num_asked: int

    @property
    def share(self) -> float:
        """Give the share that was right; 0 of 0 is 0."""
        return self.num_right / self.num_asked if self.num_asked else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Give the 95 % interval by Wilson's formula (Wilson 1927)."""
        if not self.num_asked:
            return 0.0, 1.0
        z, n, p = 1.959964, self.num_asked, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)


def agreement(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Say for each attribute that the scene names whether the clip shows it.

    With two objects an attribute is right if it is right of both; which seen object is which is chosen so that most
    agrees. `binding` is each object's own colour and shape with the relation, `binding and motion` each one's motion
    too; `all four` is the four of `FOUR` and the count, and with two objects the relation as well.
    """
    found = {
        "count": reading.count == len(scene.things),
        "background": reading.background == scene.background,
    }
    if scene.camera != "fixed" or reading.camera != "fixed":
        found["camera"] = reading.camera == scene.camera
    pairings = [_pairing(reading, scene, order) for order in itertools.permutations(range(len(scene.things)))]
    best = max(pairings, key=lambda each: sum(each.values()))
    found |= best
    found["all four"] = all(found[name] for name in FOUR) and found["count"]
    if len(scene.things) == 2:
        found["binding"] = found["colour"] and found["shape"] and found["relation"] and found["count"]
        found["binding and motion"] = found["binding"] and found["motion"]
        found["all four"] = found["all four"] and found["relation"]
    return found


def _pairing(reading: Reading, scene: Scene, order: tuple[int, ...]) -> dict[str, bool]:
    """Compare the seen objects, taken in an order, with the asked ones; an object not seen agrees in nothing."""
    seen = [reading.things[k] if k < reading.count else None for k in order]
    pairs = list(zip(seen, scene.things, strict=True))
    found = {name: all(_same(one, thing, name) for one, thing in pairs) for name in ("colour", "motion", "shape")}
    if any(thing.texture != "plain" for thing in scene.things):
        found["texture"] = all(_same(one, thing, "texture") for one, thing in pairs)
    sized = [(one, thing) for one, thing in pairs if thing.size != "unsaid"]
    if sized and scene.relation not in _STACKED:
        found["size"] = all(_same(one, thing, "size") for one, thing in sized)
    if len(scene.things) == 2:
        relation = reading.relation if order == (0, 1) else OPPOSITE.get(reading.relation, "")
        is_beside = scene.relation == "beside" and relation in ("left of", "right of")
        found["relation"] = relation == scene.relation or is_beside
    return found


def _same(seen: Seen | None, thing: Thing, name: str) -> bool:
    return seen is not None and getattr(seen, name) == getattr(thing, name)


def score(readings: Sequence[Reading], scenes: Sequence[Scene]) -> dict[str, Rate]:
    """Count, per attribute, the clips that show it among those that were asked for it."""
    right: dict[str, int] = {}
    asked: dict[str, int] = {}
    for reading, scene in zip(readings, scenes, strict=True):
        for name, is_right in agreement(reading, scene).items():
            asked[name] = asked.get(name, 0) + 1
            right[name] = right.get(name, 0) + is_right
    return {name: Rate(right[name], asked[name]) for name in asked}
