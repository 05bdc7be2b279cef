"""Find a policy's phrases in a reading, also where their words are broken into pieces or stretched.

Each token starts edges: the words it may be, alone or joined with the tokens after it. A phrase stands where edges lead
through its words one after the other.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from vitascope_prompt.readings import Gap, Reading, as_leet

Span = tuple[int, int]
"""Tokens [start, end)."""

MAX_PIECES = 14
"""Tokens that may be joined to one word."""
MIN_LETTERS_ACROSS_SPACES = 8
"""Joining real words must give a word this long: shorter ones arise by accident ("an al fresco" dinner)."""

MIN_STEM_CHARS = 3

_RUN = re.compile(r"(.)\1+")
_WORD = re.compile(r"[a-z]+")
_NUMBER = re.compile(r"#([0-9]{1,4})-([0-9]{1,4})")
_NUMBER_WORDS = {
    word: number
    for number, name in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
         "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
        start=1,
    )
    for word in (name, as_leet(name))
}  # fmt: skip


class _Words:
    """Words by how they are written: exact, as stems, and both without repeated letters."""

    def __init__(self) -> None:
        self._exact: dict[str, list[int]] = defaultdict(list)
        self._stems: dict[str, list[int]] = defaultdict(list)
        self._squeezed: dict[str, list[int]] = defaultdict(list)
        self._squeezed_stems: dict[str, list[int]] = defaultdict(list)

    def add(self, text: str, number: int, is_stem: bool) -> None:
        """Add one word."""
        (self._stems if is_stem else self._exact)[text].append(number)
        (self._squeezed_stems if is_stem else self._squeezed)[_squeeze(text)].append(number)

    def find(self, text: str, first_end: int, last_end: int) -> set[int]:
        """Return the words that a text may be; a stem ends between `first_end` and `last_end`."""
        found = set(self._exact.get(text, ()))
        for end in range(first_end, min(len(text), last_end) + 1):
            found.update(self._stems.get(text[:end], ()))
        if _is_stretched(text):
            short = _squeeze(text)
            found.update(self._squeezed.get(short, ()))
            if first_end == MIN_STEM_CHARS:
                for end in range(first_end, min(len(short), last_end) + 1):
                    found.update(self._squeezed_stems.get(short[:end], ()))
        return found


class Lexicon:
    """The words and phrases of a policy, numbered. A word is exact, a stem ("knif*") or a number ("#1-17")."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._plain = _Words()
        self._leet = _Words()
        self._ranges: list[tuple[int, int, int]] = []
        self._phrases: dict[tuple[int, ...], int] = {}
        self._by_first: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
        self.words_by_length: dict[int, list[str]] = defaultdict(list)
        self.max_word_chars = 0

    def add(self, phrase: str) -> int:
        """Add a phrase and return its number, the same for the same phrase. Raises ValueError for a malformed word."""
        words = tuple(self._add_word(word) for word in phrase.split())
        if words not in self._phrases:
            self._phrases[words] = len(self._phrases)
            self._by_first[words[0]].append((self._phrases[words], words[1:]))
        return self._phrases[words]

    def starting_with(self, word: int) -> Sequence[tuple[int, tuple[int, ...]]]:
        """Return the phrases that begin with a word: number and the words that follow."""
        return self._by_first.get(word, ())

    def lookup(self, text: str, is_leet: bool, min_stem_chars: int = 0) -> frozenset[int]:
        """Return the words that a piece of a reading may be.

        `min_stem_chars` is for text joined from pieces: a stem must reach into the last of them, or the pieces before
        it would have been the word already.
        """
        words = self._leet if is_leet else self._plain
        found = words.find(text, max(MIN_STEM_CHARS, min_stem_chars), self.max_word_chars)
        number = int(text) if text.isdigit() and len(text) <= 4 else _NUMBER_WORDS.get(text)
        if number is not None:
            found.update(word for low, high, word in self._ranges if low <= number <= high)
        return frozenset(found)

    def _add_word(self, word: str) -> int:
        if word in self._ids:
            return self._ids[word]
        number = len(self._ids)
        bounds, stem = _NUMBER.fullmatch(word), word.removesuffix("*")
        if bounds:
            self._ranges.append((int(bounds[1]), int(bounds[2]), number))
        elif not _WORD.fullmatch(stem):
            raise ValueError(f"{word!r} is not a word: letters, or letters and a final *, or #LOW-HIGH")
        elif stem != word and len(stem) < MIN_STEM_CHARS:
            raise ValueError(f"{word!r} is too short for a stem")
        else:
            self.max_word_chars = max(self.max_word_chars, len(stem))
            self._plain.add(stem, number, is_stem=stem != word)
            self._leet.add(as_leet(stem), number, is_stem=stem != word)
            if stem == word:
                self.words_by_length[len(word)].append(word)
        self._ids[word] = number
        return number


