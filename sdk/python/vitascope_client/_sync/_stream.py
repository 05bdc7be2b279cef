# Made from ../_async/_stream.py by `make sdk`. Edit that one.

"""The events of a video, resumed by themselves."""

import math
import time
from collections.abc import Generator
from contextlib import closing, suppress
from types import TracebackType
from typing import Self

from vitascope_client import _runtime
from vitascope_client._answers import origin_of
from vitascope_client._errors import TRANSIENT, APIConnectionError, APIError, APITimeoutError
from vitascope_client._objects import Event
from vitascope_client._retries import pause_after_s
from vitascope_client._sse import EventParser
from vitascope_client._sync._http import Http

SILENCE_S = 45.0
"""Three missed heartbeats: the connection is dead."""
LISTEN_S = 30.0
"""Two heartbeats: whoever waits until a certain time listens to a silent server for no longer, and not at the end."""


class EventStream:
    """Gives the events of a video until it is finished. Leave early with a `with` block, or by closing it."""

    def __init__(self, http: Http, path: str, last_event_id: str | None, give_up_s: float) -> None:
        self._heard = follow(http, path, last_event_id, give_up_s)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        while True:
            event = next(self._heard)
            if event is not None:
                return event

    def close(self) -> None:
        """Close its connection."""
        self._heard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def follow(
    http: Http,
    path: str,
    last_event_id: str | None,
    give_up_s: float,
    silence_s: float = SILENCE_S,
    deadline: float = math.inf,
) -> Generator[Event | None]:
    """Yield events until the last one, None for a heartbeat or a break; resume after the last event that was yielded.

    Raises:
        APIConnectionError, RateLimitError, ServerError: `give_up_s` after the first failure nothing was heard, no event
            and no heartbeat. Silence is counted from when it began. Or the server is away until after the deadline.
    """
    last_id = last_event_id or ""
    failures, heard_at = 0, time.monotonic()
    away_since: float | None = None
    while True:
        try:
            with closing(_connection(http, path, last_id, silence_s, deadline)) as heard:
                for event in heard:
                    away_since = None
                    if event is not None:
                        failures, last_id = 0, event.id or last_id
                    yield event
                    heard_at = time.monotonic()  # after the yield: what the caller does in between is no silence
            return
        except TRANSIENT as error:
            wait_s, now = pause_after_s(error, min(failures, 3)), time.monotonic()
            if away_since is None:
                away_since = heard_at if isinstance(error, APITimeoutError) else now
            if wait_s is None or now - away_since > give_up_s or now + wait_s >= deadline:
                raise
        _runtime.sleep(wait_s)
        failures += 1
        yield None  # who listens until a certain time looks at the clock


def listen(http: Http, path: str, deadline: float) -> Generator[Event]:
    """Yield events as long as they arrive, up to `LISTEN_S` before the deadline. Ends, and does not raise."""
    with suppress(APIError), closing(follow(http, path, None, LISTEN_S / 3, LISTEN_S, deadline)) as heard:
        for event in heard:
            if event is not None:
                yield event
            if deadline - time.monotonic() < LISTEN_S:
                return


def _connection(http: Http, path: str, last_id: str, silence_s: float, deadline: float) -> Generator[Event | None]:
    """Yield what one connection tells; it ends well only when the video is finished."""
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
    with http.stream(path, headers=headers, read_timeout_s=silence_s) as answer:
        if answer.status_code == 204:
            return
        if time.monotonic() + silence_s > deadline:
            raise APITimeoutError("The server answered too late to be listened to.")
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            raise APIError(f"{origin_of(answer.url)} did not answer with events; is base_url right?")
        parser = EventParser()
        for chunk in answer.iter_bytes():
            for event in parser.feed(chunk):
                yield event
                if event is not None and event.is_last:
                    return
    raise APIConnectionError("The server ended the stream before the video was finished.")
