"""The ways in which a folded prompt can be read: as written, and with digits and signs standing for letters.

A reading is a list of tokens and what lies between them; `matching` finds phrases in it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import accumulate, pairwise

from vitascope_prompt.text import fold


class Gap(Enum):
    """What separates two tokens."""

    TIGHT = "tight"  # nothing, or signs without a space: ki.ll
    SPACE = "space"  # spaces only
    BREAK = "break"  # signs and spaces, or an apostrophe


@dataclass(frozen=True)
class Reading:
    """Tokens begin and end with a lower-case letter or are digits; `gaps[i]` lies between token i and i + 1."""

    tokens: tuple[str, ...]
    gaps: tuple[Gap, ...]
    is_leet: bool
    """Digits and signs were read as letters, and every l as i: 1, ! and | stand for both."""

    @cached_property
    def positions(self) -> tuple[float, ...]:
        """Where each token begins, counted in words; five letters that stand alone count as one."""
        return tuple(accumulate((_LETTER_WORDS if len(token) == 1 else 1.0 for token in self.tokens), initial=0.0))


_LETTER_WORDS = 0.2
_TOKEN = re.compile(r"[a-z]+(?:[0-9]+[a-z]+)*|[0-9]+")
_CHUNK = re.compile(r"\S+")
_HAS_LETTER = re.compile(r"[a-z]")
_LEET_INSIDE = re.compile(r"(?<=[a-z0-9@$])[!|+](?=[a-z0-9@$])")
_LEET = str.maketrans("0123456789@$!|+", "oizeasgtbgasiit")
_MASKED = re.compile(r"[a-z]+(?:[*#]+[a-z]+)+")
_LIST_BREAK = re.compile(r"[,;|\n]|\.(?:\s|$)|\band\b|\bor\b", re.IGNORECASE)


def read(text: str, words_by_length: Mapping[int, Sequence[str]]) -> list[Reading]:
    """Return the different readings of a normalised text, the plain one first.

    `words_by_length` are the words that a masked one ("s*x") may stand for.
    """
    folded = fold(text)
    readings = [_tokenise(_unmask(folded, words_by_length), is_leet=False)]
    unleeted = _unleet(folded)
    if unleeted != folded:
        readings.append(_tokenise(as_leet(_unmask(unleeted, words_by_length)), is_leet=True))
    return readings


def as_leet(text: str) -> str:
    """Write a text as a leet reading has it."""
    return text.replace("l", "i")


def list_items(text: str) -> list[str]:
    """Split a list of things ("blood, text; blurry and grey") into its items."""
    return [item for item in _LIST_BREAK.split(text) if item.strip()]


def _unleet(text: str) -> str:
    """Read digits and signs as letters where a letter is near or a sign stands alone; "1080" stays a number."""

    def translate(chunk: re.Match[str]) -> str:
        if len(chunk[0]) > 1 and not _HAS_LETTER.search(chunk[0]):
            return chunk[0]
        inside = _LEET_INSIDE.sub(lambda sign: sign[0].translate(_LEET), chunk[0])
        return "".join(char if char in "!|+" else char.translate(_LEET) for char in inside)

    return _CHUNK.sub(translate, text)


def _unmask(text: str, words_by_length: Mapping[int, Sequence[str]]) -> str:
    def reveal(match: re.Match[str]) -> str:
        masked = match[0]
        num_visible = sum(char.isalpha() for char in masked)
        if num_visible * 2 >= len(masked) and num_visible >= 2:
            for word in words_by_length.get(len(masked), ()):
                if all(seen in ("*", "#", meant) for seen, meant in zip(masked, word, strict=True)):
                    return word
        return masked

    return _MASKED.sub(reveal, text)


def _tokenise(text: str, is_leet: bool) -> Reading:
    matches = list(_TOKEN.finditer(text))
    gaps = tuple(_gap(text[left.end() : right.start()]) for left, right in pairwise(matches))
    return Reading(tuple(match[0] for match in matches), gaps, is_leet)


def _gap(between: str) -> Gap:
    if between.isspace():
        return Gap.SPACE
    if any(char.isspace() or char == "'" for char in between):
        return Gap.BREAK
    return Gap.TIGHT
