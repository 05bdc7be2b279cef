"""A job's stream as server-sent events (WHATWG HTML, 9.2)."""

from functools import lru_cache

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vitascope_gateway.connection import HAND_OVER, Outlet
from vitascope_gateway.stream import JobStream
from vitascope_gateway.told import Pause, Told

RETRY_MS = 1000
NUM_KEPT = 256
"""How many of the events that were encoded last are kept: all followers of a job want the same ones at about a time."""


class EventStreamResponse(Response):
    """Tells a stream; the connection outlives the request. Only our own server can send it."""

    media_type = "text/event-stream"

    def __init__(self, stream: JobStream) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Connection": "close"})
        del self.headers["content-length"]
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, and leave the rest to the outlet."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        outlet: Outlet = scope["extensions"][HAND_OVER]()
        outlet.write(b"retry: %d\n\n" % RETRY_MS)
        outlet.start(outlet.tell(self._stream, frame))


@lru_cache(NUM_KEPT)
def frame(item: Told | Pause) -> bytes:
    """Return one event, or a comment."""
    if isinstance(item, Pause):
        return b": %s\n\n" % item.value.encode()
    id_line = f"id: {item.id}\n" if item.id else ""
    return f"{id_line}event: {item.type.value}\ndata: {item.json}\n\n".encode()
