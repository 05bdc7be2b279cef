"""HTTP connections that outlive their request: thousands of followers must not each keep a whole web framework alive.

As uvicorn hands a connection over to a WebSocket, ours hands one over to an `Outlet` once the head of an endless answer
is sent; the request then ends, and with it its tasks, its span and all that the framework holds.
"""

import asyncio
import contextvars
import socket
from collections.abc import Coroutine
from typing import Any

import h11
import structlog
from starlette.types import Receive, Scope, Send

from vitascope_common.http_heads import ImpatientHttp
from vitascope_gateway.stream import SEND_TIMEOUT_S

HAND_OVER = "vitascope.hand_over"
HIGH_WATER_BYTES = 16 * 1024
"""What waits for a slow client beyond the kernel's buffers, besides one write."""
SEND_BUFFER_BYTES = 64 * 1024
"""What the kernel keeps for a slow client; Linux counts its own overhead, and doubles it for that."""

_log = structlog.stdlib.get_logger("vitascope.gateway")


class Outlet(asyncio.Protocol):
    """Where bytes go out, until either side has enough. What comes in is ignored."""

    __slots__ = ("_connections", "_is_chunked", "_is_paused", "_task", "_transport", "_writable", "is_lost")

    def __init__(self, transport: asyncio.Transport, connections: set[Any], *, is_chunked: bool) -> None:
        self.is_lost = transport.is_closing()
        self._transport = transport
        self._connections = connections
        self._is_chunked = is_chunked
        self._is_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        if not self.is_lost:
            connections.add(self)
            transport.set_protocol(self)
            transport.set_write_buffer_limits(HIGH_WATER_BYTES)
            _bound(transport)
            transport.resume_reading()  # so that we hear when the client goes

    @property
    def is_ready(self) -> bool:
        """Whether something can be written now."""
        return not (self._is_paused or self.is_lost)

    def start(self, pump: Coroutine[Any, Any, None]) -> None:
        """Run what writes, outside of the request's context; it is cancelled when the client goes."""
        if self.is_lost:
            pump.close()
        else:
            self._task = asyncio.get_running_loop().create_task(self._run(pump), context=contextvars.Context())

    def write(self, data: bytes) -> None:
        """Write; whoever does so when it is not ready drains first."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    async def drain(self) -> None:
        """Wait until something can be written. Raises TimeoutError after 20 s: the client takes nothing."""
        if self._is_paused and not self.is_lost:
            self._writable = asyncio.get_running_loop().create_future()
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._writable

    async def _run(self, pump: Coroutine[Any, Any, None]) -> None:
        try:
            await pump
            if self._is_chunked:
                self._transport.write(b"0\r\n\r\n")
            self._transport.close()
        except TimeoutError:
            self._transport.abort()
        except Exception as error:
            _log.error("stream.crashed", exc_info=error)
            self._transport.abort()

    def pause_writing(self) -> None:
        """Hear that the buffer is full."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Hear that it is not any more."""
        self._is_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Hear that the client is gone."""
        self.is_lost = True
        self._connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def shutdown(self) -> None:
        """Hear that the server stops: nothing to do, since streams have been told already."""


class Http(ImpatientHttp):
    """uvicorn's HTTP/1.1, whose connections can be handed over: `scope["extensions"][HAND_OVER]()` gives the Outlet."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._inner, self.app = self.app, self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {HAND_OVER: self._hand_over}
        await self._inner(scope, receive, send)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over to a WebSocket."""
        _bound(self.transport)
        super().handle_websocket_upgrade(event)

    def _hand_over(self) -> Outlet:
        """Give the connection away. The head of the answer must be sent, with `Connection: close`."""
        self.connections.discard(self)
        self.cycle.disconnected = True  # for uvicorn: nobody misses the rest of the answer, nothing is to be closed
        self.app = self._inner
        return Outlet(self.transport, self.connections, is_chunked=self.scope["http_version"] == "1.1")


def _bound(transport: asyncio.Transport) -> None:
    """Let the kernel keep no more than a stream needs. Only of streams: it would slow down what is large and far."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
