# Made from ../_async/_client.py by `make sdk`. Edit that one.

"""The client."""

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from vitascope_client._errors import VitascopeError
from vitascope_client._objects import Model
from vitascope_client._sync._admin import Admin
from vitascope_client._sync._http import Http
from vitascope_client._sync._videos import Videos


class Vitascope:
    """A client of one server. Use it as a context manager, or close it."""

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect lazily.

        Args:
            base_url: Address of the gateway, with or without `/v1`; default VITASCOPE_BASE_URL.
            api_key: Default VITASCOPE_API_KEY. Space around it, as files of keys have it, is no part of it.
            timeout_s: How long one answer may take.
            max_retries: How often a call that may be repeated is.
            transport: Replaces the network, for tests and proxies.
        """
        base_url = base_url or os.environ.get("VITASCOPE_BASE_URL")
        api_key = (api_key or os.environ.get("VITASCOPE_API_KEY") or "").strip()
        if not base_url:
            raise VitascopeError("Pass base_url or set VITASCOPE_BASE_URL, for instance http://127.0.0.1:8000.")
        if not api_key:
            raise VitascopeError("Pass api_key or set VITASCOPE_API_KEY.")
        if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise VitascopeError("api_key cannot be used: a key is printable ASCII without spaces.")
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        try:
            self._http = Http(self.base_url, api_key, timeout_s=timeout_s, max_retries=max_retries, transport=transport)
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise VitascopeError(f"base_url cannot be used: {error}") from error
        self.videos = Videos(self._http)
        self.admin = Admin(self._http)

    def models(self) -> tuple[Model, ...]:
        """List the models of the server."""

        def read(data: Mapping[str, Any]) -> tuple[Model, ...]:
            return tuple(Model.from_json(model) for model in data["data"])

        models, _ = self._http.json("GET", "/v1/models", read)
        return models

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
