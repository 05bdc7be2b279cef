"""What a form can only say as text."""

import json
from typing import Any


def object_of(value: Any) -> Any:
    """Return the object whose JSON text a field of a form holds; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
