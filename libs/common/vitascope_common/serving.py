"""How an asyncio service starts and ends: settings, telemetry, serve until told to stop, exit status."""

import asyncio
import gc
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from vitascope_common import telemetry
from vitascope_common.errors import ConfigurationError, UnavailableError
from vitascope_common.settings import ServiceSettings

BACKLOG = 2048

S = TypeVar("S", bound=ServiceSettings)
M = TypeVar("M")


def run(settings_class: type[S], serve: Callable[[S, telemetry.Telemetry], Coroutine[Any, Any, None]]) -> int:
    """Serve until `serve` returns; return the exit status.

    0 after a drain, 1 when something that is needed at the start is away, 2 when the configuration cannot be used.
    """
    try:
        settings = settings_class.load()
        watched = telemetry.start(settings.service, settings)
        try:
            asyncio.run(serve(settings, watched))
        finally:
            watched.shutdown()
            gc.freeze()  # the process ends here: what is left is not collected once more, in the time that a stop has
    except ConfigurationError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    except UnavailableError as error:
        sys.stderr.write(f"{settings_class.service} cannot start: {error.message}\n")
        return 1
    return 0


def listen(host: str, port: int, stall_timeout_s: float) -> socket.socket:
    """Open a TCP port for HTTP; 0 takes any free one. A client that takes nothing for so long is cut off.

    Raises ConfigurationError: it cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # Connections inherit it; asyncio sets it only for sockets that it made itself. Without it the second piece of
        # every answer waits 40 ms for the client's delayed acknowledgement of the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_timeout_s * 1000))
        return listener
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def in_time(send: Callable[[M], Awaitable[None]], stall_timeout_s: float) -> Callable[[M], Awaitable[None]]:
    """Return an ASGI `send` that raises TimeoutError when the client takes nothing for so long."""

    async def send_in_time(message: M) -> None:
        async with asyncio.timeout(stall_timeout_s):
            await send(message)

    return send_in_time
