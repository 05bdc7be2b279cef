"""The rows of webhook_deliveries: made with the end of a job, claimed for one attempt at a time, settled, forgotten.

An attempt holds its row by a lease: `next_at_ms` lies at its end, and `claim` names the attempt. A sender that dies
leaves both behind, and the row is due again by itself. So an event may arrive twice, and is never lost.
"""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common import webhooks
from vitascope_common.database import Database
from vitascope_common.jobs import JobState
from vitascope_common.tables import webhook_deliveries, webhook_endpoints, webhook_tenants
from vitascope_common.webhooks import SigningSecret

OF_REQUEST = "request"
"""The receiver that a request itself named, as `delivery_id_of` is told it."""
SWEEP_ROWS = 1000

_ROW = webhook_deliveries.c
_IS_PENDING = _ROW.state == sa.literal_column("'pending'")  # as the index says it: SQLite compares the words

Lane = tuple[str, str]
"""Tenant and host: what one receiver is. What goes wrong there is nobody else's business."""


@dataclass(frozen=True)
class JobEnd:
    """A job that has just ended, and whom its request wanted to be told."""

    job_id: str
    tenant_id: str
    state: JobState
    error_code: str | None
    error_message: str | None
    webhook_url: str | None
    webhook_events: str
    traceparent: str


@dataclass(frozen=True)
class Due:
    """A delivery whose time has come."""

    delivery_id: str
    tenant_id: str
    host: str

    @property
    def lane(self) -> Lane:
        """Whose places it needs."""
        return self.tenant_id, self.host


@dataclass(frozen=True)
class Claimed:
    """A delivery that is this sender's to attempt until its lease ends."""

    delivery_id: str
    tenant_id: str
    host: str
    event_id: str
    job_id: str
    endpoint_id: str | None
    url: str
    payload: str
    num_attempts: int  # this one included
    created_at_ms: int
    claim: str
    traceparent: str
    signing: SigningSecret | None
    """None: the endpoint is deleted."""
    is_disabled: bool

    @property
    def lane(self) -> Lane:
        """Whose places it holds."""
        return self.tenant_id, self.host


@dataclass(frozen=True)
class Attempted:
    """What an attempt has come to. `next_at_ms` None: there is no other one."""

    is_delivered: bool
    next_at_ms: int | None
    at_ms: int
    duration_ms: int | None  # None: nothing was sent
    status: int | None = None
    error: str | None = None
    disables_endpoint: bool = False


@dataclass(frozen=True)
class Backlog:
    """What is still to be delivered."""

    num_pending: int
    oldest_at_ms: int | None  # when the oldest event happened
    due_at_ms: int | None  # when the next attempt is, or should have been


async def announce(connection: AsyncConnection, end: JobEnd, now_ms: int) -> None:
    """Have everybody told who wants to know of a job's end; in the transaction that ends it, and so exactly once."""
    event_type, event_id = webhooks.event_type_of(end.state), webhooks.event_id_of(end.job_id)
    table = webhook_endpoints.c
    query = sa.select(table.endpoint_id, table.url, table.event_types).where(
        table.tenant_id == end.tenant_id, table.disabled_at_ms.is_(None)
    )
    receivers: list[tuple[str | None, str]] = [
        (row.endpoint_id, row.url) for row in await connection.execute(query) if event_type in row.event_types
    ]
    if end.webhook_url is not None and event_type in (end.webhook_events.split() or webhooks.EVENT_TYPES):
        receivers.append((None, end.webhook_url))
    if not receivers:
        return
    data: dict[str, Any] = {"id": end.job_id, "status": event_type.removeprefix("video.")}
    if event_type == webhooks.FAILED:
        data["error"] = {"code": end.error_code or "internal", "message": end.error_message or ""}
    common = {
        "tenant_id": end.tenant_id,
        "event_id": event_id,
        "event_type": event_type,
        "job_id": end.job_id,
        "payload": webhooks.payload(event_id, event_type, now_ms, data),
        "traceparent": end.traceparent,
        "next_at_ms": now_ms,
        "created_at_ms": now_ms,
    }
    rows = [
        {
            "delivery_id": webhooks.delivery_id_of(event_id, endpoint_id or OF_REQUEST),
            "endpoint_id": endpoint_id,
            "url": url,
            "host": webhooks.host_of(url),
            **common,
        }
        for endpoint_id, url in receivers
    ]
    await connection.execute(sa.insert(webhook_deliveries), rows)