def find_phrases(reading: Reading, lexicon: Lexicon) -> Mapping[int, Sequence[Span]]:
    """Return where each phrase stands in a reading."""
    edges = _edges(reading, lexicon)
    found: dict[int, list[Span]] = defaultdict(list)
    for start, leaving in enumerate(edges):
        for end, words in leaving:
            for word in words:
                for phrase, rest in lexicon.starting_with(word):
                    for last in _follow(edges, end, rest):
                        found[phrase].append((start, last))
    return found


def _follow(edges: Sequence[Sequence[tuple[int, frozenset[int]]]], start: int, words: Sequence[int]) -> set[int]:
    ends = {start}
    for word in words:
        ends = {end for at in ends if at < len(edges) for end, found in edges[at] if word in found}
    return ends


def _edges(reading: Reading, lexicon: Lexicon) -> list[list[tuple[int, frozenset[int]]]]:
    known: dict[tuple[str, int], frozenset[int]] = {}
    edges: list[list[tuple[int, frozenset[int]]]] = []
    for start in range(len(reading.tokens)):
        leaving = []
        for end in _joins(reading, start, lexicon.max_word_chars):
            text = "".join(reading.tokens[start:end])
            piece = (text, 0 if end == start + 1 else len(text) - len(reading.tokens[end - 1]) + 1)
            if piece not in known:
                known[piece] = lexicon.lookup(text, reading.is_leet, piece[1])
            if known[piece]:
                leaving.append((end, known[piece]))
        edges.append(leaving)
    return edges


def _joins(reading: Reading, start: int, max_chars: int) -> list[int]:
    """Return the ends of the stretches from `start` that may be one word."""
    ends = [start + 1]
    num_chars = len(reading.tokens[start])
    is_tight, is_spaced, is_pieces = True, True, num_chars <= 2
    num_single = int(num_chars == 1)
    for end in range(start + 2, min(start + MAX_PIECES, len(reading.tokens)) + 1):
        token, gap = reading.tokens[end - 1], reading.gaps[end - 2]
        num_chars += len(token)
        if num_chars > max_chars + 8:
            break
        is_tight = is_tight and gap is Gap.TIGHT
        is_spaced = is_spaced and gap is not Gap.BREAK
        is_pieces = is_pieces and len(token) <= 2 and (gap is not Gap.BREAK or len(token) == 1)
        num_single += len(token) == 1
        is_broken_up = is_pieces and (num_single > 0 or end - start > 2)
        if is_tight or is_broken_up or (is_spaced and end - start <= 4 and num_chars >= MIN_LETTERS_ACROSS_SPACES):
            ends.append(end)
        if not (is_tight or is_spaced or is_pieces):
            break
    return ends


def _is_stretched(text: str) -> bool:
    runs = [len(run[0]) for run in _RUN.finditer(text)]
    return any(length > 2 for length in runs) or len(runs) > 1


def _squeeze(text: str) -> str:
    return _RUN.sub(r"\1", text)
