"""Says a scene in words: one plain caption, and very many ways to say the same, with gaps and noise.

A caption may leave an attribute out; it then names the gap, so that nothing is asked of a text that never said it.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from vitascope_trainer.world.scenes import BACKGROUNDS, DIRECTIONS, FLAT, OPPOSITE, Scene, Thing

MAX_WORDS = 36
"""No caption is longer."""

_Item = TypeVar("_Item")

_SHAPE_WORDS = {
    "circle": ("circle", "circle", "circle", "ball", "ball", "disc", "disk", "dot"),
    "square": ("square", "square", "square", "box", "block"),
    "triangle": ("triangle", "triangle", "triangle", "pyramid"),
    "star": ("star",),
    "ring": ("ring", "ring", "ring", "donut", "hoop"),
    "heart": ("heart", "heart", "heart", "love heart", "love-heart"),
}
_ANY_SHAPE = ("shape", "object", "thing", "figure", "")  # "" becomes "something"
_COLOUR_WORDS = {
    "red": ("red", "red", "red", "red", "crimson", "scarlet", "bright red"),
    "orange": ("orange", "orange", "orange", "tangerine", "bright orange"),
    "yellow": ("yellow", "yellow", "yellow", "yellow", "golden", "lemon", "lemon yellow"),
    "green": ("green", "green", "green", "green", "emerald", "emerald green"),
    "cyan": ("cyan", "cyan", "cyan", "turquoise", "teal", "aqua"),
    "blue": ("blue", "blue", "blue", "blue", "royal blue", "bright blue"),
    "purple": ("purple", "purple", "purple", "violet"),
    "pink": ("pink", "pink", "pink", "rose", "hot pink"),
    "white": ("white", "white", "white", "white", "snowy", "snow white"),
    "black": ("black", "black", "black", "black", "jet black", "coal black"),
}
_COLOUR_PHRASES = {
    **_COLOUR_WORDS,
    "white": (*_COLOUR_WORDS["white"], "white as snow"),
    "black": (*_COLOUR_WORDS["black"], "black as coal"),
}
"""What may follow the noun, as in "a star, white as snow"."""
_COLOURED = ("colored", "coloured", "color", "colour")
_SIZE_WORDS = {
    "small": ("small", "small", "small", "little", "tiny"),
    "large": ("large", "large", "large", "big", "big", "huge", "giant"),
}
_MEDIUM = ("medium-sized", "medium", "mid-sized", "medium sized")
_TEXTURE_WORDS = {
    "striped": ("striped", "striped", "striped", "stripy", "stripey"),
    "spotted": ("spotted", "spotted", "spotted", "dotted", "polka-dot", "spotty"),
}
_TEXTURE_TAILS = {"striped": ("with stripes",), "spotted": ("with spots", "with dots", "with polka dots")}
_FILLERS = ("nice", "beautiful", "pretty", "cute", "lovely", "simple", "cool", "funny", "fancy", "cartoon")


class _Verb(NamedTuple):
    """The forms of what a thing does: "moving up", "moves up", "move up"."""

    progressive: str
    singular: str
    plural: str


_VERB_FORMS = {
    "move": "moving", "slide": "sliding", "go": "going", "drift": "drifting", "travel": "travelling", "fly": "flying",
    "glide": "gliding", "head": "heading", "rise": "rising", "float": "floating", "climb": "climbing",
    "fall": "falling", "sink": "sinking", "drop": "dropping", "bounce": "bouncing", "jump": "jumping",
    "hop": "hopping", "orbit": "orbiting", "circle": "circling", "loop": "looping", "spin": "spinning",
    "rotate": "rotating", "turn": "turning", "twirl": "twirling", "grow": "growing", "get": "getting",
    "expand": "expanding", "become": "becoming", "increase": "increasing", "shrink": "shrinking",
    "contract": "contracting", "decrease": "decreasing", "zigzag": "zigzagging", "zig-zag": "zig-zagging",
    "stand": "standing", "stay": "staying", "rest": "resting", "sit": "sitting", "remain": "remaining",
    "hold": "holding",
}  # fmt: skip
_THIRD_PERSON = {"go": "goes", "fly": "flies"}


def _verb(phrase: str) -> _Verb:
    stem, _, rest = phrase.partition(" ")
    forms = (_VERB_FORMS[stem], _THIRD_PERSON.get(stem, f"{stem}s"), stem)
    return _Verb(*(f"{form} {rest}".strip() for form in forms))


def _sideways(side: str, other: str) -> list[str]:
    phrases = [f"{verb} {side}" for verb in ("move", "move", "slide", "go", "drift", "travel", "head")]
    phrases += [f"{verb} to the {side}" for verb in ("move", "move", "slide", "go", "drift", "fly", "glide", "travel")]
    return [
        *phrases,
        f"move {side}wards",
        f"move {side}ward",
        f"move from {other} to {side}",
        f"move towards the {side}",
    ]


def _diagonal(direction: str) -> list[str]:
    vertical, side = direction.split()
    end, half, fall = ("top", "upper", "rise") if vertical == "up" else ("bottom", "lower", "fall")
    return [
        f"move {vertical} and to the {side}", f"move {vertical} and to the {side}", f"move {vertical} {side}",
        f"move {vertical} and {side}", f"go {vertical} and to the {side}", f"drift {vertical} and {side}",
        f"move diagonally {vertical} {side}", f"move diagonally {vertical} and to the {side}",
        f"slide diagonally {vertical} and {side}", f"move towards the {end} {side} corner",
        f"move toward the {end} {side}", f"head for the {end} {side} corner", f"fly to the {half} {side}",
        f"float {vertical} and to the {side}", f"{fall} to the {side}", f"move {side} and {vertical}",
    ]  # fmt: skip


_MOTION_PHRASES = {
    "right": _sideways("right", "left"),
    "left": _sideways("left", "right"),
    "up": [
        "move up", "move up", "move up", "rise", "rise up", "float up", "float upwards", "move upwards", "move upward",
        "go up", "fly up", "climb", "drift up", "slide up", "move from bottom to top", "move towards the top",
    ],
    "down": [
        "move down", "move down", "move down", "fall", "fall down", "sink", "drop", "drop down", "move downwards",
        "move downward", "go down", "drift down", "slide down", "move from top to bottom", "move towards the bottom",
    ],
    **{direction: _diagonal(direction) for direction in DIRECTIONS if " " in direction},
    "bounce": ["bounce", "bounce", "bounce", "bounce up and down", "jump", "jump up and down", "hop up and down"],
    "orbit": [
        "orbit", "orbit", "circle around", "move in a circle", "move in circles", "go around in a circle",
        "orbit around the center", "orbit around the centre", "circle the center", "circle around the centre",
        "travel in a circle", "loop around", "orbit the middle",
    ],
    "spin": [
        "spin", "spin", "spin", "rotate", "rotate", "turn", "turn around", "spin around", "rotate in place",
        "spin in place", "spin on the spot", "twirl", "turn in place",
    ],
    "grow": [
        "grow", "grow", "grow", "get bigger", "get larger", "expand", "grow larger", "grow bigger", "become larger",
        "become bigger", "increase in size",
    ],
    "shrink": [
        "shrink", "shrink", "shrink", "get smaller", "contract", "become smaller", "shrink down", "decrease in size",
        "grow smaller",
    ],
    "zigzag": [
        "zigzag", "zigzag", "zigzag", "zig-zag", "zigzag across", "move in a zigzag", "move in a zigzag",
        "go in a zigzag", "travel in a zigzag", "move in zigzags", "move in a zigzag pattern",
    ],
    "still": ["stand still", "stand still", "stay still", "rest", "sit still", "stay in place", "remain still",
              "hold still", "stay put"],
}  # fmt: skip
_MOTION_WORDS = {motion: tuple(_verb(phrase) for phrase in phrases) for motion, phrases in _MOTION_PHRASES.items()}
_MOTION_WORDS["still"] += (_Verb("not moving", "does not move", "do not move"),)
_MOTION_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "right": ("right-moving",),
    "left": ("left-moving",),
    "up": ("rising", "climbing"),
    "down": ("falling", "sinking", "dropping"),
    "bounce": ("bouncing", "bouncing", "jumping", "hopping"),
    "orbit": ("orbiting", "orbiting", "circling"),
    "spin": ("spinning", "spinning", "rotating", "turning"),
    "grow": ("growing", "growing", "expanding"),
    "shrink": ("shrinking",),
    "zigzag": ("zigzagging",),
    "still": ("motionless", "still", "static", "stationary", "unmoving"),
}
_BOTH_STILL = (
    "both still",
    "both standing still",
    "both motionless",
    "neither moves",
    "both not moving",
    "both at rest",
)

_FLAT_WORDS = {
    "gray": ("gray", "grey"),
    "dark red": ("dark red", "dark red", "dark red", "maroon", "deep red"),
    "dark green": ("dark green", "dark green", "dark green", "forest green", "deep green"),
    "dark blue": ("dark blue", "dark blue", "dark blue", "navy", "navy blue", "deep blue"),
    "dark purple": ("dark purple", "dark purple", "dark purple", "deep purple", "dark violet"),
    "light blue": ("light blue", "light blue", "light blue", "sky blue", "pale blue"),
    "light green": ("light green", "light green", "light green", "pale green", "mint green"),
    "cyan": ("cyan", "cyan", "turquoise"),
    "purple": ("purple", "purple", "violet"),
}
"""What a flat background is called; by its own name where it is not listed."""


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _background_phrases(background: str) -> tuple[list[str], list[str]]:
    """Give the noun phrases that end in what names a background, and those that stand alone ("dark blue")."""
    if background in FLAT:
        words = _FLAT_WORDS.get(background, (background,))
        named = [f"{word} background" for word in words for _ in range(4)]
        named += [f"{word} backdrop" for word in words] + [
            f"{kind} {words[0]} background" for kind in ("plain", "solid")
        ]
        named += [f"{words[0]} {coloured} background" for coloured in _COLOURED[:2]]
        return [_article(name) for name in named], [word for word in words for _ in range(2)]
    if background == "blue gradient":
        named = ["blue gradient background", "blue gradient background", "background with a blue gradient"]
        alone = ["a blue gradient", "a gradient from dark to light blue", "a dark to light blue gradient"]
    elif background == "sunset gradient":
        named = ["sunset gradient background", "sunset gradient background", "sunset background"]
        alone = ["a sunset gradient", "a sunset sky", "a sunset", "a purple to orange gradient"]
    else:
        palette, _, pattern = background.rpartition(" ")
        adjectives, nouns = {
            "stripes": (("striped", "striped", "striped", "stripy"), ("stripes", "stripes", "vertical stripes")),
            "checkerboard": (
                ("checkerboard", "checkerboard", "checkered", "chequered", "checked"),
                ("checkerboard", "chessboard", "chequerboard"),
            ),
            "dots": (("dotted", "dotted", "spotted", "polka-dot", "polka dot"), ("dots", "polka dots", "spots")),
        }[pattern]
        named = [f"{palette} {adjective} background".strip() for adjective in adjectives]
        alone = [f"{palette} {noun}".strip() for noun in nouns]
        if pattern == "checkerboard":
            alone = [_article(noun) for noun in alone]
            named.append(f"background with {alone[0]} pattern")
        else:
            named += [f"background {link} {noun}" for noun in alone for link in ("of", "with")]
    return [_article(name) for name in named], alone


class _Background(NamedTuple):
    whole: tuple[str, ...]
    """ "a dark blue background" """
    places: tuple[str, ...]
    """ "on a dark blue background" """
    tags: tuple[str, ...]
    """ "dark blue background", "the background is dark blue" """


def _background(background: str) -> _Background:
    named, alone = _background_phrases(background)
    places = [f"{link} {phrase}" for phrase in named for link in ("on", "on", "on", "against", "with", "over")]
    places += [f"{link} {phrase}" for phrase in alone for link in ("on", "against")]
    places += [f"on {phrase.partition(' ')[2]}" for phrase in named[:4]]
    tags = [phrase.partition(" ")[2] for phrase in named]
    if background in FLAT:
        tags += [f"{verb} {word}" for word in alone for verb in ("the background is", "background:")]
    return _Background(tuple(named), tuple(places), tuple(tags))


_BACKGROUND_WORDS = {background: _background(background) for background in BACKGROUNDS}

_RELATION_WORDS = {
    **{
        f"{side} of": (
            f"to the {side} of", f"to the {side} of", f"to the {side} of", f"{side} of", f"{side} of",
            f"on the {side} of", f"on the {side} side of", f"on the {side}-hand side of",
        )
        for side in ("left", "right")
    },
    "above": ("above", "above", "above", "over", "on top of", "higher than"),
    "below": ("below", "below", "below", "under", "beneath", "underneath", "lower than"),
    "behind": ("behind", "behind", "behind", "partly behind", "half hidden behind"),
    "in front of": ("in front of", "in front of", "in front of", "partly in front of", "partly covering"),
    "beside": ("next to", "next to", "beside", "side by side with", "alongside"),
}  # fmt: skip
_SIDES = {
    "left of": (("on the left", "on the right"), ("at the left", "at the right"), ("left", "right")),
    "right of": (("on the right", "on the left"), ("at the right", "at the left"), ("right", "left")),
    "above": (("at the top", "at the bottom"), ("on top", "underneath"), ("above", "below")),
    "below": (("at the bottom", "at the top"), ("below", "above"), ("at the bottom", "on top")),
    "behind": (("behind", "in front"), ("at the back", "at the front")),
    "in front of": (("in front", "behind"), ("at the front", "at the back")),
}
"""Where the first and the second object are, each said by itself."""


def _pan(side: str) -> tuple[str, ...]:
    return (
        f"the camera pans {side}", f"the camera pans to the {side}", f"camera panning {side}",
        f"camera panning to the {side}", f"panning {side}", f"while the camera pans {side}",
        f"with the camera panning to the {side}", f"the camera moves to the {side}", f"pan {side}",
        f"camera pan to the {side}",
    )  # fmt: skip


_CAMERA_WORDS = {
    "fixed": ("static camera", "fixed camera", "steady camera", "locked camera"),
    "pan left": _pan("left"),
    "pan right": _pan("right"),
    "zoom in": (
        "the camera zooms in", "camera zooming in", "zooming in", "zoom in", "while the camera zooms in",
        "with the camera zooming in", "the camera moves closer", "camera moving closer", "slowly zooming in",
        "the camera comes closer",
    ),
    "zoom out": (
        "the camera zooms out", "camera zooming out", "zooming out", "zoom out", "while the camera zooms out",
        "with the camera zooming out", "the camera moves away", "camera moving away", "slowly zooming out",
        "the camera pulls back",
    ),
}  # fmt: skip

_PREFIXES = (
    "a video of", "an animation of", "a clip of", "a movie of", "a short video of", "a short clip of", "animated",
    "show me", "show", "please draw", "draw", "make a video of", "create an animation of", "generate a video of",
    "I want to see", "please show me", "video of", "animation of", "render", "footage of", "here is",
)  # fmt: skip
_TITLES = ("video:", "animation:", "scene:", "please make this:", "draw this:", "a short clip:", "simple animation:")
"""What may stand before a text that does not begin with the object."""
_SUFFIXES = (
    "cinematic", "high quality", "smooth animation", "simple", "minimal", "4k", "hd", "in the scene", "on the screen",
    "flat colors", "flat colours", "please", "best quality", "minimalist", "looping animation", "2d animation",
    "flat design", "very detailed", "clean", "slowly",
)  # fmt: skip
_KEPT_OUT = frozenset(("orb", "cerulean", "plum", "ruby", "wheel", "whirls", "swells", "ascends"))
"""Words that a made-up word shall not be, as others ask for them."""


@dataclass(frozen=True)
class Caption:
    """A text and the attributes that it leaves out.

    `missing` is out of colour, shape, motion, size, texture, background, camera, relation. Of two objects one suffices
    for a gap. What has a default (no texture, a fixed camera, an unsaid size) is no gap when nothing is said of it.
    """

    text: str
    missing: frozenset[str]


def plain_caption(scene: Scene) -> str:
    """Say every attribute in one fixed order, always with the same words."""
    first, second = scene.things[0], scene.things[-1]
    background = f"on {_BACKGROUND_WORDS[scene.background].whole[0]}"
    if len(scene.things) == 1:
        text = f"{_article(_plain_noun(first))} {_plain_motion(first)} {background}"
    elif scene.relation == "beside":
        text = f"two {_plain_noun(first)}s {_plain_motion(first)} {background}"
    else:
        pair = f"{_article(_plain_noun(first))} {_RELATION_WORDS[scene.relation][0]} {_article(_plain_noun(second))}"
        if first.motion == second.motion:
            motion = f"both {_plain_motion(first)}"
        else:
            motion = ", ".join(f"the {t.colour} {t.shape} {_plain_motion(t)}" for t in scene.things)
        text = f"{pair}, {motion}, {background}"
    return text if scene.camera == "fixed" else f"{text}, {_plain_camera(scene.camera)}"


def _plain_noun(thing: Thing) -> str:
    size = "" if thing.size == "unsaid" else thing.size
    texture = "" if thing.texture == "plain" else thing.texture
    return " ".join(word for word in (size, texture, thing.colour, thing.shape) if word)


def _plain_motion(thing: Thing) -> str:
    return _MOTION_WORDS[thing.motion][0].progressive


def _plain_camera(camera: str) -> str:
    verb, _, direction = camera.partition(" ")
    return f"camera {'panning' if verb == 'pan' else 'zooming'} {direction}"


def caption(scene: Scene, rng: random.Random) -> Caption:
    """Say a scene in one of very many ways, in at most `MAX_WORDS` words; one in four leaves an attribute out."""
    chance = rng.random
    if chance() < 0.05:
        return Caption(plain_caption(scene), frozenset())
    while True:
        gap = _any_gap(scene, rng) if chance() < 0.25 else ""
        said = _say_pair(scene, rng, gap) if len(scene.things) == 2 else _say_single(scene, rng, gap)
        text = _with_camera(said.text, scene.camera, rng)
        if chance() < 0.2:
            text = (
                f"{_pick(rng, _PREFIXES if said.begins_with_noun and text.startswith(said.text) else _TITLES)} {text}"
            )
        if chance() < 0.15:
            text = f"{text}, {_pick(rng, _SUFFIXES)}"
        text = _with_noise(text, rng)
        if text.count(" ") < MAX_WORDS:
            return Caption(text, said.missing)


class _Said(NamedTuple):
    text: str
    missing: frozenset[str]
    begins_with_noun: bool


class _Noun(NamedTuple):
    """The words chosen for one object; empty where nothing is said."""

    front: str
    """Size, texture and a filler."""
    colour: str
    shape: str
    """Empty for "something"."""
    tail: str
    is_size_missing: bool

    @property
    def handle(self) -> str:
        """Give what the object is called once it is known: "the circle"."""
        return f"the {self.shape}"


def _pick(rng: random.Random, items: Sequence[_Item]) -> _Item:
    return items[int(rng.random() * len(items))]


def _any_gap(scene: Scene, rng: random.Random) -> str:
    if len(scene.things) == 1:
        return _pick(rng, ("colour", "shape", "motion", "background"))
    if scene.relation == "beside":
        return _pick(rng, ("motion", "background", "motion", "background", "colour"))
    differ = scene.things[0].shape != scene.things[1].shape
    return _pick(rng, ("motion", "background", "relation", "motion", "background", "colour" if differ else "relation"))


def _any_noun(thing: Thing, rng: random.Random, gap: str = "") -> _Noun:
    front = []
    tail = ""
    is_size_missing = False
    chance = rng.random
    if thing.size == "unsaid":
        if chance() < 0.06:
            front.append(_pick(rng, _MEDIUM))
    elif chance() < 0.1:
        is_size_missing = True
    else:
        front.append(_pick(rng, _SIZE_WORDS[thing.size]))
    if thing.texture != "plain":
        if chance() < 0.2:
            tail = f" {_pick(rng, _TEXTURE_TAILS[thing.texture])}"
        else:
            front.append(_pick(rng, _TEXTURE_WORDS[thing.texture]))
    if chance() < 0.04:
        front.insert(0, _pick(rng, _FILLERS))
    colour = "" if gap == "colour" else _pick(rng, _COLOUR_WORDS[thing.colour])
    if colour and chance() < 0.02:
        colour = f"{colour} {_pick(rng, _COLOURED[:2])}"
    shape = _pick(rng, _ANY_SHAPE if gap == "shape" else _SHAPE_WORDS[thing.shape])
    return _Noun(" ".join(front), colour, shape, tail, is_size_missing)


_ARTICLES = ("a", "a", "a", "a", "a", "a", "a", "the", "one", "")


def _phrase(noun: _Noun, article: str, motion: str = "") -> str:
    words = " ".join(filter(None, (motion, noun.front, noun.colour, noun.shape))) + noun.tail
    if not noun.shape:
        return f"something {words.strip()}"
    if article == "a":
        return _article(words)
    return f"{article} {words}" if article else words


def _say_single(scene: Scene, rng: random.Random, gap: str) -> _Said:
    (thing,) = scene.things
    noun = _any_noun(thing, rng, gap)
    article = _pick(rng, _ARTICLES)
    missing = frozenset(name for name in (gap, "size" if noun.is_size_missing else "") if name)
    subject = _phrase(noun, article)
    draw = rng.random()
    if noun.colour and noun.shape and draw < 0.06:
        colour = _pick(rng, _COLOUR_PHRASES[thing.colour])
        link = _pick(rng, (", {},", ", {},", " that is {}", " of {} color", " of {} colour"))
        if "as" in colour.split():
            link = ", {},"
        subject = _phrase(noun._replace(colour=""), article) + link.format(colour)
    is_finite = False
    begins_with_noun = True
    verb = _pick(rng, _MOTION_WORDS[thing.motion])
    adjectives = _MOTION_ADJECTIVES.get(thing.motion)
    draw = rng.random()
    if gap == "motion":
        text = subject.rstrip(",")
        if draw < 0.1:
            text = f"there is {text}"
            begins_with_noun = False
    elif adjectives and draw < 0.17:
        text = _phrase(noun, article, _pick(rng, adjectives))
    elif draw < 0.45:
        text = f"{subject} {verb.progressive}"
    elif draw < 0.65:
        text = f"{subject} {verb.singular}"
        is_finite = True
    elif draw < 0.73:
        text = f"{subject} is {verb.progressive}"
        is_finite = True
    elif draw < 0.79:
        text = f"{subject} {_pick(rng, ('that', 'which'))} {verb.singular}"
    elif draw < 0.85:
        text = f"{verb.progressive}: {subject.rstrip(',')}"
        begins_with_noun = False
    elif draw < 0.91:
        text = f"{subject.rstrip(',')}, {verb.progressive}"
    elif draw < 0.95:
        text = f"there is {subject} {verb.progressive}"
        begins_with_noun = False
    elif gap == "background":
        text = f"{subject.rstrip(',')}, {verb.progressive}"
    else:
        place = _pick(rng, _BACKGROUND_WORDS[scene.background].places)
        return _Said(f"{subject.rstrip(',')} {place}, {verb.progressive}", missing, True)
    if gap != "background":
        text, stays_first = _with_background(text, is_finite, scene.background, rng)
        begins_with_noun = begins_with_noun and stays_first
    return _Said(text, missing, begins_with_noun)


def _with_background(text: str, is_finite: bool, background: str, rng: random.Random) -> tuple[str, bool]:
    """Add the background to a text; also say whether the text still begins with what it began with."""
    words = _BACKGROUND_WORDS[background]
    draw = rng.random()
    if draw < 0.62:
        return f"{text} {_pick(rng, words.places)}", True
    if draw < 0.7:
        return f"{text}, {_pick(rng, words.places)}", True
    if draw < 0.84:
        return f"{_pick(rng, words.places)}, {text}", False
    if draw < 0.93:
        return f"{text}, {_pick(rng, words.tags)}", True
    whole = _pick(rng, words.whole)
    if " with " in whole or " of " in whole:
        return f"{whole}, {text}", False
    return f"{whole} {'where' if is_finite else 'with'} {text}", True


def _say_pair(scene: Scene, rng: random.Random, gap: str) -> _Said:
    first, second = scene.things
    if scene.relation == "beside" and first == second:
        text, missing, begins_with_noun = _two_alike(first, rng, gap)
    else:
        text, missing, begins_with_noun = _two_different(scene, rng, gap)
    if gap != "background":
        text, stays_first = _with_background(text, False, scene.background, rng)
        begins_with_noun = begins_with_noun and stays_first
    return _Said(text, missing, begins_with_noun)


def _both(motion: str, rng: random.Random, gap: str) -> str:
    """Say a motion that two objects share, or nothing, as is common when both rest and nothing else is left out."""
    if motion == "still":
        return "" if not gap and rng.random() < 0.6 else _pick(rng, _BOTH_STILL)
    verb = _pick(rng, _MOTION_WORDS[motion])
    draw = rng.random()
    if draw < 0.5:
        return f"both {verb.progressive}"
    if draw < 0.75:
        return f"both {verb.plural}"
    if draw < 0.9:
        return f"{_pick(rng, ('both of them', 'the two'))} {verb.progressive}"
    return f"they both {verb.plural}"


def _two_alike(thing: Thing, rng: random.Random, gap: str) -> _Said:
    noun = _any_noun(thing, rng, gap)
    missing = {gap} if gap else set()
    if noun.is_size_missing:
        missing.add("size")
    draw = rng.random()
    if draw < 0.25:
        another = noun._replace(front="", tail="") if rng.random() < 0.5 else noun
        text = f"{_phrase(noun, 'a')} {_pick(rng, _RELATION_WORDS['beside'])} {_phrase(another, 'another')}"
        motion = "" if gap == "motion" else _both(thing.motion, rng, gap)
        if not motion:
            missing.add("motion")
        return _Said(f"{text}, {motion}" if motion else text, frozenset(missing), True)
    plural = noun._replace(shape=noun.shape + ("es" if noun.shape.endswith("x") else "s"))
    number = _pick(rng, ("two", "two", "two", "two", "a pair of", "2"))
    adjectives = _MOTION_ADJECTIVES.get(thing.motion, ())
    side = f" {_pick(rng, ('side by side', 'next to each other', 'beside each other'))}" if draw < 0.5 else ""
    if gap == "motion" or (not gap and thing.motion == "still" and draw > 0.75):
        missing.add("motion")
        return _Said(_phrase(plural, number) + side, frozenset(missing), True)
    draw = rng.random()
    if adjectives and draw < 0.25:
        return _Said(_phrase(plural, number, _pick(rng, adjectives)) + side, frozenset(missing), True)
    verb = _pick(rng, _MOTION_WORDS[thing.motion])
    text = _phrase(plural, number) + side
    if draw < 0.65:
        return _Said(f"{text} {verb.progressive}", frozenset(missing), True)
    if draw < 0.85:
        return _Said(f"{text} {verb.plural}", frozenset(missing), True)
    if draw < 0.95:
        return _Said(f"{text}, both {verb.progressive}", frozenset(missing), True)
    return _Said(f"{verb.progressive}: {text}", frozenset(missing), False)


def _two_different(scene: Scene, rng: random.Random, gap: str) -> _Said:
    first, second = scene.things
    chance = rng.random
    unsaid = int(chance() * 2) if gap == "colour" else -1
    nouns = [_any_noun(thing, rng, gap if place == unsaid else "") for place, thing in enumerate(scene.things)]
    missing = {gap} if gap else set()
    if any(noun.is_size_missing for noun in nouns):
        missing.add("size")
    if first.shape != second.shape:
        handles = [noun.handle for noun in nouns]
    else:
        handles = [f"the {noun.colour} {_pick(rng, ('one', noun.shape))}" for noun in nouns]

    # What they do: before the nouns, before everything, or behind everything.
    adjectives = ["", ""]
    lead = trail = ""
    options = [_MOTION_ADJECTIVES.get(thing.motion, ()) for thing in scene.things]
    draw = chance()
    if gap == "motion":
        pass
    elif first.motion == second.motion:
        if all(options) and draw < 0.2:
            adjectives = [_pick(rng, options[0])] * 2
        elif first.motion != "still" and draw < 0.32:
            verb = _pick(rng, _MOTION_WORDS[first.motion])
            things = _pick(rng, ("two things ", "two shapes ", "two objects ", ""))
            lead = f"{things}{verb.progressive}: "
        else:
            trail = _both(first.motion, rng, gap)
            if not trail:
                missing.add("motion")
    elif options[0] and options[1] and draw < 0.5:
        adjectives[0] = _pick(rng, options[0])
        if second.motion != "still" or draw < 0.2:
            adjectives[1] = _pick(rng, options[1])
    else:
        verbs = [_pick(rng, _MOTION_WORDS[thing.motion]) for thing in scene.things]
        if second.motion == "still" and options[1] and draw < 0.75:
            if draw < 0.62:
                adjectives[1] = _pick(rng, options[1])
            trail = f"{'only ' if draw > 0.7 else ''}{handles[0]} {_pick(rng, verbs[0][:2])}"
        elif draw < 0.9:
            trail = f"{handles[0]} {verbs[0].progressive}, {handles[1]} {verbs[1].progressive}"
        else:
            trail = f"{handles[0]} {verbs[0].singular} while {handles[1]} {verbs[1].singular}"

    article = _pick(rng, _ARTICLES)
    one, other = (_phrase(noun, article, word) for noun, word in zip(nouns, adjectives, strict=True))
    text, begins_with_noun = _related(one, other, handles, scene.relation, rng, gap == "relation")
    if lead:
        text, begins_with_noun = lead + text, lead.startswith("two")
    if trail:
        text = f"{text}, {trail}"
    return _Said(text, frozenset(missing), begins_with_noun)


def _related(
    one: str, other: str, handles: list[str], relation: str, rng: random.Random, is_relation_missing: bool
) -> tuple[str, bool]:
    """Say where two objects are, from either's view; also say whether the text begins with an object."""
    draw = rng.random()
    if is_relation_missing:
        return (f"{one} and {other}" if draw < 0.5 else f"{other} and {one}"), True
    if relation == "beside" or draw < 0.42:
        return f"{one} {'is ' if draw < 0.04 else ''}{_pick(rng, _RELATION_WORDS[relation])} {other}", True
    opposite = OPPOSITE[relation]
    if draw < 0.64:
        return f"{other} {'is ' if draw < 0.44 else ''}{_pick(rng, _RELATION_WORDS[opposite])} {one}", True
    sides = _pick(rng, _SIDES[relation])
    parts = [(one, sides[0], handles[0]), (other, sides[1], handles[1])]
    if rng.random() < 0.5:
        parts.reverse()
    (a, a_side, a_handle), (b, b_side, _) = parts
    if draw < 0.78:
        return f"{a} {a_side} and {b} {b_side}", True
    if draw < 0.88:
        return f"{a_side} {a}, {b_side} {b}", False
    if draw < 0.92:
        return f"{a_side}: {a}, {b_side}: {b}", False
    near = " next to each other" if relation in ("left of", "right of") and draw < 0.98 else ""
    return f"{a} and {b}{near}, {a_handle} {a_side}", True


