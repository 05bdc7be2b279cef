"""The safety policy: what its file may say, and how a prompt is judged by it.

A policy is data: word lists and categories of rules. Its phrases are words, never regular expressions, so judging takes
time linear in the prompt whatever the file or the prompt says. The syntax is described at the top of policy.yaml.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from vitascope_prompt.matching import Lexicon, Span, find_phrases
from vitascope_prompt.readings import list_items, read

Phrase = Annotated[str, StringConstraints(min_length=1, max_length=80, strip_whitespace=True)]
Score = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Verdict:
    """What the policy says about a prompt; category "" and score 0 mean that nothing matched."""

    is_allowed: bool
    category: str
    label: str
    score: float
    policy_version: str
    is_negative_prompt: bool = False
    """The match lies in the negative prompt."""


class PolicyError(ValueError):
    """The policy's text cannot be used; says what is wrong with it."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _WordList(_Part):
    any: tuple[Phrase, ...] = Field(min_length=1)
    unless: tuple[Phrase, ...] = ()


class _Rule(_Part):
    score: Score
    any: tuple[Phrase, ...] = ()
    unless: tuple[Phrase, ...] = ()
    near: tuple[str, str] | None = None
    within: int = Field(default=3, ge=0, le=20)

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if bool(self.any) == (self.near is not None):
            raise ValueError("a rule has either `any` or `near`")
        return self


class _Category(_Part):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z_]{1,39}$")]
    label: str = Field(min_length=3, max_length=100)
    in_negative_prompt: bool = False
    rules: tuple[_Rule, ...] = Field(min_length=1)


class _Document(_Part):
    version: str = Field(min_length=1, max_length=100)
    threshold: float = Field(gt=0, le=1)
    lists: Mapping[str, _WordList]
    categories: tuple[_Category, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_what_exists(self) -> Self:
        for category in self.categories:
            for rule in category.rules:
                for name in rule.near or ():
                    if name not in self.lists:
                        raise ValueError(f"category {category.name}: there is no list {name!r}")
        if len({category.name for category in self.categories}) != len(self.categories):
            raise ValueError("two categories have the same name")
        return self


@dataclass(frozen=True)
class _Group:
    """Phrases that count, and phrases inside which they do not."""

    phrases: frozenset[int]
    excuses: frozenset[int]


@dataclass(frozen=True)
class _CompiledRule:
    score: float
    groups: tuple[_Group, ...]
    """One: any occurrence matches. Two: one of each within `within` words of each other."""
    within: int


class Policy:
    """A policy that has been read and found sound. Immutable; share it between threads."""

    def __init__(self, document: Any) -> None:
        """Compile a parsed policy file. Raises: PolicyError."""
        try:
            parsed = _Document.model_validate(document)
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, each['loc'])) or 'policy'}: {each['msg']}" for each in error.errors())
            raise PolicyError("; ".join(problems)) from error
        self.version = parsed.version
        self._threshold = parsed.threshold
        self._lexicon = Lexicon()
        lists = {name: self._group(each.any, each.unless) for name, each in parsed.lists.items()}
        self._categories = tuple(
            (category, tuple(self._rule(rule, lists) for rule in category.rules)) for category in parsed.categories
        )

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Read a policy file's text. Raises: PolicyError."""
        try:
            return cls(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise PolicyError(f"not valid YAML: {error}") from error

    def judge(self, prompt: str, negative_prompt: str = "") -> Verdict:
        """Judge a normalised prompt and its negative prompt; the strongest match decides, the earlier category a tie.

        A negative prompt names what should not appear, so only categories marked `in_negative_prompt` look at it, and
        each item of its list by itself: "nude, child" asks for neither.
        """
        best = self._strongest([prompt], self._categories, is_negative=False)
        if negative_prompt:
            worst = tuple(each for each in self._categories if each[0].in_negative_prompt)
            found = self._strongest(list_items(negative_prompt), worst, is_negative=True)
            best = max(best, found, key=lambda verdict: verdict.score)
        return best

    def _strongest(
        self, texts: Sequence[str], categories: Iterable[tuple[_Category, tuple[_CompiledRule, ...]]], is_negative: bool
    ) -> Verdict:
        readings = [reading for text in texts for reading in read(text, self._lexicon.words_by_length)]
        found = [(reading.positions, find_phrases(reading, self._lexicon)) for reading in readings]
        best = Verdict(True, "", "", 0.0, self.version)
        for category, rules in categories:
            score = max((rule.score for rule in rules if any(_matches(rule, *each) for each in found)), default=0.0)
            if score > best.score:
                is_allowed = score < self._threshold
                best = Verdict(is_allowed, category.name, category.label, score, self.version, is_negative)
        return best

    def _group(self, phrases: Iterable[str], excuses: Iterable[str]) -> _Group:
        try:
            return _Group(
                frozenset(self._lexicon.add(phrase) for phrase in phrases),
                frozenset(self._lexicon.add(phrase) for phrase in excuses),
            )
        except ValueError as error:
            raise PolicyError(str(error)) from error

    def _rule(self, rule: _Rule, lists: Mapping[str, _Group]) -> _CompiledRule:
        groups = tuple(lists[name] for name in rule.near) if rule.near else (self._group(rule.any, rule.unless),)
        return _CompiledRule(rule.score, groups, rule.within)


def _matches(rule: _CompiledRule, positions: Sequence[float], spans: Mapping[int, Sequence[Span]]) -> bool:
    occurrences = [_occurrences(group, spans) for group in rule.groups]
    if len(occurrences) == 1:
        return bool(occurrences[0])
    left, right = ([(positions[start], positions[end]) for start, end in found] for found in occurrences)
    return _follows(left, right, rule.within) or _follows(right, left, rule.within)


def _occurrences(group: _Group, spans: Mapping[int, Sequence[Span]]) -> list[Span]:
    """Return where the group's phrases stand, without those that lie inside an excuse."""
    excused = {token for excuse in group.excuses for span in spans.get(excuse, ()) for token in range(*span)}
    return [
        span
        for phrase in group.phrases
        for span in spans.get(phrase, ())
        if not excused or not all(token in excused for token in range(*span))
    ]


def _follows(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]], within: int) -> bool:
    """Tell whether one of `second` begins after the end of one of `first`, at most `within` words later."""
    starts = sorted(start for start, _ in second)
    for _, end in first:
        after = bisect_left(starts, end)
        if after < len(starts) and starts[after] - end <= within:
            return True
    return False
