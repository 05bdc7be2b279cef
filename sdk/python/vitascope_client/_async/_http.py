"""Requests with errors, time limits and retries. httpx is the one seam: pass a transport to replace the network."""

import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx

from vitascope_client import _runtime
from vitascope_client._answers import CONNECT_TIMEOUT_S, LIMITS, Result, check, given, loopback, parsed, translated
from vitascope_client._errors import VitascopeError
from vitascope_client._requests import Upload, form_of
from vitascope_client._retries import backoff_s, pause_s

LAST_LOOK_S = 0.25
"""What the last request before a deadline has at least; none at all could not succeed."""


class AsyncHttp:
    """One connection pool to one server."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        timeout_s: float,
        max_retries: int,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self.max_retries = max_retries
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {api_key}", "User-Agent": "vitascope-python"},
            limits=LIMITS,
            transport=transport,
            mounts=dict.fromkeys(loopback(base_url)),  # straight there, whatever proxy the environment names
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def json(
        self,
        method: str,
        path: str,
        read: Callable[[Any], Result],
        *,
        body: Any = None,
        upload: Upload | None = None,
        query: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        deadline: float = math.inf,
    ) -> tuple[Result, httpx.Headers]:
        """Send a request, as a form if a file goes along; return what `read` makes of the answer's JSON, and headers.

        Retries after any transient failure: what creates something carries a key, by which the server knows it again. A
        DELETE whose first answer was lost and that then finds nothing has done its work. At the `deadline`, a time of
        the monotonic clock, it gives up.
        """
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        content: dict[str, Any] = (
            {"json": body} if upload is None else {"data": form_of(body or {}), "files": upload.part}
        )
        may_be_done = False
        for attempt in range(self.max_retries + 1):
            is_last = attempt == self.max_retries
            timeout_s = min(self._timeout_s, max(deadline - time.monotonic(), LAST_LOOK_S))
            try:
                answer = await self._send(method, path, timeout_s, params=given(query), headers=headers, **content)
            except httpx.RequestError as error:
                wait_s = backoff_s(attempt)
                is_last = is_last or time.monotonic() + wait_s >= deadline
                if is_last or not isinstance(error, httpx.TransportError):
                    raise translated(error) from error
                may_be_done = may_be_done or not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                await _runtime.async_sleep(wait_s)
                continue
            asked_s = None if is_last else pause_s(answer.status_code, answer.headers, attempt)
            if asked_s is not None and time.monotonic() + asked_s < deadline:
                may_be_done = True
                await _runtime.async_sleep(asked_s)
                continue
            if method == "DELETE" and answer.status_code == 404 and may_be_done:
                return read({"deleted": True}), answer.headers
            return parsed(answer, read), answer.headers
        raise AssertionError("unreachable")  # the last attempt returns or raises

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """Open a GET and yield the checked answer, its body unread. httpx's failures inside the block become ours."""
        timeout_s, sent = read_timeout_s or self._timeout_s, {"params": given(query), "headers": headers}
        try:
            async with aclosing(await self._send("GET", path, timeout_s, is_stream=True, **sent)) as answer:
                if not answer.is_success:
                    await answer.aread()
                check(answer)
                yield answer
        except httpx.RequestError as error:
            raise translated(error) from error

    async def _send(
        self, method: str, path: str, timeout_s: float, *, is_stream: bool = False, **content: Any
    ) -> httpx.Response:
        """Send a request once. Of what is redirected only a GET goes there, without the key if it is another server.

        Raises:
            VitascopeError: there is no way to send it.
            httpx.RequestError: it failed.
        """
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        try:
            request = self._client.build_request(method, path, timeout=timeout, **content)
            return await self._client.send(request, stream=is_stream, follow_redirects=method == "GET")
        except httpx.LocalProtocolError:
            raise VitascopeError("An id or a key holds characters that no header can.") from None
        except ValueError as error:  # NaN, infinity, lone surrogates: JSON has no form for them
            raise VitascopeError(f"A value of the request cannot be sent: {error}") from error