def _with_camera(text: str, camera: str, rng: random.Random) -> str:
    draw = rng.random()
    if camera == "fixed" and draw > 0.03:
        return text
    said = _pick(rng, _CAMERA_WORDS[camera])
    if camera != "fixed" and draw < 0.2 and not said.startswith("with") and not said.startswith("while"):
        return f"{said}: {text}"
    return f"{text} {said}" if said.startswith("w") else f"{text}, {said}"


def _with_noise(text: str, rng: random.Random) -> str:
    """Add what people type beside the point: a made-up word, a typo, capitals, a full stop."""
    draw = rng.random()
    if draw < 0.06:
        words = text.split(" ")
        made_up = "".join(rng.choices(string.ascii_lowercase, k=3 + int(rng.random() * 6)))
        if made_up not in _KEPT_OUT:
            words.insert(int(rng.random() * (len(words) + 1)), made_up)
        text = " ".join(words)
    elif draw < 0.09:
        words = text.split(" ")
        places = [place for place, word in enumerate(words) if len(word) > 5 and word.isalpha()]
        if places:
            place = _pick(rng, places)
            word = words[place]
            cut = 1 + int(rng.random() * (len(word) - 3))
            words[place] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
            text = " ".join(words)
    elif draw < 0.14:
        text = (text.capitalize(), text.upper(), text.title(), text.capitalize())[int(rng.random() * 4)]
    return f"{text}." if rng.random() < 0.06 else text
