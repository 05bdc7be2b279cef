# Made from ../_async/_http.py by `make sdk`. Edit that one.

"""Requests with errors, time limits and retries. httpx is the one seam: pass a transport to replace the network."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from vitascope_client import _runtime
from vitascope_client._answers import CONNECT_TIMEOUT_S, LIMITS, check, given, json_object, loopback, translated
from vitascope_client._errors import VitascopeError
from vitascope_client._requests import Upload, form_of
from vitascope_client._retries import backoff_s, pause_s


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
            limits=LIMITS,
            transport=transport,
            mounts=dict.fromkeys(loopback(base_url)),  # straight there, whatever proxy the environment names
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
        upload: Upload | None = None,
        query: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> tuple[dict[str, Any], httpx.Headers]:
        """Send a request, as a form if a file goes along, and return the answer's JSON and headers.

        Retries after any transient failure: what creates something carries a key, by which the server knows it again. A
        DELETE whose first answer was lost and that then finds nothing has done its work.
        """
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        content: dict[str, Any] = (
            {"json": body} if upload is None else {"data": form_of(body or {}), "files": upload.part}
        )
        may_be_done = False
        for attempt in range(self.max_retries + 1):
            is_last = attempt == self.max_retries
            try:
                answer = self._client.request(method, path, params=given(query), headers=headers, **content)
            except httpx.RequestError as error:
                if is_last or not isinstance(error, httpx.TransportError):
                    raise translated(error) from error
                may_be_done = may_be_done or not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                _runtime.sleep(backoff_s(attempt))
                continue
            except ValueError as error:  # NaN, infinity, lone surrogates: JSON has no form for them
                raise VitascopeError(f"A value of the request cannot be sent: {error}") from error
            wait_s = None if is_last else pause_s(answer.status_code, answer.headers, attempt)
            if wait_s is not None:
                may_be_done = True
                _runtime.sleep(wait_s)
                continue
            if method == "DELETE" and answer.status_code == 404 and may_be_done:
                return {}, answer.headers
            return json_object(answer), answer.headers
        raise AssertionError("unreachable")  # the last attempt returns or raises

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = None,
    ) -> Iterator[httpx.Response]:
        """Open a GET and yield the checked answer, its body unread. httpx's failures inside the block become ours."""
        timeout = (
            httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S) if read_timeout_s else httpx.USE_CLIENT_DEFAULT
        )
        try:
            with self._client.stream(
                "GET", path, params=given(query), headers=dict(headers or {}), timeout=timeout
            ) as answer:
                if answer.is_error:
                    answer.read()
                check(answer)
                yield answer
        except httpx.RequestError as error:
            raise translated(error) from error
