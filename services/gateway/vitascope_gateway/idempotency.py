"""A request that is sent twice makes one job: by its Idempotency-Key, or because a stock client tries again.

The key is written in the transaction that admits the job, so whoever commits first has made it, and everybody else
finds it: there is no state "in flight" that a crash could leave behind.

A stock client (those of the OpenAI API) sends no key when it repeats a request, but numbers its tries in
`x-stainless-retry-count`. The same body under the same API key with a higher number than the last one is a repetition;
the first try never is, since people do ask for the same thing twice.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.datastructures import Headers

from vitascope_common import ids
from vitascope_common.database import Database
from vitascope_common.errors import InvalidRequestError, UnavailableError
from vitascope_common.tables import idempotency_keys
from vitascope_gateway.body import EdgeError

KEY_HEADER, COUNT_HEADER = "idempotency-key", "x-stainless-retry-count"
KEY_TTL_MS = 24 * 3600 * 1000
RETRY_TTL_MS = 15 * 60 * 1000
"""How long the repetition of a stock client is known as one."""
SWEEP_S = 600.0

_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,4}", re.ASCII)
_log = structlog.stdlib.get_logger("vitascope.gateway")


class AlreadyMadeError(Exception):
    """The request has made a job before."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


@dataclass(frozen=True)
class Mark:
    """What a request says of itself, before anybody has read its body. `key` None: the client gave none."""

    key: str | None
    num_retries: int


@dataclass(frozen=True)
class Repeatable:
    """One request that can be recognised when it comes again."""

    tenant_id: str
    key: str
    is_named: bool  # by the client; else derived from API key and body
    body_sha256: str
    num_retries: int
    arrived_at_ms: int

    @property
    def may_be_made(self) -> bool:
        """Whether the request can have come before; the first try of a stock client cannot."""
        return self.is_named or self.num_retries > 0

    @property
    def expires_at_ms(self) -> int:
        """When the same key means a new request."""
        return self.arrived_at_ms + (KEY_TTL_MS if self.is_named else RETRY_TTL_MS)


def mark_of(headers: Headers) -> Mark | None:
    """Read what a request says; None: it cannot be recognised. Raises: InvalidRequestError: the key is no key."""
    keys, count = headers.getlist(KEY_HEADER), headers.get(COUNT_HEADER, "")
    if len(keys) > 1 or (keys and not _KEY.fullmatch(keys[0])):
        raise InvalidRequestError(
            "Idempotency-Key must be one text of 1 to 255 printable ASCII characters.", param=KEY_HEADER
        )
    num_retries = int(count) if _COUNT.fullmatch(count) else None
    if not keys and num_retries is None:
        return None
    return Mark(keys[0] if keys else None, num_retries or 0)


def repeatable(mark: Mark, tenant_id: str, api_key_sha256: str, what: str, fields: Mapping[str, Any]) -> Repeatable:
    """Return how the request for `what` with these fields is recognised."""
    parts = {name: _digest(value) for name, value in fields.items()}
    body_sha256 = sha256(json.dumps([what, parts], sort_keys=True).encode()).hexdigest()
    key = f"key:{mark.key}" if mark.key is not None else f"sdk:{api_key_sha256}:{body_sha256}"
    return Repeatable(tenant_id, key, mark.key is not None, body_sha256, mark.num_retries, ids.now_ms())


async def recall(connection: AsyncConnection, request: Repeatable) -> str | None:
    """Return the job that this request has made already; None: none. Raises: EdgeError: 422, the key's body differs."""
    query = (
        sa.update(idempotency_keys)
        .where(
            idempotency_keys.c.tenant_id == request.tenant_id,
            idempotency_keys.c.key == request.key,
            _is_made(request),
        )
        .values(
            num_retries=sa.case(
                (idempotency_keys.c.num_retries < request.num_retries, request.num_retries),
                else_=idempotency_keys.c.num_retries,
            )
        )
        .returning(idempotency_keys.c.job_id, idempotency_keys.c.body_sha256)
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None
    if row.body_sha256 != request.body_sha256:
        raise EdgeError(
            422,
            "idempotency_key_reuse",
            "This Idempotency-Key was used with another request in the last 24 hours; send another key, or the same "
            "request.",
            param=KEY_HEADER,
        )
    return str(row.job_id)


async def claim(connection: AsyncConnection, request: Repeatable, job_id: str) -> None:
    """Bind a request to the job that it is about to make.

    Raises:
        AlreadyMadeError: it has made one; EdgeError: as `recall`.
        UnavailableError: the one that it has made is being forgotten just now.
    """
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    values = {
        "body_sha256": request.body_sha256,
        "job_id": job_id,
        "num_retries": request.num_retries,
        "created_at_ms": request.arrived_at_ms,
        "expires_at_ms": request.expires_at_ms,
    }
    statement = insert(idempotency_keys).values(tenant_id=request.tenant_id, key=request.key, **values)
    statement = statement.on_conflict_do_update(
        index_elements=["tenant_id", "key"], set_=values, where=sa.not_(_is_made(request))
    )
    bound = await connection.execute(statement.returning(idempotency_keys.c.job_id))
    if bound.first() is None:
        made = await recall(connection, request)
        raise UnavailableError if made is None else AlreadyMadeError(made)


def _is_made(request: Repeatable) -> sa.ColumnElement[bool]:
    """Tell whether the row of this key stands for the same request."""
    row = idempotency_keys.c
    is_kept = row.expires_at_ms > request.arrived_at_ms
    if request.is_named:
        return is_kept
    is_repetition = sa.and_(sa.literal(request.num_retries >= 1), row.num_retries < request.num_retries)
    # It was overtaken: its client gave up on it, tried again, and that try has been admitted.
    is_overtaken = sa.and_(row.num_retries > request.num_retries, row.created_at_ms >= request.arrived_at_ms)
    return sa.and_(is_kept, sa.or_(is_repetition, is_overtaken))


async def sweep(database: Database) -> int:
    """Forget what has expired; return how many."""
    async with database.transaction() as connection:
        query = sa.delete(idempotency_keys).where(idempotency_keys.c.expires_at_ms <= ids.now_ms())
        return (await connection.execute(query)).rowcount


async def sweep_for_ever(database: Database) -> None:
    """Sweep every ten minutes. A database that is away costs a round."""
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            await sweep(database)
        except UnavailableError:
            _log.warning("idempotency.not_swept")


def _digest(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return f"{type(value).__name__}:{sha256(data).hexdigest()}"
