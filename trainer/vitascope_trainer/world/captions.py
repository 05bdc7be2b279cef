"""Says a scene in words: one plain caption, and very many ways to say the same, with gaps and noise.

A caption may leave an attribute out; it then names the gap, so that nothing is asked of a text that never said it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from vitascope_trainer.world.scenes import OPPOSITE, Scene, Thing
from vitascope_trainer.world.telling import bent, made_up, pick, told_background, told_motion, told_object, with_aside
from vitascope_trainer.world.words import (
    ANY_SHAPE,
    BACKGROUND_WORDS,
    BOTH_STILL,
    CAMERA_WORDS,
    COLOUR_PHRASES,
    COLOUR_WORDS,
    COLOURED,
    FILLERS,
    KEPT_OUT,
    MEDIUM,
    MOTION_ADJECTIVES,
    MOTION_WORDS,
    PREFIXES,
    RELATION_WORDS,
    SHAPE_WORDS,
    SIDES,
    SIZE_WORDS,
    SUFFIXES,
    TEXTURE_TAILS,
    TEXTURE_WORDS,
    TITLES,
    with_article,
)

MAX_WORDS = 36
"""No caption is longer."""
_TOLD_SINGLE, _TOLD_PAIR = 0.35, 0.2
"""Shares of the scenes without a gap that are told in loose sentences."""


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
    background = f"on {BACKGROUND_WORDS[scene.background].whole[0]}"
    if len(scene.things) == 1:
        text = f"{with_article(_plain_noun(first))} {_plain_motion(first)} {background}"
    elif scene.relation == "beside":
        text = f"two {_plain_noun(first)}s {_plain_motion(first)} {background}"
    else:
        one, other = (with_article(_plain_noun(thing)) for thing in (first, second))
        pair = f"{one} {RELATION_WORDS[scene.relation][0]} {other}"
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
    return MOTION_WORDS[thing.motion][0].progressive


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
        if not gap and chance() < (_TOLD_SINGLE if len(scene.things) == 1 else _TOLD_PAIR):
            said = _tell(scene, rng)
        else:
            said = _say_pair(scene, rng, gap) if len(scene.things) == 2 else _say_single(scene, rng, gap)
        text = _with_camera(said.text, scene.camera, rng)
        if chance() < 0.2:
            text = f"{pick(rng, PREFIXES if said.begins_with_noun and text.startswith(said.text) else TITLES)} {text}"
        if chance() < 0.15:
            text = f"{text}, {pick(rng, SUFFIXES)}"
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


def _any_gap(scene: Scene, rng: random.Random) -> str:
    if len(scene.things) == 1:
        return pick(rng, ("colour", "shape", "motion", "background"))
    if scene.relation == "beside":
        return pick(rng, ("motion", "background", "motion", "background", "colour"))
    differ = scene.things[0].shape != scene.things[1].shape
    return pick(rng, ("motion", "background", "relation", "motion", "background", "colour" if differ else "relation"))


def _any_noun(thing: Thing, rng: random.Random, gap: str = "") -> _Noun:
    front = []
    tail = ""
    is_size_missing = False
    chance = rng.random
    if thing.size == "unsaid":
        if chance() < 0.06:
            front.append(pick(rng, MEDIUM))
    elif chance() < 0.1:
        is_size_missing = True
    else:
        front.append(pick(rng, SIZE_WORDS[thing.size]))
    if thing.texture != "plain":
        if chance() < 0.2:
            tail = f" {pick(rng, TEXTURE_TAILS[thing.texture])}"
        else:
            front.append(pick(rng, TEXTURE_WORDS[thing.texture]))
    if chance() < 0.04:
        front.insert(0, pick(rng, FILLERS))
    colour = "" if gap == "colour" else pick(rng, COLOUR_WORDS[thing.colour])
    if colour and chance() < 0.02:
        colour = f"{colour} {pick(rng, COLOURED[:2])}"
    shape = pick(rng, ANY_SHAPE if gap == "shape" else SHAPE_WORDS[thing.shape])
    return _Noun(" ".join(front), colour, shape, tail, is_size_missing)


_ARTICLES = ("a", "a", "a", "a", "a", "a", "a", "the", "one", "")


def _phrase(noun: _Noun, article: str, motion: str = "") -> str:
    words = " ".join(filter(None, (motion, noun.front, noun.colour, noun.shape))) + noun.tail
    if not noun.shape:
        return f"something {words.strip()}"
    if article == "a":
        return with_article(words)
    return f"{article} {words}" if article else words


def _say_single(scene: Scene, rng: random.Random, gap: str) -> _Said:
    (thing,) = scene.things
    noun = _any_noun(thing, rng, gap)
    article = pick(rng, _ARTICLES)
    missing = frozenset(name for name in (gap, "size" if noun.is_size_missing else "") if name)
    subject = _phrase(noun, article)
    draw = rng.random()
    if noun.colour and noun.shape and draw < 0.06:
        colour = pick(rng, COLOUR_PHRASES[thing.colour])
        link = pick(rng, (", {},", ", {},", " that is {}", " of {} color", " of {} colour"))
        if "as" in colour.split():
            link = ", {},"
        subject = _phrase(noun._replace(colour=""), article) + link.format(colour)
    is_finite = False
    begins_with_noun = True
    verb = pick(rng, MOTION_WORDS[thing.motion])
    adjectives = MOTION_ADJECTIVES.get(thing.motion)
    draw = rng.random()
    if gap == "motion":
        text = subject.rstrip(",")
        if draw < 0.1:
            text = f"there is {text}"
            begins_with_noun = False
    elif adjectives and draw < 0.17:
        text = _phrase(noun, article, pick(rng, adjectives))
    elif draw < 0.45:
        text = f"{subject} {verb.progressive}"
    elif draw < 0.65:
        text = f"{subject} {verb.singular}"
        is_finite = True
    elif draw < 0.73:
        text = f"{subject} is {verb.progressive}"
        is_finite = True
    elif draw < 0.79:
        text = f"{subject} {pick(rng, ('that', 'which'))} {verb.singular}"
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
        place = pick(rng, BACKGROUND_WORDS[scene.background].places)
        return _Said(f"{subject.rstrip(',')} {place}, {verb.progressive}", missing, True)
    if gap != "background":
        text, stays_first = _with_background(text, is_finite, scene.background, rng)
        begins_with_noun = begins_with_noun and stays_first
    return _Said(text, missing, begins_with_noun)


def _tell(scene: Scene, rng: random.Random) -> _Said:
    """Say a scene in loose sentences."""
    if len(scene.things) == 2:
        text, missing, _ = _two(scene, rng, "")
    else:
        (thing,) = scene.things
        is_size_missing = thing.size != "unsaid" and rng.random() < 0.1
        missing = frozenset(("size",) if is_size_missing else ())
        size = "" if thing.size == "unsaid" or is_size_missing else pick(rng, SIZE_WORDS[thing.size])
        text = f"{told_object(thing, size, rng)} {told_motion(thing.motion, rng)}"
    text = told_background(text, scene.background, rng)
    return _Said(with_aside(text, rng) if rng.random() < 0.2 else text, missing, False)


def _with_background(text: str, is_finite: bool, background: str, rng: random.Random) -> tuple[str, bool]:
    """Add the background to a text; also say whether the text still begins with what it began with."""
    words = BACKGROUND_WORDS[background]
    draw = rng.random()
    if draw < 0.62:
        return f"{text} {pick(rng, words.places)}", True
    if draw < 0.7:
        return f"{text}, {pick(rng, words.places)}", True
    if draw < 0.84:
        return f"{pick(rng, words.places)}, {text}", False
    if draw < 0.93:
        return f"{text}, {pick(rng, words.tags)}", True
    whole = pick(rng, words.whole)
    if " with " in whole or " of " in whole:
        return f"{whole}, {text}", False
    return f"{whole} {'where' if is_finite else 'with'} {text}", True


def _say_pair(scene: Scene, rng: random.Random, gap: str) -> _Said:
    text, missing, begins_with_noun = _two(scene, rng, gap)
    if gap != "background":
        text, stays_first = _with_background(text, False, scene.background, rng)
        begins_with_noun = begins_with_noun and stays_first
    return _Said(text, missing, begins_with_noun)


def _two(scene: Scene, rng: random.Random, gap: str) -> _Said:
    """Say two objects, but for what lies behind them."""
    first, second = scene.things
    if scene.relation == "beside" and first == second:
        return _two_alike(first, rng, gap)
    return _two_different(scene, rng, gap)


def _both(motion: str, rng: random.Random, gap: str) -> str:
    """Say a motion that two objects share, or nothing, as is common when both rest and nothing else is left out."""
    if motion == "still":
        return "" if not gap and rng.random() < 0.6 else pick(rng, BOTH_STILL)
    verb = pick(rng, MOTION_WORDS[motion])
    draw = rng.random()
    if draw < 0.5:
        return f"both {verb.progressive}"
    if draw < 0.75:
        return f"both {verb.plural}"
    if draw < 0.9:
        return f"{pick(rng, ('both of them', 'the two'))} {verb.progressive}"
    return f"they both {verb.plural}"


def _two_alike(thing: Thing, rng: random.Random, gap: str) -> _Said:
    noun = _any_noun(thing, rng, gap)
    missing = {gap} if gap else set()
    if noun.is_size_missing:
        missing.add("size")
    draw = rng.random()
    if draw < 0.25:
        another = noun._replace(front="", tail="") if rng.random() < 0.5 else noun
        text = f"{_phrase(noun, 'a')} {pick(rng, RELATION_WORDS['beside'])} {_phrase(another, 'another')}"
        motion = "" if gap == "motion" else _both(thing.motion, rng, gap)
        if not motion:
            missing.add("motion")
        return _Said(f"{text}, {motion}" if motion else text, frozenset(missing), True)
    plural = noun._replace(shape=noun.shape + ("es" if noun.shape.endswith("x") else "s"))
    number = pick(rng, ("two", "two", "two", "two", "a pair of", "2"))
    adjectives = MOTION_ADJECTIVES.get(thing.motion, ())
    side = f" {pick(rng, ('side by side', 'next to each other', 'beside each other'))}" if draw < 0.5 else ""
    if gap == "motion" or (not gap and thing.motion == "still" and draw > 0.75):
        missing.add("motion")
        return _Said(_phrase(plural, number) + side, frozenset(missing), True)
    draw = rng.random()
    if adjectives and draw < 0.25:
        return _Said(_phrase(plural, number, pick(rng, adjectives)) + side, frozenset(missing), True)
    verb = pick(rng, MOTION_WORDS[thing.motion])
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
        handles = [f"the {noun.colour} {pick(rng, ('one', noun.shape))}" for noun in nouns]

    # What they do: before the nouns, before everything, or behind everything.
    adjectives = ["", ""]
    lead = trail = ""
    options = [MOTION_ADJECTIVES.get(thing.motion, ()) for thing in scene.things]
    draw = chance()
    if gap == "motion":
        pass
    elif first.motion == second.motion:
        if all(options) and draw < 0.2:
            adjectives = [pick(rng, options[0])] * 2
        elif first.motion != "still" and draw < 0.32:
            verb = pick(rng, MOTION_WORDS[first.motion])
            things = pick(rng, ("two things ", "two shapes ", "two objects ", ""))
            lead = f"{things}{verb.progressive}: "
        else:
            trail = _both(first.motion, rng, gap)
            if not trail:
                missing.add("motion")
    elif options[0] and options[1] and draw < 0.5:
        adjectives[0] = pick(rng, options[0])
        if second.motion != "still" or draw < 0.2:
            adjectives[1] = pick(rng, options[1])
    else:
        verbs = [pick(rng, MOTION_WORDS[thing.motion]) for thing in scene.things]
        if second.motion == "still" and options[1] and draw < 0.75:
            if draw < 0.62:
                adjectives[1] = pick(rng, options[1])
            trail = f"{'only ' if draw > 0.7 else ''}{handles[0]} {pick(rng, verbs[0][:2])}"
        elif draw < 0.9:
            trail = f"{handles[0]} {verbs[0].progressive}, {handles[1]} {verbs[1].progressive}"
        else:
            trail = f"{handles[0]} {verbs[0].singular} while {handles[1]} {verbs[1].singular}"

    article = pick(rng, _ARTICLES)
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
        return f"{one} {'is ' if draw < 0.04 else ''}{pick(rng, RELATION_WORDS[relation])} {other}", True
    opposite = OPPOSITE[relation]
    if draw < 0.64:
        return f"{other} {'is ' if draw < 0.44 else ''}{pick(rng, RELATION_WORDS[opposite])} {one}", True
    sides = pick(rng, SIDES[relation])
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
    said = pick(rng, CAMERA_WORDS[camera])
    if camera != "fixed" and draw < 0.2 and not said.startswith("with") and not said.startswith("while"):
        return f"{said}: {text}"
    return f"{text} {said}" if said.startswith("w") else f"{text}, {said}"


def _with_noise(text: str, rng: random.Random) -> str:
    """Add what people type beside the point: a made-up word, a typo, a new ending, capitals, a full stop."""
    draw = rng.random()
    if draw < 0.06:
        words = text.split(" ")
        word = made_up(rng, 3, 8)
        if word not in KEPT_OUT:
            words.insert(int(rng.random() * (len(words) + 1)), word)
        text = " ".join(words)
    elif draw < 0.09:
        words = text.split(" ")
        places = [place for place, word in enumerate(words) if len(word) > 5 and word.isalpha()]
        if places:
            place = pick(rng, places)
            word = words[place]
            cut = 1 + int(rng.random() * (len(word) - 3))
            words[place] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
            text = " ".join(words)
    elif draw < 0.11:
        words = text.split(" ")
        place = int(rng.random() * len(words))
        if len(words[place]) > 3 and words[place].isalpha():
            words[place] = bent(words[place], rng)
            text = " ".join(words)
    elif draw < 0.15:
        text = (text.capitalize(), text.upper(), text.title(), text.capitalize())[int(rng.random() * 4)]
    return f"{text}." if rng.random() < 0.06 else text
