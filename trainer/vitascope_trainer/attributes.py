"""The attributes of a scene as classes that a head can be asked for."""

from __future__ import annotations

from collections.abc import Mapping

from vitascope_trainer.world.scenes import BACKGROUNDS, CAMERAS, COLOURS, MOTIONS, SHAPES, SIZES, TEXTURES, Scene

_NONE = "none"
_PER_OBJECT = ("shape", "colour", "motion", "size", "texture")
CLASSES: Mapping[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "motion": MOTIONS,
    "size": SIZES[:2],
    "texture": TEXTURES,
    "other shape": (_NONE, *SHAPES),
    "other colour": (_NONE, *COLOURS),
    "other motion": (_NONE, *MOTIONS),
    "relation": (_NONE, "left of", "above", "behind", "beside"),
    "background": BACKGROUNDS,
    "camera": CAMERAS,
}
"""`other` is the second object, where there is one."""


def attributes_of(scene: Scene, missing: frozenset[str]) -> dict[str, str]:
    """Give a scene's attributes, without those that its caption leaves out.

    Two objects are named in the order in which one is left of, above or behind the other, however the caption puts it.
    A caption without a relation says no order: what the two do not share is left out then.
    """
    scene = scene.canonical
    first, second = scene.things[0], scene.things[-1]
    found = {name: getattr(first, name) for name in _PER_OBJECT}
    is_pair = len(scene.things) == 2
    for name in ("shape", "colour", "motion"):
        found[f"other {name}"] = getattr(second, name) if is_pair else _NONE
    found |= {"relation": scene.relation or _NONE, "background": scene.background, "camera": scene.camera}
    unsaid = set(missing)
    if is_pair:
        if "relation" in missing:
            unsaid |= {name for name in _PER_OBJECT if getattr(first, name) != getattr(second, name)}
        unsaid |= {f"other {name}" for name in unsaid}
    return {name: value for name, value in found.items() if value in CLASSES[name] and name not in unsaid}
