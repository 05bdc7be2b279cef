"""The operator's routes: see the queues, drain pools and workers. Only for keys with the scope `admin`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import JSONResponse, Response

from vitascope_common.errors import InvalidRequestError, PermissionDeniedError
from vitascope_gateway.body import read_fields
from vitascope_gateway.queue_view import PoolView
from vitascope_gateway.request import show
from vitascope_gateway.service import Caller, Gateway

SCOPE = "admin"
NAME = r"^[A-Za-z0-9._@:+-]{1,200}$"

_NAME = re.compile(NAME)
_DRAIN_FIELDS: dict[str, Any] = {
    "type": "object",
    "required": ["pool", "is_draining"],
    "additionalProperties": False,
    "properties": {
        "pool": {"type": "string", "pattern": NAME},
        "worker_id": {
            "type": ["string", "null"],
            "pattern": NAME,
            "description": "One worker; null: every worker of the pool, those that come later included.",
        },
        "is_draining": {"type": "boolean", "description": "false ends it."},
    },
}


@dataclass(frozen=True)
class Queue:
    """What operators see of every pool, or of the one they asked for."""

    pools: list[PoolView]
    object: str = field(default="queue", init=False)


@dataclass(frozen=True)
class Drain:
    """Who gets no more work, or gets it again."""

    pool: str
    worker_id: str | None  # null: every worker of the pool
    is_draining: bool
    num_workers: int  # registered ones that it concerns now
    object: str = field(default="queue.drain", init=False)


def make_admin_router(
    gateway: Gateway, caller: Callable[..., Any], errors: Callable[..., dict[int | str, dict[str, Any]]]
) -> APIRouter:
    """Build the routes; `caller` finds whose request it is, `errors` documents statuses."""
    router = APIRouter(prefix="/admin/v1", tags=["admin"])

    async def operator(known: Annotated[Caller, Depends(caller)]) -> Caller:
        """Return who asks. Raises PermissionDeniedError unless the key is an operator's."""
        if SCOPE not in known.scopes:
            raise PermissionDeniedError(f"This needs a key with the scope `{SCOPE}`; yours has not got it.")
        return known

    Operator = Annotated[Caller, Depends(operator)]

    @router.get("/queue", response_model=Queue, responses=errors(400, 401, 403, 404, 503))
    async def get_queue(
        _: Operator, pool: Annotated[str | None, Query(pattern=NAME, description="Default: every pool.")] = None
    ) -> Response:
        """Show classes, flows, workers and leases of the pools, as they are now in Redis. Seconds are GPU-seconds.

        At most a thousand flows of a class (those with the largest backlog first), workers and leases of a pool are
        listed; the sums of pool and class count all of them.
        """
        return JSONResponse(asdict(Queue(list(await gateway.queue(pool or "")))))

    @router.post(
        "/queue/drain",
        response_model=Drain,
        responses=errors(400, 401, 403, 408, 413, 415, 429, 503),
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": _DRAIN_FIELDS}}},
        },
    )
    async def set_drain(request: Request, known: Operator) -> Response:
        """Give a worker or a pool no more work and let it yield what runs; or end that. Repeating it is harmless."""
        fields = await read_fields(request, known.tenant_id)
        for name in fields:
            if name not in _DRAIN_FIELDS["properties"]:
                shown = ascii(name[:60])[1:-1]
                message = f"Unknown field {shown}; known are pool, worker_id, is_draining."
                raise InvalidRequestError(message, param=shown)
        pool, worker_id = _name(fields, "pool"), _name(fields, "worker_id", is_required=False)
        is_draining = fields.get("is_draining")
        if not isinstance(is_draining, bool):
            raise InvalidRequestError("is_draining must be true or false.", param="is_draining")
        num_workers = await gateway.set_drain(known, pool, worker_id, is_draining)
        return JSONResponse(asdict(Drain(pool, worker_id or None, is_draining, num_workers)))

    return router


def _name(fields: Mapping[str, Any], name: str, *, is_required: bool = True) -> str:
    value = fields.get(name)
    if value is None and not is_required:
        return ""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        message = f"{name} must be 1 to 200 letters, digits or any of . _ @ : + -; got {show(value)}."
        raise InvalidRequestError(message, param=name)
    return value
