"""A job's stream as a WebSocket: one text message `{"id", "type", "data"}` for each event.

The same events and ids as server-sent events; `?last_event_id=` resumes. Origin is not checked: nothing here comes from
a cookie, so a foreign page can follow only with a token that somebody gave it. What the client sends is read and
ignored; pings are the server's, every 15 s.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from enum import IntEnum
from functools import lru_cache

from starlette.websockets import WebSocket, WebSocketDisconnect

from vitascope_common.errors import VitascopeError, http_status
from vitascope_gateway.sse import NUM_KEPT
from vitascope_gateway.stream import SEND_TIMEOUT_S, End, JobStream
from vitascope_gateway.told import Told

PING_S = 15.0
MAX_INCOMING_BYTES = 1024
CLOSE_TIMEOUT_S = 1.0


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
    """Serve one connection. An error closes it with its code as the reason: a browser sees no status of a refusal."""
    await socket.accept()
    try:
        stream = await open_stream()
    except VitascopeError as error:
        await socket.close(_CODES.get(http_status(error), CloseCode.INTERNAL), error.code)
        return
    pump = asyncio.create_task(_pump(socket, stream))
    gone = asyncio.create_task(_until_gone(socket))
    try:
        await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (pump, gone):
            task.cancel()
        result, _ = await asyncio.gather(pump, gone, return_exceptions=True)
    if isinstance(result, CloseCode):
        with contextlib.suppress(TimeoutError, WebSocketDisconnect):  # it may take nothing any more, or be gone
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await socket.close(result)
    elif isinstance(result, Exception):
        raise result


async def _pump(socket: WebSocket, stream: JobStream | None) -> CloseCode:
    if stream is None:
        return CloseCode.FINISHED
    try:
        async with aclosing(stream.batches()) as batches:
            async for batch in batches:
                for item in batch:
                    if isinstance(item, Told):
                        async with asyncio.timeout(SEND_TIMEOUT_S):
                            await socket.send_text(message(item))
    except TimeoutError:
        return CloseCode.TOO_SLOW
    except WebSocketDisconnect:
        pass
    return _ENDS[stream.end]


async def _until_gone(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


@lru_cache(NUM_KEPT)
def message(item: Told) -> str:
    """Return one event as JSON; what is of no history has the id null."""
    event_id = f'"{item.id}"' if item.id else "null"
    return f'{{"id":{event_id},"type":"{item.type.value}","data":{item.json}}}'
