"""A job's stream as a WebSocket: one text message `{"id", "type", "data"}` for each event.

The same events and ids as server-sent events; `?last_event_id=` resumes. Origin is not checked: nothing here comes from
a cookie, so a foreign page can follow only with a token that somebody gave it. What the client sends is read and
ignored; where the event stream has a comment, there is a ping here.
"""

from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from functools import lru_cache

from starlette.websockets import WebSocket
from websockets.frames import Frame, Opcode

from vitascope_common.errors import VitascopeError, http_status
from vitascope_gateway.connection import HAND_OVER, MessageOutlet
from vitascope_gateway.sse import NUM_KEPT
from vitascope_gateway.stream import End, JobStream
from vitascope_gateway.told import Pause, Told


class CloseCode(IntEnum):
    """Why a connection ends (RFC 6455, 7.4; from 4000 on ours). After 1012, 1013 and 4408: resume with the last id."""

    FINISHED = 1000  # or deleted
    INTERNAL = 1011
    RESTARTING = 1012
    TRY_AGAIN = 1013
    UNAUTHENTICATED = 4401
    DENIED = 4403
    NOT_FOUND = 4404
    TOO_SLOW = 4408


_CODES: Mapping[int, CloseCode] = {
    401: CloseCode.UNAUTHENTICATED,
    403: CloseCode.DENIED,
    404: CloseCode.NOT_FOUND,
    503: CloseCode.TRY_AGAIN,
}

_ENDS: Mapping[End, CloseCode] = {
    End.FINISHED: CloseCode.FINISHED,
    End.RESTARTING: CloseCode.RESTARTING,
    End.TOO_SLOW: CloseCode.TOO_SLOW,
}


async def mirror(socket: WebSocket, open_stream: Callable[[], Awaitable[JobStream | None]]) -> None:
    """Open a stream on a connection, which outlives this. Only our own server can do it.

    An error closes it with its code as the reason: a browser sees no status of a refusal.
    """
    await socket.accept()
    outlet: MessageOutlet = socket.scope["extensions"][HAND_OVER]()
    try:
        stream = await open_stream()
    except VitascopeError as error:
        outlet.start(outlet.close(_CODES.get(http_status(error), CloseCode.INTERNAL), error.code))
    except BaseException:
        outlet.start(outlet.close(CloseCode.INTERNAL))
        raise
    else:
        outlet.start(outlet.close(CloseCode.FINISHED) if stream is None else tell(stream, outlet))


async def tell(stream: JobStream, outlet: MessageOutlet) -> None:
    """Write a stream until its end, and close with why it ended. Raises TimeoutError: the client takes nothing."""

    def frame(item: Told | Pause) -> bytes:
        return message(item) if isinstance(item, Told) else outlet.ping()

    await outlet.tell(stream, frame)
    await outlet.close(_ENDS[stream.end])


@lru_cache(NUM_KEPT)
def message(item: Told) -> bytes:
    """Return one event as JSON in a frame; what is of no history has the id null."""
    event_id = f'"{item.id}"' if item.id else "null"
    text = f'{{"id":{event_id},"type":"{item.type.value}","data":{item.json}}}'
    return Frame(Opcode.TEXT, text.encode()).serialize(mask=False)
