"""A request that is sent twice makes one job: by its Idempotency-Key, or because a stock client tries again.

What a request has made is written in the transaction that admits the job, so whoever commits first has made it, and
everybody else finds it: there is no state "in flight" that a crash could leave behind.

A stock client (those of the OpenAI API) sends no key when it repeats a request, but numbers the tries of a call in
`x-stainless-retry-count`. Calls with the same body under the same API key are told apart by that: a call has each
number once, so a try belongs to a call that has had a lower one and not this one. A first try begins a call, since
people do ask for the same thing twice; also one that is refused because there is too much to do, as its client tries
again.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.datastructures import Headers

from vitascope_common import ids
from vitascope_common.database import Database, upsert_into
from vitascope_common.errors import InvalidRequestError
from vitascope_common.tables import idempotency_keys
from vitascope_gateway.body import LARGE_BYTES, EdgeError
from vitascope_gateway.request import IGNORED_FIELDS

KEY_HEADER, COUNT_HEADER = "idempotency-key", "x-stainless-retry-count"
REPLAYED_HEADER = "idempotent-replayed"
REPLAYED_ANSWER = {"headers": {REPLAYED_HEADER: {"schema": {"type": "string", "enum": ["true"]}}}}
"""How the reference describes an answer that may have it."""
KEY_TTL_MS = 24 * 3600 * 1000
RETRY_TTL_MS = 15 * 60 * 1000
"""How long a call of a stock client waits for its next try."""
MAX_RETRIES = 60
MAX_CALLS = 64
"""With the same body under the same API key; of more, the newest."""
SWEEP_S = 600.0

_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,2}", re.ASCII)
_ROW = idempotency_keys.c
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
    arrived_at_ms: int


@dataclass(frozen=True)
class Call:
    """What a request has made, and which of its tries have come."""

    job_id: str  # "": nothing yet, its first try was refused
    tries: int  # bit n: the one that said n retries
    seen_at_ms: int  # when the last of them arrived
    expires_at_ms: int


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
    def is_first_try(self) -> bool:
        """Whether a call of a stock client begins with it."""
        return not self.is_named and self.num_retries == 0

    @property
    def has_next_try(self) -> bool:
        """Whether the request is recognised when its client tries again by itself, and counts."""
        return self.is_named or self.num_retries < MAX_RETRIES

    def begin(self, job_id: str) -> Call:
        """Return what this request makes as the first of its kind."""
        ttl_ms = KEY_TTL_MS if self.is_named else RETRY_TTL_MS
        return Call(job_id, 1 << self.num_retries, self.arrived_at_ms, self.arrived_at_ms + ttl_ms)

    def join(self, call: Call) -> Call:
        """Return a call with this try among the others. A key expires when it would have."""
        seen_at_ms = max(call.seen_at_ms, self.arrived_at_ms)
        expires_at_ms = call.expires_at_ms if self.is_named else seen_at_ms + RETRY_TTL_MS
        return replace(
            call, tries=call.tries | 1 << self.num_retries, seen_at_ms=seen_at_ms, expires_at_ms=expires_at_ms
        )

    def find(self, calls: Sequence[Call]) -> Call | None:
        """Return the call that this request belongs to, of those with its key."""
        if self.is_named:
            return calls[0] if calls else None
        return max(filter(self._is_try_of, calls), key=lambda call: call.tries, default=None)

    def _is_try_of(self, call: Call) -> bool:
        bit = 1 << self.num_retries
        is_repetition = call.tries & (bit - 1) != 0
        # It was overtaken: its client gave up on it and tried again while it was on its way.
        is_overtaken = call.tries > bit and call.seen_at_ms >= self.arrived_at_ms
        return not call.tries & bit and (is_repetition or is_overtaken)


def mark_of(headers: Headers) -> Mark | None:
    """Read what a request says; None: it cannot be recognised. Raises: InvalidRequestError: the key is no key."""
    keys, count = headers.getlist(KEY_HEADER), headers.get(COUNT_HEADER, "")
    if len(keys) > 1 or (keys and not _KEY.fullmatch(keys[0])):
        raise InvalidRequestError(
            "Idempotency-Key must be one text of 1 to 255 printable ASCII characters.", param=KEY_HEADER
        )
    num_retries = int(count) if _COUNT.fullmatch(count) and int(count) <= MAX_RETRIES else None
    if not keys and num_retries is None:
        return None
    return Mark(keys[0] if keys else None, num_retries or 0, ids.now_ms())


async def repeatable(
    mark: Mark | None, tenant_id: str, api_key_sha256: str, what: str, fields: Mapping[str, Any]
) -> Repeatable | None:
    """Return how the request for `what` with these fields is recognised: by what they say, in JSON or a form.

    None: it cannot be, as it has no mark.

    Raises:
        InvalidRequestError: they are nested too deeply to be looked at.
    """
    if mark is None:
        return None
    is_large = _num_chars(fields) > LARGE_BYTES  # a picture takes a while
    body_sha256 = await asyncio.to_thread(_digest_of, what, fields) if is_large else _digest_of(what, fields)
    key = f"key:{mark.key}" if mark.key is not None else f"sdk:{api_key_sha256}:{body_sha256}"
    return Repeatable(tenant_id, key, mark.key is not None, body_sha256, mark.num_retries, mark.arrived_at_ms)


def _num_chars(fields: Mapping[str, Any]) -> int:
    """Return how much text and how many bytes fields hold, however deep."""
    num_chars, left = 0, [*fields.values()]
    while left:
        value = left.pop()
        if isinstance(value, str | bytes):
            num_chars += len(value)
        elif isinstance(value, Mapping | list):
            left.extend(value.values() if isinstance(value, Mapping) else value)
    return num_chars


def _digest_of(what: str, fields: Mapping[str, Any]) -> str:
    said = {name: value for name, value in fields.items() if value is not None and name not in IGNORED_FIELDS}
    try:
        parts = sorted((name, _digest(value)) for name, value in said.items())
    except RecursionError:
        raise InvalidRequestError("The body is nested too deeply.") from None
    return sha256(json.dumps([what, parts]).encode()).hexdigest()


def _digest(value: Any) -> str:
    if isinstance(value, bytes):
        return f"file {sha256(value).hexdigest()}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)  # as a form would say it
    return sha256(text.encode(errors="surrogatepass")).hexdigest()


def replayed(is_replayed: bool) -> dict[str, str]:
    """Return the header of an answer that shows what the same request has made before."""
    return {REPLAYED_HEADER: "true"} if is_replayed else {}


async def peek(connection: AsyncConnection, request: Repeatable) -> str | None:
    """Return the job that this request has made already; None: none. Raises: EdgeError: 422, the key's body differs."""
    query = sa.select(_ROW.body_sha256, _ROW.calls).where(_ROW.tenant_id == request.tenant_id, _ROW.key == request.key)
    row = (await connection.execute(query)).one_or_none()
    found = None if row is None else request.find(_live(row.calls, row.body_sha256, request))
    return None if found is None else found.job_id or None


