"""SQL: webhook endpoints, their secrets, and the log of deliveries."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from vitascope_common import webhooks
from vitascope_common.database import Database
from vitascope_common.errors import ConflictError
from vitascope_common.tables import webhook_deliveries, webhook_endpoints, webhook_tenants
from vitascope_common.webhooks import SigningSecret
from vitascope_gateway.adapters.paging import page_of
from vitascope_gateway.admission import keep_webhook_secret, once
from vitascope_gateway.idempotency import Repeatable, find
from vitascope_gateway.webhooks import Delivery, Endpoint, TooManyEndpointsError, endpoint_not_found

_ENDPOINT, _TENANT, _DELIVERY = webhook_endpoints.c, webhook_tenants.c, webhook_deliveries.c
_SIGNING = (_TENANT.secret, _TENANT.old_secret, _TENANT.old_secret_expires_at_ms)
_REPLACED = "the secret may have been replaced"
_OF_DELIVERY = [_DELIVERY[field.name] for field in fields(Delivery)]


class SqlWebhooks:
    """Implements webhooks.WebhookStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def made(self, sent: Repeatable) -> str | None:
        """Return the endpoint that this request has made already."""
        return await find(self._database, sent)

    async def add(self, endpoint: Endpoint, max_endpoints: int, sent: Repeatable | None = None) -> str:
        """Write an endpoint, unless the request has made one, or there are too many."""
        count = (
            sa.update(webhook_tenants)
            .where(_TENANT.tenant_id == endpoint.tenant_id, _TENANT.num_endpoints < max_endpoints)
            .values(num_endpoints=_TENANT.num_endpoints + 1)
            .returning(_TENANT.num_endpoints)
        )
        row = {
            "endpoint_id": endpoint.endpoint_id,
            "tenant_id": endpoint.tenant_id,
            "name": endpoint.name,
            "url": endpoint.url,
            "event_types": list(endpoint.event_types),
            "secret": endpoint.signing.secret,
            "created_at_ms": endpoint.created_at_ms,
            "updated_at_ms": endpoint.updated_at_ms,
        }
        hint = _hint("the endpoint may have been made")
        async with once(self._database, sent, endpoint.endpoint_id, hint) as (connection, made):
            if made is None:
                await keep_webhook_secret(connection, endpoint.tenant_id, endpoint.created_at_ms)
                if (await connection.execute(count)).one_or_none() is None:
                    raise TooManyEndpointsError
                await connection.execute(sa.insert(webhook_endpoints).values(row))
        return made or endpoint.endpoint_id

    async def endpoint(self, tenant_id: str, endpoint_id: str) -> Endpoint | None:
        """Return one endpoint."""
        query = sa.select(webhook_endpoints).where(_is_endpoint(tenant_id, endpoint_id))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else _endpoint(row)

    async def endpoints(self, tenant_id: str, after: str | None, limit: int) -> tuple[Sequence[Endpoint], bool]:
        """Return a page, newest first."""
        query = sa.select(webhook_endpoints).where(_ENDPOINT.tenant_id == tenant_id)
        cursor = sa.select(_ENDPOINT.created_at_ms).where(_is_endpoint(tenant_id, after or ""))
        rows, has_more = await page_of(
            self._database, query, cursor, _ENDPOINT.endpoint_id, after, limit, "webhook endpoints"
        )
        return [_endpoint(row) for row in rows], has_more

    async def change(
        self, tenant_id: str, endpoint_id: str, changes: Mapping[str, Any], now_ms: int
    ) -> Endpoint | None:
        """Change an endpoint and enable it."""
        values = dict(changes)
        if "event_types" in values:
            values["event_types"] = list(values["event_types"])
        values |= {"disabled_at_ms": None, "updated_at_ms": now_ms}
        async with self._database.transaction() as connection:
            row = (await connection.execute(_update(tenant_id, endpoint_id, values))).mappings().one_or_none()
        return None if row is None else _endpoint(row)

    async def rotate(
        self,
        tenant_id: str,
        endpoint_id: str,
        secret: str,
        old_expires_at_ms: int | None,
        now_ms: int,
        sent: Repeatable | None = None,
    ) -> tuple[Endpoint, bool]:
        """Replace the secret of an endpoint, unless the request has done so."""
        values = _rotated(_ENDPOINT.secret, secret, old_expires_at_ms) | {"updated_at_ms": now_ms}
        query = sa.select(webhook_endpoints).where(_is_endpoint(tenant_id, endpoint_id))
        async with once(self._database, sent, endpoint_id, _hint(_REPLACED)) as (connection, done):
            asked = _update(tenant_id, endpoint_id, values) if done is None else query
            row = (await connection.execute(asked)).mappings().one_or_none()
            if row is None:
                raise endpoint_not_found()  # in here: the request has not been done
        return _endpoint(row), done is not None

    async def remove(self, tenant_id: str, endpoint_id: str) -> bool:
        """Delete an endpoint. False: there was none."""
        delete = (
            sa.delete(webhook_endpoints).where(_is_endpoint(tenant_id, endpoint_id)).returning(_ENDPOINT.endpoint_id)
        )
        count = (
            sa.update(webhook_tenants)
            .where(_TENANT.tenant_id == tenant_id)
            .values(num_endpoints=_TENANT.num_endpoints - 1)
        )
        async with self._database.transaction() as connection:
            is_removed = (await connection.execute(delete)).one_or_none() is not None
            if is_removed:
                await connection.execute(count)
        return is_removed

    async def default_secret(self, tenant_id: str, now_ms: int) -> SigningSecret:
        """Return the default secret, made now if there is none."""
        query = sa.select(*_SIGNING).where(_TENANT.tenant_id == tenant_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            async with self._database.transaction() as connection:
                await keep_webhook_secret(connection, tenant_id, now_ms)
                row = (await connection.execute(query)).one()
        return SigningSecret(*row)

    async def rotate_default(
        self,
        tenant_id: str,
        secret: str,
        old_expires_at_ms: int | None,
        now_ms: int,
        sent: Repeatable | None = None,
    ) -> tuple[SigningSecret, bool]:
        """Replace the default secret, unless the request has done so."""
        update = (
            sa.update(webhook_tenants)
            .where(_TENANT.tenant_id == tenant_id)
            .values(_rotated(_TENANT.secret, secret, old_expires_at_ms))
            .returning(*_SIGNING)
        )
        query = sa.select(*_SIGNING).where(_TENANT.tenant_id == tenant_id)
        async with once(self._database, sent, tenant_id, _hint(_REPLACED)) as (connection, done):
            await keep_webhook_secret(connection, tenant_id, now_ms)
            row = (await connection.execute(update if done is None else query)).one()
        return SigningSecret(*row), done is not None

    async def deliveries(
        self,
        tenant_id: str,
        job_id: str | None,
        endpoint_id: str | None,
        state: str | None,
        after: str | None,
        limit: int,
    ) -> tuple[Sequence[Delivery], bool]:
        """Return a page of the log, newest first."""
        query = sa.select(*_OF_DELIVERY).where(_DELIVERY.tenant_id == tenant_id)
        wanted = {"job_id": job_id, "endpoint_id": endpoint_id, "state": state}
        for name, value in wanted.items():
            if value is not None:
                query = query.where(_DELIVERY[name] == value)
        cursor = sa.select(_DELIVERY.created_at_ms).where(_is_delivery(tenant_id, after or ""))
        rows, has_more = await page_of(
            self._database, query, cursor, _DELIVERY.delivery_id, after, limit, "webhook deliveries"
        )
        return [Delivery(**row) for row in rows], has_more

    async def replay(self, tenant_id: str, delivery_id: str, new_id: str, now_ms: int) -> Delivery | None:
        """Write a delivery of the same event to the same receiver."""
        is_endpoint = sa.and_(_ENDPOINT.endpoint_id == _DELIVERY.endpoint_id, _ENDPOINT.tenant_id == tenant_id)
        query = (
            sa.select(
                *_OF_DELIVERY, _DELIVERY.traceparent, _ENDPOINT.url.label("endpoint_url"), _ENDPOINT.disabled_at_ms
            )
            .select_from(webhook_deliveries.outerjoin(webhook_endpoints, is_endpoint))
            .where(_is_delivery(tenant_id, delivery_id))
        )
        async with self._database.transaction() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
            if row is None:
                return None
            if row["endpoint_id"] is not None and (row["endpoint_url"] is None or row["disabled_at_ms"] is not None):
                what = "deleted" if row["endpoint_url"] is None else "disabled; update it first"
                raise ConflictError(f"The webhook endpoint of this delivery is {what}.", param="delivery_id")
            url = row["endpoint_url"] or row["url"]
            names = ("event_id", "event_type", "job_id", "endpoint_id", "payload", "traceparent")
            kept = {name: row[name] for name in names}
            fresh = {
                "delivery_id": new_id,
                "tenant_id": tenant_id,
                "url": url,
                "host": webhooks.host_of(url),
                "next_at_ms": now_ms,
                "created_at_ms": now_ms,
            }
            insert = sa.insert(webhook_deliveries).values(kept | fresh).returning(*_OF_DELIVERY)
            return Delivery(**(await connection.execute(insert)).mappings().one())


def _update(tenant_id: str, endpoint_id: str, values: Mapping[str, Any]) -> sa.UpdateBase:
    update = sa.update(webhook_endpoints).where(_is_endpoint(tenant_id, endpoint_id)).values(values)
    return update.returning(webhook_endpoints)


def _hint(what: str) -> str:
    return f"The database stopped to answer; {what}: look at it before you repeat the request."


def _is_endpoint(tenant_id: str, endpoint_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(_ENDPOINT.endpoint_id == endpoint_id, _ENDPOINT.tenant_id == tenant_id)


def _is_delivery(tenant_id: str, delivery_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(_DELIVERY.delivery_id == delivery_id, _DELIVERY.tenant_id == tenant_id)


def _rotated(column: sa.ColumnElement[str], secret: str, old_expires_at_ms: int | None) -> dict[str, Any]:
    """Return the values of an UPDATE that puts a new secret in the place of the one in `column`."""
    old = sa.null() if old_expires_at_ms is None else column
    return {"secret": secret, "old_secret": old, "old_secret_expires_at_ms": old_expires_at_ms}


def _endpoint(row: Mapping[Any, Any]) -> Endpoint:
    return Endpoint(
        endpoint_id=row["endpoint_id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        url=row["url"],
        event_types=tuple(row["event_types"]),
        signing=SigningSecret(row["secret"], row["old_secret"], row["old_secret_expires_at_ms"]),
        disabled_at_ms=row["disabled_at_ms"],
        created_at_ms=row["created_at_ms"],
        updated_at_ms=row["updated_at_ms"],
    )
