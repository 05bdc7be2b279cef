"""The routes of webhooks: endpoints as the stock client's `client.webhooks` speaks them, the log, replay, secrets."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from vitascope_common import webhooks as wire
from vitascope_common.webhooks import SigningSecret
from vitascope_gateway.body import READ_TYPES, read_fields
from vitascope_gateway.idempotency import REPLAYED_ANSWER, Mark, replayed
from vitascope_gateway.service import Caller
from vitascope_gateway.webhooks import MAX_ENDPOINTS, MAX_NAME_CHARS, Delivery, Endpoint, Webhooks

EventType = Literal["video.completed", "video.failed"]
State = Literal["pending", "delivered", "failed"]
SECRET_HEADERS = {"Cache-Control": "no-store"}

_EVENT_TYPES = {"type": "array", "minItems": 1, "items": {"type": "string", "enum": list(wire.EVENT_TYPES)}}
_ENDPOINT_FIELDS: dict[str, Any] = {
    "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARS},
    "url": {"type": "string", "maxLength": wire.MAX_URL_CHARS, "description": "https, in the public Internet."},
    "event_types": _EVENT_TYPES,
}
_ROTATE_FIELDS: dict[str, Any] = {
    "keep_old_secret_active_for_24_hours": {
        "type": ["boolean", "null"],
        "description": "true: both sign for 24 hours. Default: the old one signs no more.",
    }
}


def _body(properties: dict[str, Any], *required: str, is_required: bool = True) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    if required:
        schema["required"] = list(required)
    return {"requestBody": {"required": is_required, "content": {one: {"schema": schema} for one in READ_TYPES}}}


class WebhookEndpoint(BaseModel):
    """A receiver of your events."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[EventType]
    created_at: int = Field(description="Unix seconds.")
    updated_at: int
    signing_secret_hint: str
    disabled_at: int | None = Field(
        description="Since when it gets nothing, as it said 410; any update enables it again."
    )


class WebhookEndpointWithSecret(WebhookEndpoint):
    """The same, with its secret: shown when it is made and never again."""

    signing_secret: str