async def find(database: Database, request: Repeatable) -> str | None:
    """Return what this request has made already, and count it among the tries of its call. Raises: as `peek`."""
    async with database.read() as connection:
        made = await peek(connection, request)
    if made is None or request.is_named:
        return made
    async with database.transaction() as connection:
        return await bind(connection, request, None)


async def bind(connection: AsyncConnection, request: Repeatable, job_id: str | None) -> str | None:
    """Bind a request to the job that it is about to make; return the one that it has made already instead.

    Without a job of its own it is counted among the tries of a call, if it is one. The row is held until the
    transaction ends: requests with the same key take turns. Raises: EdgeError: as `peek`.
    """
    calls = await _hold(connection, request)
    found = request.find(calls)
    if found is not None:
        now = replace(request.join(found), job_id=found.job_id or job_id or "")
        calls = [now if call is found else call for call in calls]
    elif job_id is not None:
        calls = [request.begin(job_id), *calls]
    else:
        return None
    await _keep(connection, request, calls)
    return None if found is None else found.job_id or None


async def note_refusal(database: Database, request: Repeatable) -> None:
    """Begin a call whose first try was refused for the moment: the next one is not that of an earlier call."""
    async with database.transaction() as connection:
        calls = await _hold(connection, request)
        await _keep(connection, request, [request.begin(""), *calls])


async def _hold(connection: AsyncConnection, request: Repeatable) -> list[Call]:
    """Return the calls with the key of a request, newest first; their row is held until the transaction ends."""
    new = upsert_into(connection, idempotency_keys).values(
        tenant_id=request.tenant_id,
        key=request.key,
        body_sha256=request.body_sha256,
        calls=[],
        expires_at_ms=request.arrived_at_ms,
    )
    hold = new.on_conflict_do_update(
        index_elements=["tenant_id", "key"], set_={"expires_at_ms": _ROW.expires_at_ms}
    ).returning(_ROW.body_sha256, _ROW.calls)
    row = (await connection.execute(hold)).one()
    return _live(row.calls, row.body_sha256, request)


async def _keep(connection: AsyncConnection, request: Repeatable, calls: Sequence[Call]) -> None:
    kept = calls[:MAX_CALLS]
    keep = sa.update(idempotency_keys).where(_ROW.tenant_id == request.tenant_id, _ROW.key == request.key)
    await connection.execute(
        keep.values(
            body_sha256=request.body_sha256,
            calls=[asdict(call) for call in kept],
            expires_at_ms=max(call.expires_at_ms for call in kept),
        )
    )


def _live(stored: Sequence[Mapping[str, Any]], body_sha256: str, request: Repeatable) -> list[Call]:
    """Return the stored calls that count still, newest first."""
    calls = [call for call in (Call(**each) for each in stored) if call.expires_at_ms > request.arrived_at_ms]
    if calls and body_sha256 != request.body_sha256:
        raise EdgeError(
            422,
            "idempotency_key_reuse",
            "This Idempotency-Key was used with another request in the last 24 hours; send another key, or the same "
            "request.",
            param=KEY_HEADER,
        )
    return calls


async def sweep(database: Database) -> int:
    """Forget what has expired; return how many keys."""
    async with database.transaction() as connection:
        query = sa.delete(idempotency_keys).where(_ROW.expires_at_ms <= ids.now_ms())
        return (await connection.execute(query)).rowcount


async def sweep_for_ever(database: Database) -> None:
    """Sweep every ten minutes. Whatever goes wrong costs a round."""
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            await sweep(database)
        except Exception as error:
            _log.error("idempotency.not_swept", exc_info=error)
