"""Webhooks as their owner sees them: endpoints, secrets, the log of deliveries, replay. The sender is another process.

An endpoint of another tenant does not exist here. Its secret is shown once, when it is made.
"""

import asyncio
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from vitascope_common import ids, webhooks
from vitascope_common.errors import (
    InvalidRequestError,
    NotFoundError,
    QuotaExceededError,
    UnavailableError,
    UrlRefusedError,
    VitascopeError,
)
from vitascope_common.url_guard import UrlGuard
from vitascope_common.webhooks import SigningSecret
from vitascope_gateway.forms import boolean_of
from vitascope_gateway.hook import ALLOWED, Hook, read_event_types
from vitascope_gateway.idempotency import Mark, Repeatable, repeatable
from vitascope_gateway.places import Places
from vitascope_gateway.request import show
from vitascope_gateway.service import Caller

MAX_ENDPOINTS = 20
MAX_NAME_CHARS = 100
MAX_TESTS, MAX_TESTS_OF_TENANT = 16, 4
"""At once. Receivers may be slow on purpose."""
TEST_TIMEOUT_S = 10.0
MAX_LOOKUPS, MAX_LOOKUPS_OF_TENANT = 16, 4
"""Of hosts of endpoints, at once: fewer than the guard has threads for, which pictures and tests need as well."""
LOOKUP_TIMEOUT_S = 2.0
TEST_VIDEO_ID = f"video_{0:032x}"
"""The video that a test event tells of; there is none."""

_ENDPOINT_ID = re.compile(r"we_[0-9a-f]{32}")
_DELIVERY_ID = re.compile(r"whd_[0-9a-f]{32}")
_log = structlog.stdlib.get_logger("vitascope.gateway")


@dataclass(frozen=True)
class Endpoint:
    """A receiver of a tenant's events."""

    endpoint_id: str
    tenant_id: str
    name: str
    url: str
    event_types: tuple[str, ...]
    signing: SigningSecret
    disabled_at_ms: int | None
    created_at_ms: int
    updated_at_ms: int


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one receiver, as the log has it."""

    delivery_id: str
    event_id: str
    event_type: str
    job_id: str
    endpoint_id: str | None
    url: str
    payload: str
    state: str
    num_attempts: int
    next_at_ms: int
    last_attempt_at_ms: int | None
    last_status: int | None
    last_error: str | None
    last_duration_ms: int | None
    created_at_ms: int
    finished_at_ms: int | None


class TooManyEndpointsError(Exception):
    """The tenant has as many as it may."""


class WebhookStore(Protocol):
    """SQL. None: this tenant has no such thing. Every method raises UnavailableError when the database is away.

    What a request makes or changes once comes with whether it had done so before.
    """

    async def made(self, sent: Repeatable) -> str | None:
        """Return the endpoint that this request has made already."""
        ...

    async def add(self, endpoint: Endpoint, max_endpoints: int, sent: Repeatable | None = None) -> str:
        """Write a new one, unless the request has made one; return the id of the one there is.

        Raises: TooManyEndpointsError. UnknownOutcomeError, as of `rotate` and `rotate_default`: it may be written.
        """
        ...

    async def endpoint(self, tenant_id: str, endpoint_id: str) -> Endpoint | None: ...
    async def endpoints(self, tenant_id: str, after: str | None, limit: int) -> tuple[Sequence[Endpoint], bool]: ...
    async def change(
        self, tenant_id: str, endpoint_id: str, changes: Mapping[str, Any], now_ms: int
    ) -> Endpoint | None: ...
    async def rotate(
        self,
        tenant_id: str,
        endpoint_id: str,
        secret: str,
        old_expires_at_ms: int | None,
        now_ms: int,
        sent: Repeatable | None = None,
    ) -> tuple[Endpoint, bool]:
        """Replace a secret; the one before it signs until `old_expires_at_ms`, or (None) not any more.

        A request that has done so already does it no second time. Raises NotFoundError.
        """
        ...

    async def remove(self, tenant_id: str, endpoint_id: str) -> bool: ...
    async def default_secret(self, tenant_id: str, now_ms: int) -> SigningSecret:
        """Return what signs for the URLs that this tenant's requests name; made now if there is none."""
        ...

    async def rotate_default(
        self,
        tenant_id: str,
        secret: str,
        old_expires_at_ms: int | None,
        now_ms: int,
        sent: Repeatable | None = None,
    ) -> tuple[SigningSecret, bool]: ...
    async def deliveries(
        self,
        tenant_id: str,
        job_id: str | None,
        endpoint_id: str | None,
        state: str | None,
        after: str | None,
        limit: int,
    ) -> tuple[Sequence[Delivery], bool]: ...
    async def replay(self, tenant_id: str, delivery_id: str, new_id: str, now_ms: int) -> Delivery | None:
        """Write the same event for the same receiver once more. Raises ConflictError: that receives nothing now."""
        ...


