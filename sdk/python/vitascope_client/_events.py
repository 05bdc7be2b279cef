"""Server-sent events: read, and resumed by themselves."""

import json
import time
from collections.abc import Iterable, Iterator

from vitascope_client._errors import APIConnectionError, RateLimitError, ServerError
from vitascope_client._http import Http, pause
from vitascope_client._objects import Event

SILENCE_S = 45.0
"""Three missed heartbeats: the connection is dead."""


def follow(http: Http, path: str, last_event_id: str | None, give_up_s: float) -> Iterator[Event]:
    """Yield events until the last one; a broken connection is resumed after the last event that was yielded.

    Raises:
        APIConnectionError, ServerError: for `give_up_s` nothing was heard, neither an event nor a heartbeat.
    """
    last_id = last_event_id or ""
    failures, heard_at = 0, time.monotonic()
    while True:
        try:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
            with http.stream(path, headers=headers, read_timeout_s=SILENCE_S) as answer:
                if answer.status_code == 204:
                    return
                for event in parse(answer.iter_lines()):
                    if event is not None:
                        failures, last_id = 0, event.id or last_id
                        yield event
                        if event.is_last:
                            return
                    heard_at = time.monotonic()  # after the yield: what the caller does in between is no silence
            raise APIConnectionError("The server ended the stream before the video was finished.")
        except (APIConnectionError, ServerError, RateLimitError):
            if time.monotonic() - heard_at > give_up_s:
                raise
        pause(min(failures, 3))
        failures += 1


def parse(lines: Iterable[str]) -> Iterator[Event | None]:
    """Read a text/event-stream (WHATWG HTML, 9.2.6). A comment is None; an event that is cut off is not yielded."""
    event_id, name = "", "message"
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield Event(event_id, name, json.loads("\n".join(data)))
            event_id, name, data = "", "message", []
            continue
        if line.startswith(":"):
            yield None
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            event_id = value
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)
