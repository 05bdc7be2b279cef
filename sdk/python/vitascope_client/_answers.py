"""What httpx says, as this library says it."""

import contextlib
import ipaddress
from collections.abc import Mapping
from typing import Any

import httpx

from vitascope_client._errors import APIConnectionError, APIError, APITimeoutError, status_error
from vitascope_client._retries import retry_after_s

CONNECT_TIMEOUT_S = 5.0
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Whoever follows a thousand videos holds a thousand connections; under a limit all other calls would wait for them."""


def check(answer: httpx.Response) -> None:
    """Raise the error that an answer carries; its body has been read."""
    if not answer.is_error:
        return
    try:
        body = answer.json()
    except ValueError:
        body = None
    raise status_error(
        answer.status_code,
        body,
        request_id=answer.headers.get("x-request-id"),
        retry_after_s=retry_after_s(answer.headers),
        is_final=answer.headers.get("x-should-retry") == "false",
    )


def json_object(answer: httpx.Response) -> dict[str, Any]:
    """Return the JSON object that an answer is, or raise its error."""
    check(answer)
    try:
        data = answer.json()
    except ValueError as error:
        raise APIError(f"{answer.url} did not answer with JSON; is base_url right?") from error
    return data if isinstance(data, dict) else {}


def translated(error: httpx.RequestError) -> APIError:
    """Return our error for one of httpx's."""
    if isinstance(error, httpx.TimeoutException):
        return APITimeoutError("The server did not answer in time.")
    if isinstance(error, httpx.TransportError):
        return APIConnectionError(f"Cannot connect to the server: {error}")
    return APIError(f"The answer cannot be read: {error}")  # it redirects for ever, or its encoding is broken


def given(query: Mapping[str, Any] | None) -> dict[str, Any]:
    """Leave out what is None."""
    return {name: value for name, value in (query or {}).items() if value is not None}


def loopback(base_url: str) -> set[str]:
    """Return httpx's patterns for this machine: the usual names, and the server's own if it is another of 127/8."""
    hosts = {"localhost", "127.0.0.1", "[::1]"}
    host = httpx.URL(base_url).host
    with contextlib.suppress(ValueError):
        if ipaddress.IPv4Address(host).is_loopback:
            hosts.add(host)
    return {f"all://{one}" for one in hosts}
