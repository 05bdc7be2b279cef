"""Whom a request wants to be told of its video's end: the fields `webhook_url` and `webhook_events`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitascope_common import webhooks
from vitascope_common.errors import InvalidRequestError

FIELDS = ("webhook_url", "webhook_events")
ALLOWED = ", ".join(f'"{one}"' for one in webhooks.EVENT_TYPES)


@dataclass(frozen=True)
class Hook:
    """A URL, and what it is told; the guard has not looked at it yet."""

    url: str
    events: tuple[str, ...] = ()  # none: all

    @classmethod
    def stored(cls, url: str | None, events: str) -> "Hook | None":
        """Rebuild what a job's row keeps."""
        return None if url is None else cls(url, tuple(events.split()))

    def fields(self) -> dict[str, Any]:
        """Return the fields that say it."""
        return {"webhook_url": self.url, "webhook_events": list(self.events) or None}


def read_hook(given: Mapping[str, Any]) -> Hook | None:
    """Read the fields of a request. Raises InvalidRequestError."""
    url = given.get("webhook_url")
    if url is None:
        if "webhook_events" in given:
            raise InvalidRequestError("webhook_events needs webhook_url.", param="webhook_events")
        return None
    if not isinstance(url, str):
        raise InvalidRequestError("webhook_url must be a URL such as https://example.com/hook.", param="webhook_url")
    return Hook(url, read_event_types(given["webhook_events"], "webhook_events") if "webhook_events" in given else ())


def read_event_types(value: Any, param: str) -> tuple[str, ...]:
    """Return the event types that a client names: a list, its JSON text or, in a form, words between commas.

    Raises: InvalidRequestError.
    """
    if isinstance(value, str) and len(value) <= 1000:
        try:
            value = json.loads(value) if value.startswith("[") else [one.strip() for one in value.split(",")]
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, Sequence) or not value or any(one not in webhooks.EVENT_TYPES for one in value):
        raise InvalidRequestError(f"{param} must be a list of one or more of {ALLOWED}.", param=param)
    return tuple(dict.fromkeys(value))
