"""What httpx says, as this library says it."""

import contextlib
import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx

from vitascope_client._errors import APIConnectionError, APIError, APITimeoutError, status_error
from vitascope_client._retries import retry_after_s

Result = TypeVar("Result")

CONNECT_TIMEOUT_S = 5.0
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Whoever follows a thousand videos holds a thousand connections; under a limit all other calls would wait for them."""


def check(answer: httpx.Response) -> None:
    """Raise the error that an answer carries; its body has been read."""
    if answer.is_success:
        return
    if answer.next_request is not None:  # nobody has gone there
        where = origin_of(answer.next_request.url)
        raise APIError(f"The server redirects this {answer.request.method} to {where}; is base_url right?")
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


def parsed(answer: httpx.Response, read: Callable[[Any], Result]) -> Result:
    """Return what `read` makes of an answer's JSON, or raise its error. Another server may answer with JSON as well."""
    check(answer)
    try:
        return read(answer.json())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise APIError(f"{origin_of(answer.url)} did not answer as Vitascope does; is base_url right?") from error


def origin_of(url: httpx.URL) -> str:
    """Return where an address leads, without what may be a secret in it: user, path and query."""
    return f"{url.scheme}://{url.netloc.decode()}"


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