class Webhooks:
    """The use cases. What a request may ask for again returns with it whether it had been done before, and says so."""

    def __init__(self, store: WebhookStore, guard: UrlGuard) -> None:
        self._store = store
        self._guard = guard
        self._tests = Places("webhook tests run", MAX_TESTS, MAX_TESTS_OF_TENANT)
        self._lookups = Places("hosts are being looked up", MAX_LOOKUPS, MAX_LOOKUPS_OF_TENANT)

    def check_hook(self, hook: Hook | None) -> None:
        """Judge the URL that a request names, as far as that goes without the network. Raises UrlRefusedError."""
        if hook is not None:
            self._check_url(hook.url, "webhook_url")

    async def create(
        self, caller: Caller, fields: Mapping[str, Any], mark: Mark | None = None
    ) -> tuple[Endpoint, bool]:
        """Make an endpoint with a new secret. Raises InvalidRequestError, UnknownOutcomeError."""
        checked = self._checked(fields)
        for name in ("name", "url", "event_types"):
            if name not in checked:
                raise InvalidRequestError(f"{name} is required.", param=name)
        tenant_id, sent = caller.tenant_id, await _sent(caller, mark, "webhook endpoint", fields)
        made = await self._store.made(sent) if sent is not None and sent.may_be_made else None
        if made is not None:
            return await self.endpoint(tenant_id, made), True
        await self._check_addresses(tenant_id, checked["url"])
        now_ms = ids.now_ms()
        endpoint = Endpoint(
            endpoint_id=f"we_{now_ms:012x}{secrets.token_hex(10)}",
            tenant_id=tenant_id,
            signing=SigningSecret(webhooks.new_secret()),
            disabled_at_ms=None,
            created_at_ms=now_ms,
            updated_at_ms=now_ms,
            **checked,
        )
        try:
            made = await self._store.add(endpoint, MAX_ENDPOINTS, sent)
        except TooManyEndpointsError:
            message = f"You have {MAX_ENDPOINTS} webhook endpoints, the most there can be; delete one first."
            raise InvalidRequestError(message) from None
        if made != endpoint.endpoint_id:
            return await self.endpoint(tenant_id, made), True
        _log.info("webhook.endpoint_made", endpoint=endpoint.endpoint_id, tenant=tenant_id)
        return endpoint, False

    async def endpoint(self, tenant_id: str, endpoint_id: str) -> Endpoint:
        """Return one endpoint. Raises NotFoundError."""
        return _found(await self._store.endpoint(tenant_id, _known(endpoint_id)))

    async def endpoints(self, tenant_id: str, after: str | None, limit: int) -> tuple[Sequence[Endpoint], bool]:
        """Return a page of endpoints, newest first, and whether more follow. Raises InvalidRequestError."""
        if after is not None and not _ENDPOINT_ID.fullmatch(after):
            raise InvalidRequestError("after must be the id of one of your webhook endpoints.", param="after")
        return await self._store.endpoints(tenant_id, after, limit)

    async def update(self, tenant_id: str, endpoint_id: str, fields: Mapping[str, Any]) -> Endpoint:
        """Change what is given, and enable an endpoint that was disabled. Raises NotFoundError, InvalidRequestError."""
        checked = self._checked(fields)
        endpoint = await self.endpoint(tenant_id, endpoint_id)
        is_same = all(getattr(endpoint, name) == value for name, value in checked.items())
        if is_same and endpoint.disabled_at_ms is None:
            return endpoint
        if "url" in checked:
            await self._check_addresses(tenant_id, checked["url"])
        return _found(await self._store.change(tenant_id, endpoint_id, checked, ids.now_ms()))

    async def rotate(
        self, caller: Caller, endpoint_id: str, fields: Mapping[str, Any], mark: Mark | None = None
    ) -> tuple[Endpoint, bool]:
        """Give an endpoint a new secret. Raises NotFoundError, InvalidRequestError, UnknownOutcomeError."""
        is_old_kept, now_ms = _is_old_kept(fields), ids.now_ms()
        expires_at_ms = now_ms + webhooks.OLD_SECRET_TTL_MS if is_old_kept else None
        tenant_id, sent = caller.tenant_id, await _sent(caller, mark, f"rotate {_known(endpoint_id)}", fields)
        done = await self._store.rotate(tenant_id, endpoint_id, webhooks.new_secret(), expires_at_ms, now_ms, sent)
        if not done[1]:
            _log.info("webhook.secret_rotated", endpoint=endpoint_id, tenant=tenant_id, is_old_kept=is_old_kept)
        return done

    async def delete(self, tenant_id: str, endpoint_id: str) -> None:
        """Remove an endpoint; what is on its way to it is given up. Raises NotFoundError."""
        if not await self._store.remove(tenant_id, _known(endpoint_id)):
            raise endpoint_not_found()
        _log.info("webhook.endpoint_deleted", endpoint=endpoint_id, tenant=tenant_id)

    async def default_secret(self, tenant_id: str) -> SigningSecret:
        """Return what signs for the URLs that requests name; made when it is first asked for or needed."""
        return await self._store.default_secret(tenant_id, ids.now_ms())

    async def rotate_default(
        self, caller: Caller, fields: Mapping[str, Any], mark: Mark | None = None
    ) -> tuple[SigningSecret, bool]:
        """Replace the default secret. Raises InvalidRequestError, UnknownOutcomeError."""
        is_old_kept, now_ms = _is_old_kept(fields), ids.now_ms()
        expires_at_ms = now_ms + webhooks.OLD_SECRET_TTL_MS if is_old_kept else None
        tenant_id, sent = caller.tenant_id, await _sent(caller, mark, "rotate default", fields)
        done = await self._store.rotate_default(tenant_id, webhooks.new_secret(), expires_at_ms, now_ms, sent)
        if not done[1]:
            _log.info("webhook.default_secret_rotated", tenant=tenant_id, is_old_kept=is_old_kept)
        return done

    async def test(self, tenant_id: str, endpoint_id: str, fields: Mapping[str, Any]) -> tuple[str, int]:
        """Send a sample event at once; return its type and the status that came back.

        Raises:
            NotFoundError; InvalidRequestError: there is no such type; UrlRefusedError, UrlFailedError: no answer.
            QuotaExceededError, UnavailableError: too many tests run, of this tenant or of all.
        """
        _only(fields, "event_type")
        event_type = fields.get("event_type")
        if event_type not in webhooks.EVENT_TYPES:
            raise InvalidRequestError(f"event_type must be one of {ALLOWED}.", param="event_type")
        endpoint, now_ms = await self.endpoint(tenant_id, endpoint_id), ids.now_ms()
        event_id = webhooks.new_event_id()
        data: dict[str, Any] = {"id": TEST_VIDEO_ID, "status": event_type.removeprefix("video.")}
        if event_type == webhooks.FAILED:
            data["error"] = {"code": "internal", "message": "This is a test."}
        text = webhooks.payload(event_id, event_type, now_ms, data)
        with self._tests.held(tenant_id):
            answer = await self._guard.request(
                "POST",
                endpoint.url,
                headers=webhooks.headers(event_id, text, endpoint.signing.live(now_ms), now_ms),
                content=text.encode(),
                max_bytes=0,
                is_cut=True,
                timeout_s=TEST_TIMEOUT_S,
            )
        return event_type, answer.status

    async def deliveries(
        self,
        tenant_id: str,
        job_id: str | None,
        endpoint_id: str | None,
        state: str | None,
        after: str | None,
        limit: int,
    ) -> tuple[Sequence[Delivery], bool]:
        """Return a page of the log, newest first, and whether more follow. Raises InvalidRequestError."""
        for name, value, form in (("after", after, _DELIVERY_ID), ("webhook_endpoint_id", endpoint_id, _ENDPOINT_ID)):
            if value is not None and not form.fullmatch(value):
                raise InvalidRequestError(f"{name} is no id of that kind.", param=name)
        if job_id is not None and not ids.is_job_id(job_id):
            raise InvalidRequestError("video_id must be the id of a video.", param="video_id")
        return await self._store.deliveries(tenant_id, job_id, endpoint_id, state, after, limit)

    async def replay(self, tenant_id: str, delivery_id: str) -> Delivery:
        """Send an event to its receiver once more: same id, same text, a delivery of its own.

        Raises: NotFoundError; ConflictError: the endpoint is deleted or disabled.
        """
        delivery = None
        if _DELIVERY_ID.fullmatch(delivery_id):
            new_id = f"whd_{secrets.token_hex(16)}"
            delivery = await self._store.replay(tenant_id, delivery_id, new_id, ids.now_ms())
        if delivery is None:
            message = "There is no webhook delivery with this id; finished ones are kept for some days only."
            raise NotFoundError(message, param="delivery_id")
        return delivery

    def _checked(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of an endpoint that are given, each of them valid."""
        _only(fields, "name", "url", "event_types")
        given = {name: value for name, value in fields.items() if value is not None}
        if "name" in given:
            name = given["name"]
            if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
                message = f"name must be 1 to {MAX_NAME_CHARS} printable characters; got {show(name)}."
                raise InvalidRequestError(message, param="name")
        if "url" in given:
            self._check_url(given["url"], "url")
        if "event_types" in given:
            given["event_types"] = read_event_types(given["event_types"], "event_types")
        return given

    def _check_url(self, url: Any, param: str) -> None:
        if not isinstance(url, str):
            message = f"{param} must be a URL such as https://example.com/hook; got {show(url)}."
            raise InvalidRequestError(message, param=param)
        try:
            self._guard.check(url)
        except VitascopeError as error:
            raise UrlRefusedError(error.message, param=param) from None
        if not webhooks.host_of(url):
            raise UrlRefusedError("The URL cannot be read.", param=param)

    async def _check_addresses(self, tenant_id: str, url: str) -> None:
        """Refuse the URL of an endpoint whose host leads where nothing may go. Raises UrlRefusedError.

        A host that is not found, not in time or not now, is none of these: the sender judges again at each attempt.
        """
        try:
            self._lookups.take(tenant_id)
        except (QuotaExceededError, UnavailableError):
            return
        lookup = asyncio.create_task(self._guard.check_addresses(url))

        def ended(_: asyncio.Task[None]) -> None:  # which may be long after: a lookup cannot be called off
            self._lookups.leave(tenant_id)
            if not lookup.cancelled() and not isinstance(lookup.exception(), VitascopeError | None):
                _log.error("webhook.lookup_crashed", exc_info=lookup.exception())

        lookup.add_done_callback(ended)
        await asyncio.wait({lookup}, timeout=LOOKUP_TIMEOUT_S)
        if lookup.done() and isinstance(error := lookup.exception(), UrlRefusedError):
            raise UrlRefusedError(error.message, param="url")


async def _sent(caller: Caller, mark: Mark | None, what: str, fields: Mapping[str, Any]) -> Repeatable | None:
    return await repeatable(mark, caller.tenant_id, caller.api_key_sha256, what, fields)


def _only(fields: Mapping[str, Any], *names: str) -> None:
    for name in fields:
        if name not in names:
            shown = ascii(name[:60])[1:-1]
            raise InvalidRequestError(f"Unknown field {shown}; known are {', '.join(names)}.", param=shown)


def endpoint_not_found() -> NotFoundError:
    """Return the error of a request that names none of the tenant's endpoints."""
    return NotFoundError("There is no webhook endpoint with this id.", param="webhook_endpoint_id")


def _known(endpoint_id: str) -> str:
    """Return what has the form of an id, so that a lookup is worth its while. Raises NotFoundError."""
    if not _ENDPOINT_ID.fullmatch(endpoint_id):
        raise endpoint_not_found()
    return endpoint_id


def _found(endpoint: Endpoint | None) -> Endpoint:
    if endpoint is None:
        raise endpoint_not_found()
    return endpoint


def _is_old_kept(fields: Mapping[str, Any]) -> bool:
    name = "keep_old_secret_active_for_24_hours"
    _only(fields, name)
    value = boolean_of(fields.get(name))
    if value is not None and not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be true or false; got {show(value)}.", param=name)
    return bool(value)
