"""Connections on which nothing is asked are closed; those that ask are not."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from vitascope_common.http_heads import ImpatientHttp

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UNREAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
"""It is answered before its body has come."""


class VeryImpatient(ImpatientHttp):
    head_timeout_s = 0.2


async def app(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(0.5 if scope["path"] == "/slow" else 0)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def told(*parts: bytes, end_s: float) -> bytes:
    """Return what comes back on a connection until it is closed, or nothing more comes."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", server_header=False, date_header=False)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: VeryImpatient(config, ServerState(), {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            answer = b""
            async with asyncio.timeout(end_s):
                for part in parts:
                    writer.write(part)
                    if part.endswith(b"\r\n\r\n"):
                        answer += await reader.readuntil(b"\r\n\r\n")
                answer += await reader.read()
            return answer + b"closed"
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.parametrize(
    ("parts", "num_answers"),
    [((), 0), ((b"GET / HT",), 0), ((REQUEST, b"GET"), 1), ((REQUEST, REQUEST, b"\r\n"), 2), ((UNREAD, b"x"), 1)],
)
def test_a_connection_that_says_no_more_is_closed(parts: Sequence[bytes], num_answers: int) -> None:
    answer = asyncio.run(told(*parts, end_s=10))
    assert (answer.count(b"HTTP/1.1 204"), answer[-6:]) == (num_answers, b"closed")


@pytest.mark.parametrize("parts", [(REQUEST.replace(b"/ ", b"/slow "),), (REQUEST,)])
def test_one_that_waits_for_its_answer_or_has_had_it_is_kept(parts: Sequence[bytes]) -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(told(*parts, end_s=0.8))
