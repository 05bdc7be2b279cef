"""Whether and when a call is repeated: the server decides, and where it says nothing, we do."""

import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from vitascope_client._errors import APIError, APIStatusError

MAX_BACKOFF_S = 8.0
MAX_OBEYED_S = 120.0
"""Whoever is told to come back later than this is not kept waiting: the error says when."""
RETRIED_STATUS = frozenset({408, 429, 500, 502, 503, 504})


def backoff_s(attempt: int, asked_s: float | None = None) -> float:
    """Return how long to wait before attempt + 1: 0.25 s doubling to 8 s, less up to a quarter; at least `asked_s`."""
    own_s = min(0.25 * 2.0 ** min(attempt, 10), MAX_BACKOFF_S) * (1 - random.random() / 4)
    return max(own_s, min(asked_s or 0.0, MAX_OBEYED_S))


def pause_s(status: int, headers: Mapping[str, str], attempt: int) -> float | None:
    """Return how long to wait before this answer's request is sent again; None: it is not.

    `x-should-retry` decides over the status. A wait of more than two minutes is the caller's decision.
    """
    said = headers.get("x-should-retry")
    if said == "false" or (said != "true" and status not in RETRIED_STATUS):
        return None
    asked_s = retry_after_s(headers)
    return None if asked_s is not None and asked_s > MAX_OBEYED_S else backoff_s(attempt, asked_s)


def pause_after_s(error: APIError, attempt: int) -> float | None:
    """Return how long to wait before what failed so is tried again; None: the server does not want it, or not soon."""
    if not isinstance(error, APIStatusError):
        return backoff_s(attempt)
    is_too_long = error.retry_after_s is not None and error.retry_after_s > MAX_OBEYED_S
    return None if is_too_long or error.is_final else backoff_s(attempt, error.retry_after_s)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read `Retry-After-Ms`, else `Retry-After` in seconds or as a date. None: neither is there, or makes sense."""
    milliseconds, after = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    for text, unit_s in ((milliseconds, 0.001), (after, 1.0)):
        try:
            seconds = float(text) * unit_s
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        date = parsedate_to_datetime(after)
    except (ValueError, OverflowError):  # a year of twenty digits
        return None
    if date.tzinfo is None:  # "-0000": UTC, from nowhere in particular
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.fromtimestamp(time.time(), UTC)).total_seconds())


def poll_after_s(headers: Mapping[str, str]) -> float:
    """Return how long the server wants not to be asked again; a second where it says nothing."""
    text = headers.get("openai-poll-after-ms", "")
    return max(int(text) / 1000, 0.1) if text.isascii() and text.isdecimal() and len(text) < 8 else 1.0
