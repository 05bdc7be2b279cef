"""Two forms of a prompt: the one that is kept and encoded, and the folded one that is only judged."""

import unicodedata

from vitascope_prompt.confusables import LOOKALIKES

_BLANK_LETTERS = frozenset("\u115f\u1160\u17b4\u17b5\u3164\uffa0\u034f")
"""Assigned as letters or marks, drawn as nothing."""
_BRAILLE_BLANK = "\u2800"
_REMOVED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co"})


def normalise(text: str) -> str:
    """Return the form that is kept: NFC, nothing invisible, single spaces. Idempotent.

    Removed are control, zero-width, bidirectional, private-use and surrogate characters and variation selectors.
    """
    visible = "".join(map(_visible, text))
    return " ".join(unicodedata.normalize("NFC", visible).split())


def fold(text: str) -> str:
    """Return the form that is judged: lower-case, without accents, look-alikes of other scripts as Latin letters."""
    text = unicodedata.normalize("NFKD", text.translate(LOOKALIKES)).casefold()
    text = unicodedata.normalize("NFKD", text.translate(LOOKALIKES))
    return "".join(char for char in text if char.isascii() or unicodedata.category(char) not in ("Mn", "Me"))


def _visible(char: str) -> str:
    if char.isspace() or char == _BRAILLE_BLANK:
        return " "
    if char.isascii() and char.isprintable():
        return char
    is_removed = unicodedata.category(char) in _REMOVED_CATEGORIES or char in _BLANK_LETTERS or _is_selector(char)
    return "" if is_removed else char


def _is_selector(char: str) -> bool:
    return "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef" or "\u180b" <= char <= "\u180f"
