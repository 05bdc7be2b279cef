"""Tells a scene in loose sentences: other orders, asides, clauses about what lies behind, words with new endings.

`captions.py` says most clips tersely; whoever types a prompt may tell a story. What is told here keeps a reader from
taking a long text for two objects, or an unknown word for an instruction.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import TypeVar

from vitascope_trainer.world.scenes import DIRECTIONS, FLAT, Thing
from vitascope_trainer.world.words import (
    ASIDES,
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    ENDINGS,
    KEPT_OUT,
    KEPT_OUT_ENDINGS,
    MANNERS,
    MOTION_ADJECTIVES,
    MOTION_WORDS,
    OPENINGS,
    SHAPE_WORDS,
    SURFACES,
    TEXTURE_WORDS,
    with_article,
)

_Item = TypeVar("_Item")
_BENT = 0.15
"""Share of the words for a colour, a shape or a motion that get a new ending."""
_TOLD_FRAMES = (
    "{text}, {behind}", "{text}; {behind}", "{text}. {behind}", "{text}, and {behind}", "{text} where {behind}",
    "{text} though {behind}", "{text}, but {behind}", "{text} as {behind}", "{text}, all while {behind}",
    "{behind}, {text}", "{behind} and {text}", "{behind}; {text}", "{behind}. {text}", "{behind}, and {text}",
    "while {behind}, {text}", "as {behind}, {text}", "{behind}, there {text}", "{behind} whereas {text}",
)  # fmt: skip


def told_object(thing: Thing, size: str, rng: random.Random) -> str:
    """Name an object with its article, its attributes in any order; `size` is a word for it, or empty."""
    texture = "" if thing.texture == "plain" else pick(rng, TEXTURE_WORDS[thing.texture])
    colour = bent(pick(rng, COLOUR_WORDS[thing.colour]), rng, _BENT)
    shape = bent(pick(rng, SHAPE_WORDS[thing.shape]), rng, _BENT)
    front = " ".join(filter(None, (size, texture)))
    shaped = "round" if thing.shape == "circle" and rng.random() < 0.5 else f"{shape}-shaped"
    kind = pick(rng, ("thing", "object", "figure", "item", "form"))
    colourful = pick(rng, ("{} in color", "{} in colour", "{} from edge to edge", "{} as can be", "entirely {}"))
    form = rng.random()
    if form < 0.4:
        words = f"{front} {colour} {shape}"
    elif form < 0.52:
        words = f"{front} {shape}, {colourful.format(colour)},"
    elif form < 0.66:
        words = f"{front} {colour}{pick(rng, (' and ', ', ', ' '))}{shaped} {kind}"
    elif form < 0.76:
        words = f"{front} {shaped} {kind}, {colourful.format(colour)},"
    elif form < 0.88:
        words = (
            f"{front} {colour} {kind} {pick(rng, ('in the shape of', 'formed like', 'that is'))} {with_article(shape)}"
        )
    else:
        words = f"{shape} that is {' and '.join(filter(None, (front, colour)))}"
    return with_article(words.strip())


def told_motion(motion: str, rng: random.Random) -> str:
    """Say what an object does, as what follows its name in a sentence."""
    verb = pick(rng, MOTION_WORDS[motion])
    manner = pick(rng, MANNERS)
    form = rng.random()
    if form < 0.1 and motion in DIRECTIONS:
        course = " and ".join(f"{way}{pick(rng, ('', 'ward', 'wards'))}" for way in motion.split())
        return f"{pick(rng, ('is on its way', 'holds a course', 'takes a path', 'keeps on going'))} {course}"
    if form < 0.16 and motion in MOTION_ADJECTIVES:
        adjective = bent(pick(rng, MOTION_ADJECTIVES[motion]), rng, _BENT)
        return f"{pick(rng, ('is', 'seems', 'looks', 'moves in a way that is'))} {adjective}"
    if form < 0.2 and motion not in DIRECTIONS and motion != "still":
        stem = bent(motion, rng, 0.6)
        return f"{pick(rng, ('makes a', 'performs a', 'does its', 'shows its', 'has a'))} {stem}"
    if form < 0.26 and motion != "still":
        return f"{pick(rng, ('begins to', 'is about to', 'will', 'has to', 'likes to', 'does'))} {verb.plural}"
    if form < 0.5:
        return f"{pick(rng, ('is', 'is', 'keeps', 'can be seen', 'is seen', 'is busy'))} {verb.progressive}"
    if form < 0.58:
        return f"is {verb.progressive} {manner}"
    if form < 0.66:
        return f"is {manner} {verb.progressive}"
    if form < 0.74:
        return f"{verb.singular} {manner}"
    if form < 0.82:
        return f"{pick(rng, ('that', 'which'))} {verb.singular}"
    return verb.singular


def told_background(text: str, background: str, rng: random.Random) -> str:
    """Add what lies behind to a text, as a clause of its own before or after it."""
    clause = pick(rng, _TOLD_FRAMES).format(text=text.rstrip(","), behind=_behind(background, rng))
    return f"{pick(rng, OPENINGS)} {clause}" if rng.random() < 0.3 else clause


def _behind(background: str, rng: random.Random) -> str:
    words = BACKGROUND_WORDS[background]
    surface = pick(rng, SURFACES)
    form = rng.random()
    if background in FLAT:
        word = pick(rng, words.alone)
        if form < 0.5:
            return f"the {surface} {pick(rng, ('is', 'is', 'is painted', 'is kept', 'has turned', 'looks'))} {word}"
        if form < 0.7:
            return f"the {surface} is {pick(rng, ('entirely', 'just', 'completely', 'nothing but', 'plain'))} {word}"
        return pick(rng, ("there is {} all around", "it is set in {}", "with {} behind it", "{} is behind it")).format(
            word
        )
    phrase = pick(rng, words.alone)
    if form < 0.75:
        link = pick(rng, ("is", "has", "is full of", "consists of", "is filled with", "carries", "bears"))
        return f"the {surface} {link} {phrase}"
    return pick(rng, ("with {} behind it", "behind it there is {}", "there is nothing behind it but {}")).format(phrase)


def with_aside(text: str, rng: random.Random) -> str:
    """Put an aside somewhere between the words of a text."""
    words = text.split(" ")
    words.insert(int(rng.random() * len(words)), pick(rng, ASIDES))
    return " ".join(words)


def bent(word: str, rng: random.Random, chance: float = 1.0) -> str:
    """Give the last word of a phrase another ending, real or made up; one that others ask for is left alone."""
    if rng.random() >= chance:
        return word
    ending = pick(rng, ENDINGS) if rng.random() < 0.7 else made_up(rng, 2, 4)
    stem = word[:-1] if word[-1] in "ey" and ending[0] in "aeiouy" else word
    new = f"{stem}{ending}"
    return word if new.endswith(KEPT_OUT_ENDINGS) or not KEPT_OUT.isdisjoint(new.split()) else new


def made_up(rng: random.Random, least: int, most: int) -> str:
    """Give random letters."""
    return "".join(rng.choices(string.ascii_lowercase, k=least + int(rng.random() * (most - least + 1))))


def pick(rng: random.Random, items: Sequence[_Item]) -> _Item:
    """Take one of them."""
    return items[int(rng.random() * len(items))]
