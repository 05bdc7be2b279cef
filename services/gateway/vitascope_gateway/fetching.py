"""Pictures that lie elsewhere: fetched by the URL that a request names, a few at once."""

from collections.abc import Mapping

from vitascope_common.errors import UrlFailedError, UrlRefusedError
from vitascope_common.url_guard import UrlGuard
from vitascope_gateway.pictures import MAX_PICTURE_BYTES
from vitascope_gateway.places import Places

FETCH_TIMEOUT_S = 10.0
"""For all of a request."""
MAX_FETCHING, MAX_FETCHING_OF_TENANT = 16, 4
"""At once. Servers may be slow on purpose: those of one tenant keep nobody else waiting."""

_HEADERS = {"accept": "image/png, image/jpeg, image/webp"}


class PictureFetcher:
    """Fetches pictures; whether they are any is for others to see."""

    def __init__(self, guard: UrlGuard) -> None:
        self._guard = guard
        self._places = Places("pictures are being fetched", MAX_FETCHING, MAX_FETCHING_OF_TENANT)

    def check(self, sent: Mapping[str, bytes | str]) -> None:
        """Judge URLs as far as that goes without the network. Raises: UrlRefusedError: it names the field."""
        for name, value in sent.items():
            if isinstance(value, str):
                try:
                    self._guard.check(value)
                except UrlRefusedError as error:
                    raise _named(error, name) from error

    async def all(self, tenant_id: str, sent: Mapping[str, bytes | str]) -> dict[str, bytes]:
        """Return pictures by field: those that are here as they are, the others from their URLs.

        Raises:
            UrlRefusedError: a URL leads where nothing is fetched from.
            UrlFailedError: it cannot be reached, or has no picture of at most 10 MiB; both name the field.
            QuotaExceededError, UnavailableError: too many are being fetched, of this tenant or of all.
        """
        urls = {name: value for name, value in sent.items() if isinstance(value, str)}
        fetched = dict(zip(urls, await self._fetch(tenant_id, urls), strict=True)) if urls else {}
        return {name: fetched[name] if isinstance(value, str) else value for name, value in sent.items()}

    async def _fetch(self, tenant_id: str, urls: Mapping[str, str]) -> list[bytes]:
        with self._places.held(tenant_id, len(urls)):
            # One after the other: there are two at most, and of two that fail the first is told of.
            return [await self._one(name, url, FETCH_TIMEOUT_S / len(urls)) for name, url in urls.items()]

    async def _one(self, name: str, url: str, timeout_s: float) -> bytes:
        try:
            answer = await self._guard.request(
                "GET",
                url,
                headers=_HEADERS,
                max_bytes=MAX_PICTURE_BYTES,
                timeout_s=timeout_s,
                follow_redirects=True,
            )
        except (UrlRefusedError, UrlFailedError) as error:
            raise _named(error, name) from error
        if answer.status != 200:
            raise _named(UrlFailedError(f"The URL answers with status {answer.status}."), name)
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise _named(UrlFailedError("The URL answers in a compressed form."), name)
        return answer.content


def _named(error: UrlRefusedError | UrlFailedError, name: str) -> UrlRefusedError | UrlFailedError:
    return type(error)(f"{name} cannot be fetched. {error.message}", param=name)