class Deliveries:
    """What the sender does with the rows; any number of senders may. Raises UnavailableError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(
        self, now_ms: int, limit: int, full_tenants: Collection[str], full_lanes: Collection[Lane]
    ) -> list[Due]:
        """Read what is due, longest first, except what would find no place now."""
        query = (
            sa.select(_ROW.delivery_id, _ROW.tenant_id, _ROW.host)
            .where(_IS_PENDING, _ROW.next_at_ms <= now_ms)
            .order_by(_ROW.next_at_ms)
            .limit(limit)
        )
        if full_tenants:
            query = query.where(_ROW.tenant_id.not_in(full_tenants))
        for tenant_id, host in full_lanes:
            query = query.where(sa.or_(_ROW.tenant_id != tenant_id, _ROW.host != host))
        async with self._database.read() as connection:
            return [Due(*row) for row in await connection.execute(query)]

    async def claim(self, delivery_ids: Sequence[str], now_ms: int, lease_ms: int) -> list[Claimed]:
        """Begin an attempt of each that is still due; those that another sender was faster with are left out."""
        claim = secrets.token_hex(8)
        take = (
            sa.update(webhook_deliveries)
            .where(_ROW.delivery_id.in_(delivery_ids), _IS_PENDING, _ROW.next_at_ms <= now_ms)
            .values(
                claim=claim,
                next_at_ms=now_ms + lease_ms,
                num_attempts=_ROW.num_attempts + 1,
                last_attempt_at_ms=now_ms,
            )
            .returning(_ROW.delivery_id)
        )
        endpoint, tenant = webhook_endpoints.c, webhook_tenants.c
        of_row = [_ROW[field.name] for field in fields(Claimed) if field.name in _ROW and field.name != "url"]
        query = sa.select(
            *of_row,
            sa.func.coalesce(endpoint.url, _ROW.url).label("url"),
            endpoint.disabled_at_ms,
            *(
                sa.case((_ROW.endpoint_id.is_(None), tenant[name]), else_=endpoint[name]).label(name)
                for name in ("secret", "old_secret", "old_secret_expires_at_ms")
            ),
        ).select_from(
            webhook_deliveries.outerjoin(
                webhook_endpoints,
                sa.and_(endpoint.endpoint_id == _ROW.endpoint_id, endpoint.tenant_id == _ROW.tenant_id),
            ).outerjoin(webhook_tenants, tenant.tenant_id == _ROW.tenant_id)
        )
        async with self._database.transaction() as connection:
            taken = (await connection.execute(take)).scalars().all()
            if not taken:
                return []
            found = (await connection.execute(query.where(_ROW.delivery_id.in_(taken)))).mappings().all()
        return [_claimed(dict(row)) for row in found]

    async def settle(self, claimed: Claimed, attempted: Attempted) -> bool:
        """Write down what an attempt has come to. False: its lease had ended, and it is another's by now."""
        state = "delivered" if attempted.is_delivered else "pending" if attempted.next_at_ms is not None else "failed"
        end = (
            sa.update(webhook_deliveries)
            .where(_ROW.delivery_id == claimed.delivery_id, _ROW.claim == claimed.claim, _IS_PENDING)
            .values(
                state=state,
                claim=None,
                url=claimed.url,
                host=webhooks.host_of(claimed.url),
                next_at_ms=attempted.at_ms if attempted.next_at_ms is None else attempted.next_at_ms,
                last_status=attempted.status,
                last_error=attempted.error,
                last_duration_ms=attempted.duration_ms,
                finished_at_ms=None if state == "pending" else attempted.at_ms,
            )
            .returning(_ROW.delivery_id)
        )
        table = webhook_endpoints.c
        disable = (
            sa.update(webhook_endpoints)
            .where(table.endpoint_id == claimed.endpoint_id, table.url == claimed.url, table.disabled_at_ms.is_(None))
            .values(disabled_at_ms=attempted.at_ms)
        )
        async with self._database.transaction() as connection:
            is_settled = (await connection.execute(end)).one_or_none() is not None
            if is_settled and attempted.disables_endpoint and claimed.endpoint_id is not None:
                await connection.execute(disable)
        return is_settled

    async def backlog(self) -> Backlog:
        """Count what is pending."""
        query = sa.select(sa.func.count(), sa.func.min(_ROW.created_at_ms), sa.func.min(_ROW.next_at_ms))
        async with self._database.read() as connection:
            return Backlog(*(await connection.execute(query.where(_IS_PENDING))).one())

    async def sweep(self, finished_before_ms: int) -> int:
        """Forget some of what was finished before then; return how many. Fewer than SWEEP_ROWS: that was all."""
        old = sa.select(_ROW.delivery_id).where(_ROW.finished_at_ms < finished_before_ms).limit(SWEEP_ROWS)
        async with self._database.transaction() as connection:
            swept = await connection.execute(sa.delete(webhook_deliveries).where(_ROW.delivery_id.in_(old)))
            return swept.rowcount


def _claimed(row: dict[str, Any]) -> Claimed:
    secret, old_secret, expires_at_ms = (row.pop(name) for name in ("secret", "old_secret", "old_secret_expires_at_ms"))
    is_disabled = row.pop("disabled_at_ms") is not None
    signing = None if secret is None else SigningSecret(secret, old_secret, expires_at_ms)
    return Claimed(**row, signing=signing, is_disabled=is_disabled)
