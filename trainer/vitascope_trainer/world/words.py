"""The words of captions: what shapes, colours, motions, places and cameras are called, and how often.

A word that stands several times in a table is drawn that much more often.
"""

from __future__ import annotations

from typing import NamedTuple

from vitascope_trainer.world.scenes import BACKGROUNDS, DIRECTIONS, FLAT

SHAPE_WORDS = {
    "circle": ("circle", "circle", "circle", "ball", "ball", "disc", "disk", "dot"),
    "square": ("square", "square", "square", "box", "block"),
    "triangle": ("triangle", "triangle", "triangle", "pyramid"),
    "star": ("star",),
    "ring": ("ring", "ring", "ring", "donut", "hoop"),
    "heart": ("heart", "heart", "heart", "love heart", "love-heart"),
}
ANY_SHAPE = ("shape", "object", "thing", "figure", "")  # "" becomes "something"
COLOUR_WORDS = {
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
COLOUR_PHRASES = {
    **COLOUR_WORDS,
    "white": (*COLOUR_WORDS["white"], "white as snow"),
    "black": (*COLOUR_WORDS["black"], "black as coal"),
}
"""What may follow the noun, as in "a star, white as snow"."""
COLOURED = ("colored", "coloured", "color", "colour")
SIZE_WORDS = {
    "small": ("small", "small", "small", "little", "tiny"),
    "large": ("large", "large", "large", "big", "big", "huge", "giant"),
}
MEDIUM = ("medium-sized", "medium", "mid-sized", "medium sized")
TEXTURE_WORDS = {
    "striped": ("striped", "striped", "striped", "stripy", "stripey"),
    "spotted": ("spotted", "spotted", "spotted", "dotted", "polka-dot", "spotty"),
}
TEXTURE_TAILS = {"striped": ("with stripes",), "spotted": ("with spots", "with dots", "with polka dots")}
FILLERS = ("nice", "beautiful", "pretty", "cute", "lovely", "simple", "cool", "funny", "fancy", "cartoon")


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
MOTION_WORDS = {motion: tuple(_verb(phrase) for phrase in phrases) for motion, phrases in _MOTION_PHRASES.items()}
MOTION_WORDS["still"] += (_Verb("not moving", "does not move", "do not move"),)
MOTION_ADJECTIVES: dict[str, tuple[str, ...]] = {
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
BOTH_STILL = (
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


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _background_phrases(background: str) -> tuple[list[str], list[str]]:
    """Give the noun phrases that end in what names a background, and those that stand alone ("dark blue")."""
    if background in FLAT:
        words = _FLAT_WORDS.get(background, (background,))
        named = [f"{word} background" for word in words for _ in range(4)]
        named += [f"{word} backdrop" for word in words] + [
            f"{kind} {words[0]} background" for kind in ("plain", "solid")
        ]
        named += [f"{words[0]} {coloured} background" for coloured in COLOURED[:2]]
        return [with_article(name) for name in named], [word for word in words for _ in range(2)]
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
            alone = [with_article(noun) for noun in alone]
            named.append(f"background with {alone[0]} pattern")
        else:
            named += [f"background {link} {noun}" for noun in alone for link in ("of", "with")]
    return [with_article(name) for name in named], alone


class _Background(NamedTuple):
    whole: tuple[str, ...]
    """ "a dark blue background" """
    places: tuple[str, ...]
    """ "on a dark blue background" """
    tags: tuple[str, ...]
    """ "dark blue background", "the background is dark blue" """
    alone: tuple[str, ...]
    """ "dark blue", "blue stripes", "a checkerboard" """


def _background(background: str) -> _Background:
    named, alone = _background_phrases(background)
    places = [f"{link} {phrase}" for phrase in named for link in ("on", "on", "on", "against", "with", "over")]
    places += [f"{link} {phrase}" for phrase in alone for link in ("on", "against")]
    places += [f"on {phrase.partition(' ')[2]}" for phrase in named[:4]]
    tags = [phrase.partition(" ")[2] for phrase in named]
    if background in FLAT:
        tags += [f"{verb} {word}" for word in alone for verb in ("the background is", "background:")]
    return _Background(tuple(named), tuple(places), tuple(tags), tuple(alone))


BACKGROUND_WORDS = {background: _background(background) for background in BACKGROUNDS}

RELATION_WORDS = {
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
SIDES = {
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


CAMERA_WORDS = {
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

PREFIXES = (
    "a video of", "an animation of", "a clip of", "a movie of", "a short video of", "a short clip of", "animated",
    "show me", "show", "please draw", "draw", "make a video of", "create an animation of", "generate a video of",
    "I want to see", "please show me", "video of", "animation of", "render", "footage of", "here is",
)  # fmt: skip
TITLES = ("video:", "animation:", "scene:", "please make this:", "draw this:", "a short clip:", "simple animation:")
"""What may stand before a text that does not begin with the object."""
SUFFIXES = (
    "cinematic", "high quality", "smooth animation", "simple", "minimal", "4k", "hd", "in the scene", "on the screen",
    "flat colors", "flat colours", "please", "best quality", "minimalist", "looping animation", "2d animation",
    "flat design", "very detailed", "clean", "slowly",
)  # fmt: skip
OPENINGS = (
    "one can see that", "look,", "look how", "you can see that", "in this film", "there was a day when", "today",
    "suddenly", "in the beginning", "picture this:", "suppose", "here", "and so", "somebody drew how", "what if",
    "on a quiet day", "I dreamt that", "it is time:", "make it so that", "could you show that", "the story goes:",
    "far away", "nothing happens, only", "see,", "this is what happens:", "let us say", "in the first shot",
)  # fmt: skip
"""How a loose sentence may begin."""
MANNERS = (
    "all the time", "again", "happily", "calmly", "quietly", "without a pause", "for a while", "as usual", "slowly",
    "by itself", "all alone", "once more", "evenly", "quite nicely", "now", "as if in a dream", "for no reason",
)  # fmt: skip
SURFACES = (
    "background", "background", "backdrop", "wall", "wall behind it", "rest", "rest of the picture", "area around it",
    "space behind it", "canvas", "screen", "scene", "whole frame", "floor", "paper", "room", "stage", "back", "sky",
    "surface below it", "world around it", "picture", "view",
)  # fmt: skip
"""What a loose sentence calls the background."""
ASIDES = (
    "really", "very much", "of course,", "I think,", "as it were,", "so to speak,", "kind of", "perhaps", "indeed,",
    "you know,", "for example,", "as always,", "right there", "by the way,", "more or less", "if you can,",
)  # fmt: skip
ENDINGS = ("y", "ly", "ed", "en", "some", "ful", "oid", "esque", "form", "ness", "wise", "ic", "al", "ing", "ie", "let")
"""What turns a known word into one that is not in these tables; what stays is its stem."""
KEPT_OUT_ENDINGS = ("ish", "like", "er", "age", "wth", "ular", "zaggy")
KEPT_OUT = frozenset(("orb", "cerulean", "plum", "ruby", "wheel", "whirls", "swells", "ascends", "orbital"))
"""Words, and endings, that no made-up word shall have, as others ask for them."""
