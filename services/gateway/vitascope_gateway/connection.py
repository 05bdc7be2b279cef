"""Connections that outlive their request: thousands of followers must not each keep a whole web framework alive.

As uvicorn hands a connection over to a WebSocket, ours hands one over to an `Outlet` once the head of an endless answer
is sent, or a WebSocket is accepted; the request then ends, and with it its tasks, its span and all that the framework
holds.
"""

import asyncio
import contextvars
import logging
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import h11
import structlog
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Protocol, Side

from vitascope_common.http_heads import ImpatientHttp
from vitascope_gateway.stream import SEND_TIMEOUT_S, JobStream
from vitascope_gateway.told import Pause, Told

HAND_OVER = "vitascope.hand_over"
MAX_WRITE_BYTES = 16 * 1024
"""From here on more is not put together: a client that does not read must not have a whole history in our memory."""
HIGH_WATER_BYTES = 16 * 1024
"""What waits for a slow client beyond the kernel's buffers, besides one write."""
SEND_BUFFER_BYTES = 64 * 1024
"""What the kernel keeps for a slow client; Linux counts its own overhead, and doubles it for that."""
MAX_MESSAGE_BYTES = 1024
MAX_AT_ONCE_BYTES = 16 * 1024
"""Nobody has this much to tell us: reading it would keep all others waiting."""
CLOSE_TIMEOUT_S = 2.0
"""How long a WebSocket that we end is kept for its client's answer."""

_PING = Frame(Opcode.PING, b"").serialize(mask=False)
_frames_log = logging.getLogger("uvicorn.error")
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

    async def tell(self, stream: JobStream, frame: Callable[[Told | Pause], bytes]) -> None:
        """Write a stream until its end. Raises TimeoutError: the client takes nothing."""

        def take(one: Told) -> bool:
            if not self.is_ready:
                return False
            self.write(frame(one))
            return True

        async with aclosing(stream.batches(take)) as batches:
            async for batch in batches:
                for data in writes(batch, frame):
                    await self.drain()
                    self.write(data)

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


def writes(batch: Sequence[Told | Pause], frame: Callable[[Told | Pause], bytes]) -> Iterator[bytes]:
    """Yield the bytes of a batch, put together up to a limit."""
    waiting = b""
    for item in batch:
        waiting += frame(item)
        if len(waiting) >= MAX_WRITE_BYTES:
            yield waiting
            waiting = b""
    if waiting:
        yield waiting


class MessageOutlet(Outlet):
    """The outlet of a WebSocket. What comes in is answered as RFC 6455 wants it, and else ignored."""

    __slots__ = ("_asked_s", "_incoming")

    def __init__(self, transport: asyncio.Transport, connections: set[Any]) -> None:
        super().__init__(transport, connections, is_chunked=False)
        self._incoming = Protocol(Side.SERVER, max_size=MAX_MESSAGE_BYTES, logger=_frames_log)
        self._asked_s: float | None = None  # when it was pinged, if nothing has come since

    def ping(self) -> bytes:
        """Return what asks the client whether it is there. Raises TimeoutError: it has not answered for 20 s."""
        now_s = asyncio.get_running_loop().time()
        if self._asked_s is None:
            self._asked_s = now_s
        elif now_s - self._asked_s > SEND_TIMEOUT_S:
            raise TimeoutError
        return _PING

    async def close(self, code: int, reason: str = "") -> None:
        """Say why this ends, and let the client answer."""
        if not self.is_lost:
            self._incoming.send_close(code, reason)
            self._answer()
            await asyncio.sleep(CLOSE_TIMEOUT_S)

    def data_received(self, data: bytes) -> None:
        """Hear what the client says."""
        self._asked_s = None
        if len(data) > MAX_AT_ONCE_BYTES:
            self._incoming.fail(CloseCode.MESSAGE_TOO_BIG)
        self._incoming.receive_data(data)
        self._incoming.events_received()
        self._answer()
        if self._is_paused:  # a client that does not read what we answer is not asked for more
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Hear that there is room again."""
        super().resume_writing()
        self._transport.resume_reading()

    def _answer(self) -> None:
        answers = self._incoming.data_to_send()
        if not answers:
            return
        self._transport.write(b"".join(answers))
        if not answers[-1]:  # SEND_EOF: both have said that this is the end, or the client has broken the rules
            self.is_lost = True
            if self._task is not None:
                self._task.cancel()
            self._transport.write_eof()  # what else comes is read and ignored: a reset could overtake our last word
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)


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
        self.app = self._inner
        super().handle_websocket_upgrade(event)

    def _hand_over(self) -> Outlet:
        """Give the connection away. The head of the answer must be sent, with `Connection: close`."""
        self.connections.discard(self)
        self.cycle.disconnected = True  # for uvicorn: nobody misses the rest of the answer, nothing is to be closed
        self.app = self._inner
        return Outlet(self.transport, self.connections, is_chunked=self.scope["http_version"] == "1.1")


class WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which can be handed over once it is accepted: `scope["extensions"][HAND_OVER]()`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._inner, self.app = self.app, self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][HAND_OVER] = self._hand_over
        await self._inner(scope, receive, send)

    def _hand_over(self) -> MessageOutlet:
        """Give the connection away. Nothing may come in between its being accepted and this."""
        outlet = MessageOutlet(self.transport, self.connections)
        if not outlet.is_lost:
            self.connections.discard(self)
        self.close_timer = self.loop.call_later(0, lambda: None)  # for uvicorn: it is closed by somebody else
        self.app = self._inner
        return outlet


def _bound(transport: asyncio.Transport) -> None:
    """Let the kernel keep no more than a stream needs. Only of streams: it would slow down what is large and far."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
