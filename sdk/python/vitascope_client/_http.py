"""Requests with errors, time limits and retries. httpx is the one seam: pass a transport to replace the network."""

import contextlib
import ipaddress
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from vitascope_client._errors import APIConnectionError, APIError, APITimeoutError, VitascopeError, status_error

CONNECT_TIMEOUT_S = 5.0
MAX_BACKOFF_S = 8.0
RETRIED_STATUS = frozenset({408, 429, 500, 502, 503, 504})


class Http:
    """One connection pool to one server."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        timeout_s: float,
        max_retries: int,
        transport: httpx.BaseTransport | None,
    ) -> None:
        self.max_retries = max_retries
        self._client = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {api_key}", "User-Agent": "vitascope-python"},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            transport=transport,
            mounts=dict.fromkeys(_loopback(base_url)),  # straight there, whatever proxy the environment names
            follow_redirects=True,  # httpx drops the key when a redirect leaves the server
        )

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    def json(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> tuple[dict[str, Any], httpx.Headers]:
        """Send a request and return the answer's JSON and headers.

        Retries after any transient failure: what creates something carries a key, by which the server knows it again. A
        DELETE whose first answer was lost and that then finds nothing has done its work.
        """
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        may_be_done = False
        for attempt in range(self.max_retries + 1):
            is_last = attempt == self.max_retries
            try:
                answer = self._client.request(method, path, json=body, params=_given(query), headers=headers)
            except httpx.TransportError as error:
                if is_last:
                    raise translated(error) from error
                may_be_done = may_be_done or not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                pause(attempt)
                continue
            except ValueError as error:  # NaN, infinity, lone surrogates: JSON has no form for them
                raise VitascopeError(f"A value of the request cannot be sent: {error}") from error
            if answer.status_code in RETRIED_STATUS and not is_last and _may_retry(answer):
                may_be_done = True
                pause(attempt, answer.headers.get("retry-after"))
                continue
            if method == "DELETE" and answer.status_code == 404 and may_be_done:
                return {}, answer.headers
            check(answer)
            try:
                data = answer.json()
            except ValueError as error:
                raise APIError(f"{answer.url} did not answer with JSON; is base_url right?") from error
            return (data if isinstance(data, dict) else {}), answer.headers
        raise AssertionError("unreachable")  # the last attempt returns or raises

    @contextlib.contextmanager
    def stream(
        self,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = None,
    ) -> Iterator[httpx.Response]:
        """Open a GET and yield the checked answer, its body unread. Transport failures inside the block are ours."""
        timeout = (
            httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S) if read_timeout_s else httpx.USE_CLIENT_DEFAULT
        )
        try:
            with self._client.stream(
                "GET", path, params=_given(query), headers=dict(headers or {}), timeout=timeout
            ) as answer:
                if answer.is_error:
                    answer.read()
                check(answer)
                yield answer
        except httpx.TransportError as error:
            raise translated(error) from error


def check(answer: httpx.Response) -> None:
    """Raise the error that an answer carries."""
    if not answer.is_error:
        return
    try:
        body = answer.json()
    except ValueError:
        body = None
    raise status_error(answer.status_code, body, answer.headers.get("x-request-id"))


def translated(error: httpx.TransportError) -> APIConnectionError:
    """Return our error for one of httpx's."""
    if isinstance(error, httpx.TimeoutException):
        return APITimeoutError("The server did not answer in time.")
    return APIConnectionError(f"Cannot connect to the server: {error}")


def pause(attempt: int, retry_after: str | None = None) -> None:
    """Wait before attempt + 1: what the server says, else 0.25 s doubling to 8 s, less up to a quarter."""
    wait_s = min(0.25 * 2.0 ** min(attempt, 10), MAX_BACKOFF_S) * (1 - random.random() / 4)
    if retry_after is not None:
        with contextlib.suppress(ValueError):
            wait_s = max(wait_s, min(float(retry_after), 60.0))
    time.sleep(wait_s)


def _may_retry(answer: httpx.Response) -> bool:
    return bool(answer.headers.get("x-should-retry") != "false")


def _given(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _loopback(base_url: str) -> set[str]:
    """Return httpx's patterns for this machine: the usual names, and the server's own if it is another of 127/8."""
    hosts = {"localhost", "127.0.0.1", "[::1]"}
    host = httpx.URL(base_url).host
    with contextlib.suppress(ValueError):
        if ipaddress.IPv4Address(host).is_loopback:
            hosts.add(host)
    return {f"all://{one}" for one in hosts}
