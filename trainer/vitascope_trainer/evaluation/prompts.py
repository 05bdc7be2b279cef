"""The prompts that a model is judged by, each with the scene that it asks for.

Eight sets, the same for the same seed: `plain` says unseen combinations of one object in the plainest words; `small`
says those of one small object that moves over a pattern, where an outline is hardest to keep;
`written` are the words of people who did not know the training grammar; `reworded` are sentences that training never
uses, with new forms of words that it knows; `strange` says scenes in words that share no stem with any that it knows;
`pairs` are two objects whose colours, shapes and relation training never showed together; `confusable` are minimal
pairs, sentences that differ in one word or in its place; `camera` has moving cameras and textured objects.

A scene counts as unseen if one of its objects is held out, whatever becomes of the others. Only a few `confusable`
prompts are not unseen, as their differences do not allow it (`Prompt.is_unseen`).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from vitascope_trainer.evaluation.written import WRITTEN
from vitascope_trainer.world.captions import plain_caption
from vitascope_trainer.world.scenes import DIRECTIONS, FLAT, GRADIENTS, Mix, Scene, Thing, random_scene
from vitascope_trainer.world.words import with_article

SETS = {
    "plain": 96,
    "small": 32,
    "written": len(WRITTEN),
    "reworded": 64,
    "strange": 32,
    "pairs": 64,
    "confusable": 48,
    "camera": 16,
}
"""Number of prompts per set."""


@dataclass(frozen=True)
class Prompt:
    """A text, and what a clip made from it has to show."""

    kind: str
    text: str
    scene: Scene

    @property
    def is_unseen(self) -> bool:
        """Say whether training cannot have shown the scene."""
        return self.scene.has_held_out_thing


def unseen_scene(rng: random.Random, mix: Mix) -> Scene:
    """Draw a scene with a held-out object."""
    while True:
        scene = random_scene(rng, held_out=True, mix=mix)
        if scene.has_held_out_thing:
            return scene


def all_prompts(count: int | None = None, seed: int = 2024) -> list[Prompt]:
    """Give the prompts of every set; `count` takes that many, every set by its share but at least one."""
    made = {kind: make(random.Random(f"{kind} {seed}"), SETS[kind]) for kind, make in _MAKERS.items()}
    total = sum(SETS.values())
    if count is None or count >= total:
        return [prompt for prompts in made.values() for prompt in prompts]
    return [prompt for prompts in made.values() for prompt in prompts[: max(1, round(count * len(prompts) / total))]]


def first_prompts(kind: str, count: int) -> list[Prompt]:
    """Give the first prompts of a set."""
    return [prompt for prompt in all_prompts() if prompt.kind == kind][:count]


def _distinct(draw: Callable[[], Scene], count: int) -> list[Scene]:
    """Draw until so many different scenes are there."""
    scenes: dict[Scene, None] = {}
    while len(scenes) < count:
        scenes[draw()] = None
    return list(scenes)


def _single_scenes(rng: random.Random, count: int) -> list[Scene]:
    """Draw different scenes of one plain object before a fixed camera."""
    return _distinct(lambda: unseen_scene(rng, Mix(two=0.0, texture=0.0, camera=0.0)), count)


def _plain(rng: random.Random, count: int) -> list[Prompt]:
    return [Prompt("plain", plain_caption(scene), scene) for scene in _single_scenes(rng, count)]


def _small(rng: random.Random, count: int) -> list[Prompt]:
    mix = Mix(two=0.0, small_on_pattern=1.0)
    return [Prompt("small", plain_caption(scene), scene) for scene in _distinct(lambda: unseen_scene(rng, mix), count)]


def _pairs(rng: random.Random, count: int) -> list[Prompt]:
    """Say scenes of which one object is held out, and what the two are together besides."""
    mix = Mix(two=1.0, texture=0.0, camera=0.0)

    def draw() -> Scene:
        while not (scene := unseen_scene(rng, mix)).is_held_out_pair:
            pass
        return scene

    return [Prompt("pairs", plain_caption(scene), scene) for scene in _distinct(draw, count)]


def _camera(rng: random.Random, count: int) -> list[Prompt]:
    num_moving = count // 2
    moving, textured = Mix(two=0.0, texture=0.0, camera=1.0), Mix(two=0.0, texture=1.0, camera=0.0)
    scenes = _distinct(lambda: unseen_scene(rng, moving), num_moving)
    scenes += _distinct(lambda: unseen_scene(rng, textured), count - num_moving)
    return [Prompt("camera", plain_caption(scene), scene) for scene in scenes]


STRANGE_COLOURS = {
    "red": ("ruby", "vermilion", "cherry"),
    "orange": ("amber", "apricot"),
    "yellow": ("canary", "sunflower"),
    "green": ("jade", "shamrock"),
    "cyan": ("lagoon",),
    "blue": ("cerulean", "sapphire", "cobalt"),
    "purple": ("plum", "amethyst", "mauve"),
    "pink": ("bubblegum", "fuchsia", "salmon"),
    "white": ("ivory", "chalky"),
    "black": ("ebony", "inky"),
}
STRANGE_SHAPES = {
    "circle": ("orb", "sphere", "wheel"),
    "square": ("cube", "tile"),
    "triangle": ("wedge", "trigon"),
    "star": ("pentagram", "pentacle"),
    "ring": ("annulus", "doughnut", "bracelet"),
    "heart": ("valentine",),
}
STRANGE_MOTIONS = {
    "right": ("cruises rightwards", "creeps to the right side"),
    "left": ("cruises leftwards", "creeps to the left side"),
    "up": ("ascends", "soars"),
    "down": ("descends", "plummets"),
    "up right": ("ascends towards the right", "soars to the upper right"),
    "up left": ("ascends towards the left", "soars to the upper left"),
    "down right": ("descends towards the right", "plummets to the lower right"),
    "down left": ("descends towards the left", "plummets to the lower left"),
    "bounce": ("springs again and again", "keeps rebounding"),
    "orbit": ("revolves around the midpoint", "runs round and round the middle"),
    "spin": ("whirls", "pirouettes", "swivels"),
    "grow": ("swells", "inflates", "billows"),
    "shrink": ("dwindles", "deflates", "diminishes"),
    "zigzag": ("meanders from side to side", "weaves its way across"),
    "still": ("is frozen", "lingers where it is"),
}
"""What no caption of training says; one word at least of each is like none that it says."""
_STRANGE_SIZES = {"small": ("petite", "mini"), "large": ("enormous", "massive")}
_SENTENCES = (
    "{article_thing} {motion} and {behind}",
    "{behind}: {article_thing} {motion}",
    "we watch how {article_thing} {motion} while {behind}",
    "imagine {article_thing} that {motion}; {behind}",
    "once upon a time {article_thing} {motion}, {behind}",
)


def _reworded(rng: random.Random, count: int) -> list[Prompt]:
    """Say scenes of one object in other sentences, and colour or shape in a form of its own word."""
    return [Prompt("reworded", _in_new_forms(scene, rng), scene) for scene in _single_scenes(rng, count)]


def _in_new_forms(scene: Scene, rng: random.Random) -> str:
    thing = scene.things[0]
    return _told(_named(thing, rng), f"is {_OTHER_MOTIONS[thing.motion]}", scene, rng)


def _named(thing: Thing, rng: random.Random) -> str:
    """Name an object, with its colour or its shape in a new form."""
    size = "" if thing.size == "unsaid" else f"{thing.size} "
    return rng.choice(
        (
            f"{size}{NEW_COLOURS[thing.colour]} {thing.shape}",
            f"{size}{thing.colour} and {NEW_SHAPES[thing.shape]} object",
            f"{size}{NEW_SHAPES[thing.shape]} object, {thing.colour} all over,",
        )
    )


NEW_COLOURS = {
    "red": "reddish",
    "orange": "orangish",
    "yellow": "yellowish",
    "green": "greenish",
    "cyan": "cyanish",
    "blue": "bluish",
    "purple": "purplish",
    "pink": "pinkish",
    "white": "whitish",
    "black": "blackish",
}
NEW_SHAPES = {
    "circle": "circular",
    "square": "squarish",
    "triangle": "triangular",
    "star": "starlike",
    "ring": "ringlike",
    "heart": "heartlike",
}
_OTHER_MOTIONS = {motion: f"making its way {motion.replace(' ', ' and ')}wards" for motion in DIRECTIONS} | {
    "bounce": "a tireless bouncer",
    "orbit": "in an orbital motion",
    "spin": "a spinner",
    "grow": "in steady growth",
    "shrink": "in the middle of shrinkage",
    "zigzag": "taking a zigzaggy path",
    "still": "keeping perfectly still",
}


def _strange(rng: random.Random, count: int) -> list[Prompt]:
    """Say scenes of one object in words of our own; each of its words is strange or a plain one, at random."""
    return [Prompt("strange", _in_strange_words(scene, rng), scene) for scene in _single_scenes(rng, count)]


def _in_strange_words(scene: Scene, rng: random.Random) -> str:
    thing = scene.things[0]
    words = [rng.choice(_STRANGE_SIZES[thing.size])] if thing.size in _STRANGE_SIZES else []
    strange = rng.sample(("colour", "shape", "motion"), rng.choice((2, 2, 3)))
    words.append(rng.choice(STRANGE_COLOURS[thing.colour]) if "colour" in strange else thing.colour)
    words.append(rng.choice(STRANGE_SHAPES[thing.shape]) if "shape" in strange else thing.shape)
    motion = rng.choice(STRANGE_MOTIONS[thing.motion]) if "motion" in strange else _PLAIN_MOTIONS[thing.motion]
    return _told(" ".join(words), motion, scene, rng)


def _told(noun: str, motion: str, scene: Scene, rng: random.Random) -> str:
    behind = _behind(scene.background, rng)
    return rng.choice(_SENTENCES).format(article_thing=with_article(noun), motion=motion, behind=behind)


_PLAIN_MOTIONS = {motion: f"moves {motion.replace(' ', ' and ')}" for motion in STRANGE_MOTIONS} | {
    "bounce": "bounces",
    "orbit": "orbits",
    "spin": "spins",
    "grow": "grows",
    "shrink": "shrinks",
    "zigzag": "zigzags",
    "still": "stands still",
}


def _behind(background: str, rng: random.Random) -> str:
    if background in FLAT:
        sayings: tuple[str, ...] = ("the wallpaper is all {}", "everything else is {}", "the scenery behind it is {}")
    elif background in GRADIENTS:
        sayings = ("the scenery behind it is a {}", "the wallpaper shows a {}")
    elif background.endswith("checkerboard"):
        sayings = ("the backdrop is made of a {}", "the wallpaper shows a {}")
    else:
        sayings = ("the backdrop is made of {}", "the wallpaper is covered in {}")
    return rng.choice(sayings).format(background)


def _written(rng: random.Random, count: int) -> list[Prompt]:
    del rng  # they are written down
    return [Prompt("written", text, scene) for text, scene in WRITTEN[:count]]


def _confusable(rng: random.Random, count: int) -> list[Prompt]:
    """Give minimal pairs, both sides of each."""
    del rng  # they are written down
    prompts = [
        Prompt("confusable", plain_caption(scene), scene) for scene in itertools.chain.from_iterable(_minimal_pairs())
    ]
    return prompts[:count]


def _one(colour: str, shape: str, motion: str, background: str, size: str = "unsaid", texture: str = "plain") -> Scene:
    return Scene((Thing(shape, colour, motion, size, texture),), background)


def _minimal_pairs() -> list[tuple[Scene, Scene]]:
    """Give pairs of which both are held out, or where the difference forbids it, as with near colours, one."""
    return [
        # colour of the object against colour of the background
        (_one("red", "star", "left", "blue"), _one("blue", "star", "left", "red")),
        (_one("blue", "square", "up", "dark red"), _one("red", "square", "up", "dark blue")),
        (_one("orange", "circle", "bounce", "purple"), _one("purple", "circle", "bounce", "orange")),
        (_one("purple", "triangle", "shrink", "orange"), _one("orange", "triangle", "shrink", "purple")),
        (_one("yellow", "heart", "left", "pink"), _one("pink", "heart", "left", "yellow")),
        (_one("green", "star", "right", "white"), _one("white", "star", "right", "green")),
        (_one("white", "ring", "up", "dark green"), _one("green", "ring", "up", "white")),
        (_one("cyan", "heart", "up", "black"), _one("black", "heart", "up", "cyan")),
        # colours that are close
        (_one("orange", "circle", "bounce", "black"), _one("red", "circle", "bounce", "black")),
        (_one("blue", "heart", "right", "white"), _one("cyan", "heart", "right", "white")),
        (_one("yellow", "star", "up", "dark blue"), _one("orange", "star", "up", "dark blue")),
        # shapes that are close
        (_one("pink", "circle", "grow", "gray"), _one("pink", "heart", "grow", "gray")),
        (_one("red", "ring", "down", "white"), _one("red", "circle", "down", "white")),
        # motions that share a word or a look
        (_one("purple", "heart", "bounce", "white"), _one("purple", "heart", "zigzag", "white")),
        (_one("red", "ring", "bounce", "light blue"), _one("red", "ring", "down", "light blue")),
        (_one("red", "triangle", "orbit", "white"), _one("red", "triangle", "up right", "white")),
        (_one("green", "circle", "orbit", "black"), _one("green", "circle", "still", "black")),
        (_one("cyan", "circle", "up", "dark purple"), _one("cyan", "circle", "up right", "dark purple")),
        # backgrounds that share a word
        (_one("yellow", "circle", "left", "blue gradient"), _one("yellow", "circle", "left", "blue stripes")),
        (_one("black", "square", "still", "green"), _one("black", "square", "still", "light green")),
        (_one("white", "heart", "up right", "red"), _one("white", "heart", "up right", "dark red")),
        (_one("orange", "star", "orbit", "blue dots"), _one("orange", "star", "orbit", "blue checkerboard")),
        # sizes; stripes on the object or behind it
        (
            _one("pink", "triangle", "right", "dark blue", "small"),
            _one("pink", "triangle", "right", "dark blue", "large"),
        ),
        (_one("red", "square", "up", "blue", texture="striped"), _one("red", "square", "up", "blue stripes")),
    ]


_MAKERS: dict[str, Callable[[random.Random, int], list[Prompt]]] = {
    "plain": _plain,
    "small": _small,
    "written": _written,
    "reworded": _reworded,
    "strange": _strange,
    "pairs": _pairs,
    "confusable": _confusable,
    "camera": _camera,
}