class WebhookEndpointList(BaseModel):
    """One page of endpoints, newest first."""

    object: Literal["list"] = "list"
    data: list[WebhookEndpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool


class WebhookEndpointDeleted(BaseModel):
    """The answer to DELETE."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookEndpointTest(BaseModel):
    """What a receiver answered to a sample event; `success` says only that it did."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: EventType
    status_code: int
    success: Literal[True] = True


class WebhookEventTypes(BaseModel):
    """What there is to be told of."""

    object: Literal["list"] = "list"
    data: list[EventType]


class WebhookSecret(BaseModel):
    """What signs for the URLs that requests name in `webhook_url`."""

    object: Literal["webhook_secret"] = "webhook_secret"
    signing_secret: str
    old_secret_expires_at: int | None = Field(description="Until when the one before signs as well, Unix seconds.")


class WebhookDelivery(BaseModel):
    """One event on its way to one receiver."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    event_id: str = Field(description="The header `webhook-id`: the same at each attempt and replay.")
    event_type: EventType
    video_id: str
    webhook_endpoint_id: str | None = Field(description="null: the URL that the request named.")
    url: str = Field(description="Without its query.")
    status: State
    num_attempts: int
    next_attempt_at: int | None = Field(description="Unix seconds; null: there is none.")
    last_attempt_at: int | None
    last_status_code: int | None = Field(description="null: there was no answer.")
    last_error: str | None
    last_duration_ms: int | None
    created_at: int
    finished_at: int | None
    payload: str = Field(description="The body, as it is sent.")


class WebhookDeliveryList(BaseModel):
    """One page of the log, newest first."""

    object: Literal["list"] = "list"
    data: list[WebhookDelivery]
    first_id: str | None
    last_id: str | None
    has_more: bool


def make_webhooks_router(
    webhooks: Webhooks,
    caller: Callable[..., Any],
    mark: Callable[..., Any],
    errors: Callable[..., dict[int | str, dict[str, Any]]],
) -> APIRouter:
    """Build the routes; `caller` and `mark` find whose request it is and which, `errors` documents statuses."""
    router = APIRouter(prefix="/v1", tags=["webhooks"])
    Known = Annotated[Caller, Depends(caller)]
    Marked = Annotated[Mark | None, Depends(mark)]
    After = Annotated[str | None, Query(description="Id of the last one of the page before.")]
    Limit = Annotated[int, Query(ge=1, le=100)]
    of_body = errors(400, 401, 404, 408, 413, 415, 429, 503)
    of_repeatable = errors(400, 401, 404, 408, 413, 415, 422, 429, 503) | {200: REPLAYED_ANSWER}

    @router.get("/webhook_event_types", response_model=WebhookEventTypes, responses=errors(401, 503))
    async def list_event_types(_: Known) -> Response:
        """List the events there are. A video that was cancelled or has expired has failed; `error.code` says so."""
        return JSONResponse(WebhookEventTypes.model_validate({"data": wire.EVENT_TYPES}).model_dump())

    @router.post(
        "/webhook_endpoints",
        response_model=WebhookEndpointWithSecret,
        responses=of_repeatable,
        openapi_extra=_body(_ENDPOINT_FIELDS, *_ENDPOINT_FIELDS),
        description=f"Make an endpoint that is told of all your videos. You can have {MAX_ENDPOINTS}.",
    )
    async def create_endpoint(request: Request, known: Known, mark: Marked) -> Response:
        """Make an endpoint."""
        fields = await read_fields(request, known.tenant_id)
        endpoint, is_replayed = await webhooks.create(known, fields, mark)
        return JSONResponse(_with_secret(endpoint).model_dump(), headers=SECRET_HEADERS | replayed(is_replayed))

    @router.get("/webhook_endpoints", response_model=WebhookEndpointList, responses=errors(400, 401, 503))
    async def list_endpoints(known: Known, after: After = None, limit: Limit = 20) -> Response:
        """List your endpoints, newest first."""
        found, has_more = await webhooks.endpoints(known.tenant_id, after, limit)
        page = _page([WebhookEndpoint(**_shown(one)) for one in found], has_more)
        return JSONResponse(WebhookEndpointList.model_validate(page).model_dump())

    @router.get(
        "/webhook_endpoints/{webhook_endpoint_id}", response_model=WebhookEndpoint, responses=errors(401, 404, 503)
    )
    async def get_endpoint(webhook_endpoint_id: str, known: Known) -> Response:
        """Show one endpoint."""
        endpoint = await webhooks.endpoint(known.tenant_id, webhook_endpoint_id)
        return JSONResponse(WebhookEndpoint(**_shown(endpoint)).model_dump())

    @router.post(
        "/webhook_endpoints/{webhook_endpoint_id}",
        response_model=WebhookEndpoint,
        responses=of_body,
        openapi_extra=_body(_ENDPOINT_FIELDS),
    )
    async def update_endpoint(webhook_endpoint_id: str, request: Request, known: Known) -> Response:
        """Change what is given, and enable the endpoint if it was disabled."""
        endpoint = await webhooks.update(known.tenant_id, webhook_endpoint_id, await _fields(request, known.tenant_id))
        return JSONResponse(WebhookEndpoint(**_shown(endpoint)).model_dump())

    @router.delete(
        "/webhook_endpoints/{webhook_endpoint_id}",
        response_model=WebhookEndpointDeleted,
        responses=errors(401, 404, 503),
    )
    async def delete_endpoint(webhook_endpoint_id: str, known: Known) -> Response:
        """Delete an endpoint; what is on its way to it is given up."""
        await webhooks.delete(known.tenant_id, webhook_endpoint_id)
        return JSONResponse(WebhookEndpointDeleted(id=webhook_endpoint_id).model_dump())

    @router.post(
        "/webhook_endpoints/{webhook_endpoint_id}/rotate_secret",
        response_model=WebhookEndpointWithSecret,
        responses=of_repeatable,
        openapi_extra=_body(_ROTATE_FIELDS, is_required=False),
    )
    async def rotate_endpoint_secret(
        webhook_endpoint_id: str, request: Request, known: Known, mark: Marked
    ) -> Response:
        """Give an endpoint a new secret."""
        fields = await _fields(request, known.tenant_id)
        endpoint, is_replayed = await webhooks.rotate(known, webhook_endpoint_id, fields, mark)
        return JSONResponse(_with_secret(endpoint).model_dump(), headers=SECRET_HEADERS | replayed(is_replayed))

    @router.post(
        "/webhook_endpoints/{webhook_endpoint_id}/test",
        response_model=WebhookEndpointTest,
        responses=of_body,
        openapi_extra=_body({"event_type": _EVENT_TYPES["items"]}, "event_type"),
    )
    async def try_endpoint(webhook_endpoint_id: str, request: Request, known: Known) -> Response:
        """Send a sample event now and say what the receiver answered; 400 when it did not, within 10 s."""
        fields = await read_fields(request, known.tenant_id)
        event_type, status = await webhooks.test(known.tenant_id, webhook_endpoint_id, fields)
        tested = {"webhook_endpoint_id": webhook_endpoint_id, "event_type": event_type, "status_code": status}
        return JSONResponse(WebhookEndpointTest.model_validate(tested).model_dump())

    @router.get("/webhooks/default/secret", response_model=WebhookSecret, responses=errors(401, 503))
    async def get_default_secret(known: Known) -> Response:
        """Show what signs for the URLs that your requests name in `webhook_url`."""
        signing = await webhooks.default_secret(known.tenant_id)
        return JSONResponse(_secret(signing).model_dump(), headers=SECRET_HEADERS)

    @router.post(
        "/webhooks/default/rotate_secret",
        response_model=WebhookSecret,
        responses=errors(400, 401, 408, 413, 415, 422, 429, 503) | {200: REPLAYED_ANSWER},
        openapi_extra=_body(_ROTATE_FIELDS, is_required=False),
    )
    async def rotate_default_secret(request: Request, known: Known, mark: Marked) -> Response:
        """Replace what signs for the URLs that your requests name."""
        fields = await _fields(request, known.tenant_id)
        signing, is_replayed = await webhooks.rotate_default(known, fields, mark)
        return JSONResponse(_secret(signing).model_dump(), headers=SECRET_HEADERS | replayed(is_replayed))

    @router.get("/webhook_deliveries", response_model=WebhookDeliveryList, responses=errors(400, 401, 503))
    async def list_deliveries(
        known: Known,
        video_id: str | None = None,
        webhook_endpoint_id: str | None = None,
        status: State | None = None,
        after: After = None,
        limit: Limit = 20,
    ) -> Response:
        """List what was sent and what came back, newest first. Finished deliveries are kept for seven days."""
        found, has_more = await webhooks.deliveries(
            known.tenant_id, video_id, webhook_endpoint_id, status, after, limit
        )
        page = _page([_delivery(one) for one in found], has_more)
        return JSONResponse(WebhookDeliveryList.model_validate(page).model_dump())

    @router.post(
        "/webhook_deliveries/{delivery_id}/replay",
        status_code=202,
        response_model=WebhookDelivery,
        responses=errors(401, 404, 409, 503),
    )
    async def replay_delivery(delivery_id: str, known: Known) -> Response:
        """Send an event to its receiver once more: the same `webhook-id` and body, in a delivery of its own."""
        delivery = await webhooks.replay(known.tenant_id, delivery_id)
        return JSONResponse(_delivery(delivery).model_dump(), 202)

    return router


async def _fields(request: Request, tenant_id: str) -> dict[str, Any]:
    """Read a body that may be left out."""
    has_none = request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
    return {} if has_none else await read_fields(request, tenant_id)


def _shown(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.endpoint_id,
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": list(endpoint.event_types),
        "created_at": endpoint.created_at_ms // 1000,
        "updated_at": endpoint.updated_at_ms // 1000,
        "signing_secret_hint": wire.hint(endpoint.signing.secret),
        "disabled_at": _seconds(endpoint.disabled_at_ms),
    }


def _with_secret(endpoint: Endpoint) -> WebhookEndpointWithSecret:
    return WebhookEndpointWithSecret(**_shown(endpoint), signing_secret=endpoint.signing.secret)


def _secret(signing: SigningSecret) -> WebhookSecret:
    expires_at_ms = signing.old_secret_expires_at_ms
    return WebhookSecret(signing_secret=signing.secret, old_secret_expires_at=_seconds(expires_at_ms))


def _delivery(delivery: Delivery) -> WebhookDelivery:
    values = {
        "id": delivery.delivery_id,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "video_id": delivery.job_id,
        "webhook_endpoint_id": delivery.endpoint_id,
        "url": wire.without_query(delivery.url),
        "status": delivery.state,
        "num_attempts": delivery.num_attempts,
        "next_attempt_at": _seconds(delivery.next_at_ms) if delivery.state == "pending" else None,
        "last_attempt_at": _seconds(delivery.last_attempt_at_ms),
        "last_status_code": delivery.last_status,
        "last_error": delivery.last_error,
        "last_duration_ms": delivery.last_duration_ms,
        "created_at": delivery.created_at_ms // 1000,
        "finished_at": _seconds(delivery.finished_at_ms),
        "payload": delivery.payload,
    }
    return WebhookDelivery.model_validate(values)


def _page(data: Sequence[WebhookEndpoint] | Sequence[WebhookDelivery], has_more: bool) -> dict[str, Any]:
    ends = {"first_id": data[0].id, "last_id": data[-1].id} if data else {"first_id": None, "last_id": None}
    return {"data": list(data), "has_more": has_more, **ends}


def _seconds(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else milliseconds // 1000
