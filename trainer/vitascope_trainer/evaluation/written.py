"""Prompts as people type them: written for given scenes by hand, without any knowledge of the training grammar.

They are for measuring and for nothing else: no caption of training was changed after any of them had been read.
"""

from __future__ import annotations

from vitascope_trainer.world.scenes import Scene, Thing


def _one(colour: str, shape: str, motion: str, size: str = "unsaid") -> Thing:
    return Thing(shape, colour, motion, size)


WRITTEN: tuple[tuple[str, Scene], ...] = (
    (
        "pink square falling straight down, dark purple background",
        Scene((_one("pink", "square", "down"),), "dark purple"),
    ),
    (
        "Could you make a tiny white star that drifts to the right? The backdrop should be dark green.",
        Scene((_one("white", "star", "right", "small"),), "dark green"),
    ),
    (
        "On a red checkerboard, a yellow triangle slides rightwards.",
        Scene((_one("yellow", "triangle", "right"),), "red checkerboard"),
    ),
    (
        "BIG red heart, rotating on the spot, background dark red",
        Scene((_one("red", "heart", "spin", "large"),), "dark red"),
    ),
    ("a white heart that just sits there motionless on plain red", Scene((_one("white", "heart", "still"),), "red")),
    (
        "I'd like a little blue ball, flat, travelling from left to right over a navy blue background",
        Scene((_one("blue", "circle", "right", "small"),), "dark blue"),
    ),
    (
        "Red polka dots behind a small purple star. The star doesn't move.",
        Scene((_one("purple", "star", "still", "small"),), "red dots"),
    ),
    (
        "huge white heart / stays still / green checkered background",
        Scene((_one("white", "heart", "still", "large"),), "green checkerboard"),
    ),
    (
        "Please draw a small black heart heading diagonally toward the bottom left corner, with purple behind it",
        Scene((_one("black", "heart", "down left", "small"),), "purple"),
    ),
    (
        "a large white ring gets smaller and smaller against a pink background",
        Scene((_one("white", "ring", "shrink", "large"),), "pink"),
    ),
    (
        "blue star moving left over a cream and dark checkerboard",
        Scene((_one("blue", "star", "left"),), "checkerboard"),
    ),
    (
        "Just a big black square standing still. Orange background.",
        Scene((_one("black", "square", "still", "large"),), "orange"),
    ),
    (
        "sunset sky gradient, purple at the top fading to orange, with a giant cyan star bouncing up and down",
        Scene((_one("cyan", "star", "bounce", "large"),), "sunset gradient"),
    ),
    (
        "Show me a large green star twirling in place, on dark green.",
        Scene((_one("green", "star", "spin", "large"),), "dark green"),
    ),
    (
        "small red dot floats up and to the left, blue gradient backdrop",
        Scene((_one("red", "circle", "up left", "small"),), "blue gradient"),
    ),
    ("Green hoop goes down-left. bg: orange", Scene((_one("green", "ring", "down left"),), "orange")),
    (
        "there's a yellow background and on it one small cyan square, completely still",
        Scene((_one("cyan", "square", "still", "small"),), "yellow"),
    ),
    (
        "A small white ring is sliding diagonally downwards to the left across a cyan background.",
        Scene((_one("white", "ring", "down left", "small"),), "cyan"),
    ),
    (
        "tiny white disc, not moving, deep purple background",
        Scene((_one("white", "circle", "still", "small"),), "dark purple"),
    ),
    (
        "can i get a little yellow triangle spinning round and round on a green background pls",
        Scene((_one("yellow", "triangle", "spin", "small"),), "green"),
    ),
    ("A cyan star zigzags its way across a dark red screen", Scene((_one("cyan", "star", "zigzag"),), "dark red")),
    (
        "Large yellow square dropping down in front of red stripes",
        Scene((_one("yellow", "square", "down", "large"),), "red stripes"),
    ),
    (
        "Everything behind is purple; a cyan ring glides up toward the top left.",
        Scene((_one("cyan", "ring", "up left"),), "purple"),
    ),
    (
        "I want to see a small cyan circle going down and left, diagonally, on a dark green background!",
        Scene((_one("cyan", "circle", "down left", "small"),), "dark green"),
    ),
    (
        "purple triangle, large, moves to the lower left, blue gradient in the background",
        Scene((_one("purple", "triangle", "down left", "large"),), "blue gradient"),
    ),
    (
        "make a big yellow box bounce up and down on a checkerboard background",
        Scene((_one("yellow", "square", "bounce", "large"),), "checkerboard"),
    ),
    (
        "Against flat grey, an oversized yellow square hops up and down.",
        Scene((_one("yellow", "square", "bounce", "large"),), "gray"),
    ),
    (
        "A SMALL GREEN SQUARE GROWING BIGGER ON A DARK BLUE BACKGROUND",
        Scene((_one("green", "square", "grow", "small"),), "dark blue"),
    ),
    (
        "little orange circle sinking downward, background with red stripes",
        Scene((_one("orange", "circle", "down", "small"),), "red stripes"),
    ),
    (
        "With a purple-to-orange sunset gradient behind it, one enormous red circle moves to the right.",
        Scene((_one("red", "circle", "right", "large"),), "sunset gradient"),
    ),
    (
        "small orange ring... it expands outward, getting bigger. pink background",
        Scene((_one("orange", "ring", "grow", "small"),), "pink"),
    ),
    (
        "Striped background, cream and dark. A purple heart crosses it in a zigzag.",
        Scene((_one("purple", "heart", "zigzag"),), "stripes"),
    ),
    (
        "hey, so a small green dot moving up and right on a yellow background, thanks",
        Scene((_one("green", "circle", "up right", "small"),), "yellow"),
    ),
    (
        "black circle shrinking away on a red checkerboard",
        Scene((_one("black", "circle", "shrink"),), "red checkerboard"),
    ),
    (
        "What about a blue triangle, perfectly still, on top of a green checkerboard pattern?",
        Scene((_one("blue", "triangle", "still"),), "green checkerboard"),
    ),
    (
        "On white: a small pink ring rising diagonally to the upper right",
        Scene((_one("pink", "ring", "up right", "small"),), "white"),
    ),
    (
        "An orange heart bounces, and beneath it a white ring bounces too. The background is cyan.",
        Scene((_one("white", "ring", "bounce"), _one("orange", "heart", "bounce")), "cyan", "below"),
    ),
    (
        "two big shapes both spinning on purple: blue heart in front, orange star behind it",
        Scene((_one("orange", "star", "spin", "large"), _one("blue", "heart", "spin", "large")), "purple", "behind"),
    ),
    (
        "A large red ring moves right with a purple square behind it, also moving right, on a dotted background.",
        Scene((_one("purple", "square", "right"), _one("red", "ring", "right", "large")), "dots", "behind"),
    ),
    (
        "Dark green scene. Small purple square going up, placed above a green heart that stays put.",
        Scene((_one("purple", "square", "up", "small"), _one("green", "heart", "still")), "dark green", "above"),
    ),
    (
        "orange triangle on the left, white star on the right, both rising upward over a blue gradient",
        Scene((_one("white", "star", "up"), _one("orange", "triangle", "up")), "blue gradient", "right of"),
    ),
    (
        "Under a still red triangle there's a still pink circle; the background is green",
        Scene((_one("red", "triangle", "still"), _one("pink", "circle", "still")), "green", "above"),
    ),
    (
        "small pink ring, motionless, in front of a large cyan star that spins. blue stripes for the background",
        Scene(
            (_one("cyan", "star", "spin", "large"), _one("pink", "ring", "still", "small")), "blue stripes", "behind"
        ),
    ),
    (
        "A sunset gradient backdrop, a green star spinning up top, and below it a big blue heart that doesn't move",
        Scene((_one("green", "star", "spin"), _one("blue", "heart", "still", "large")), "sunset gradient", "above"),
    ),
    (
        "White triangle at the top, green ring directly beneath it, both moving up, cyan background",
        Scene((_one("green", "ring", "up"), _one("white", "triangle", "up")), "cyan", "below"),
    ),
    (
        "I need a small green circle in front of a black ring, neither one moving, with red stripes behind them.",
        Scene((_one("black", "ring", "still"), _one("green", "circle", "still", "small")), "red stripes", "behind"),
    ),
    (
        "green stripes; a little pink circle sits still and to its right a purple heart bounces up and down",
        Scene(
            (_one("purple", "heart", "bounce"), _one("pink", "circle", "still", "small")), "green stripes", "right of"
        ),
    ),
    (
        "Big orange heart moving down in front of a stationary red ring, all on green",
        Scene((_one("orange", "heart", "down", "large"), _one("red", "ring", "still")), "green", "in front of"),
    ),
)
"""Each with the scene that it asks for, one object of which is held out."""
