"""What a form can only say as text."""

import json
from typing import Any

MAX_STRUCTURE = 20_000
"""Brackets, commas and colons in JSON, those in texts included. Pictures have none, and the rest of a request fits into
a page; what is nothing else would become thirty times as many bytes of objects, and keep everybody waiting."""


def is_overgrown(text: str) -> bool:
    """Whether this JSON has more structure than any request needs."""
    return sum(map(text.count, "{[,:")) > MAX_STRUCTURE


def boolean_of(value: Any) -> Any:
    """Return the boolean whose JSON text a field of a form holds; anything else as it is."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def object_of(value: Any) -> Any:
    """Return the object whose JSON text a field of a form holds; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "{" and not is_overgrown(value):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
