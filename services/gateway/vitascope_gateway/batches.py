"""Batches: files of requests that are worked off within a day. A batch of another tenant does not exist here.

This is what clients do with them; `batch_work.py` does the work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

import structlog

from vitascope_common import ids
from vitascope_common.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
)
from vitascope_gateway.files import INPUT, File, Files, read_ttl_ms
from vitascope_gateway.idempotency import Mark, Repeatable, repeatable
from vitascope_gateway.request import read_labels, show
from vitascope_gateway.service import Caller

ENDPOINT: Final = "/v1/videos"
WINDOW: Final = "24h"
WINDOW_MS = 24 * 3600 * 1000
SERVICE_CLASS = "batch"
MAX_BATCHES = 20
"""Of one tenant, under way at once."""
FIELDS = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")

_log = structlog.stdlib.get_logger("vitascope.gateway")


class BatchState(StrEnum):
    """What a client sees. validating -> in_progress -> finalizing -> completed or expired; cancelling on the way."""

    VALIDATING = "validating"
    FAILED = "failed"  # the file cannot be used: no job was made
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class LineState(StrEnum):
    """Of one line of a batch."""

    PENDING = "pending"
    ADMITTED = "admitted"  # it has a job
    DONE = "done"
    FAILED = "failed"


CAN_BE_CANCELLED = (BatchState.VALIDATING, BatchState.IN_PROGRESS)


@dataclass(frozen=True)
class Batch:
    """One batch, as SQL has it."""

    batch_id: str
    tenant_id: str
    input_file_id: str
    labels: Mapping[str, str]
    base_url: str
    output_ttl_ms: int
    created_at_ms: int
    deadline_at_ms: int
    state: BatchState = BatchState.VALIDATING
    errors: Sequence[Mapping[str, Any]] = ()
    num_lines: int = 0
    num_completed: int = 0
    num_failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at_ms: int | None = None
    finalizing_at_ms: int | None = None
    cancelling_at_ms: int | None = None
    ended_at_ms: int | None = None
    claim: str | None = None


@dataclass(frozen=True)
class Asked:
    """A new batch, or the one that the same request has made before."""

    batch: Batch
    is_replayed: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a batch. `status_code` and `error` are those of the answer that refuses it."""

    number: int
    custom_id: str
    start_byte: int
    num_bytes: int
    state: LineState = LineState.PENDING
    job_id: str | None = None
    status_code: int | None = None
    error: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """How many lines of a batch are in which state."""

    num_pending: int = 0
    num_admitted: int = 0
    num_completed: int = 0
    num_failed: int = 0

    @property
    def num_open(self) -> int:
        """Those that something will yet become of."""
        return self.num_pending + self.num_admitted


@dataclass(frozen=True)
class End:
    """How a batch ended, and what it leaves; no file where nothing would be in it."""

    state: BatchState
    output: File | None
    errors: File | None
    num_completed: int
    num_failed: int


class TooManyBatchesError(QuotaExceededError):
    """A tenant has as many batches under way as it may. There is room when one ends, which may be tomorrow."""

    is_passing = False


class BatchStore(Protocol):
    """SQL. Every method raises UnavailableError when the database is away."""

    async def made(self, sent: Repeatable) -> str | None:
        """Return the batch that this request has made already."""
        ...

    async def add(self, batch: Batch, sent: Repeatable | None, max_batches: int) -> str:
        """Write a batch, unless the request has made one; return the id of the one there is.

        Raises: TooManyBatchesError: as many of this tenant are under way.
        """
        ...

    async def batch(self, tenant_id: str, batch_id: str) -> Batch | None: ...
    async def page(self, tenant_id: str, after: str | None, limit: int) -> tuple[Sequence[Batch], bool]: ...
    async def cancel(self, tenant_id: str, batch_id: str, now_ms: int) -> bool: ...

    async def claim(self, claim: str, now_ms: int, lease_ms: int) -> Batch | None:
        """Take the batch that has been due for longest; nobody else works on it until the lease ends."""
        ...

    async def renew(self, batch: Batch, until_ms: int) -> bool:
        """Move the end of a lease, or give it back: then work is due at that time. False: another has it."""
        ...

    async def begin(self, batch: Batch, lines: Sequence[Line], now_ms: int) -> bool:
        """Write the lines of a valid file; from now on they are worked off. False: somebody else has, or cancelled."""
        ...

    async def reject(self, batch: Batch, errors: Sequence[Mapping[str, Any]], now_ms: int) -> bool: ...
    async def finalize(self, batch: Batch, now_ms: int) -> bool: ...
    async def settle(self, batch: Batch) -> Counts:
        """Write down which lines' jobs are over, and count."""
        ...

    async def lines(self, batch_id: str, state: LineState | None, limit: int, after: int = 0) -> Sequence[Line]:
        """Return lines: those of a state, the ones that were tried least first; or all, from a number on."""
        ...

    async def refuse(self, batch_id: str, number: int, status_code: int, error: Mapping[str, Any]) -> None:
        """End a pending line that is not to become a job."""
        ...

    async def put_off(self, batch_id: str, number: int) -> None:
        """Let others go before a pending line."""
        ...

    async def give_up(self, batch_id: str, state: LineState, error: Mapping[str, Any]) -> None:
        """End all lines in a state, for a reason that is none of theirs."""
        ...

    async def end(self, batch: Batch, end: End, now_ms: int) -> bool:
        """End a batch and let its files be seen, in one transaction. False: somebody else has."""
        ...

    async def num_under_way(self) -> int:
        """Return how many batches are not over, of all tenants."""
        ...

    async def sweep(self, before_ms: int, limit: int) -> int:
        """Delete batches that ended before; return how many."""
        ...


class Batches:
    """The use cases."""

    def __init__(self, store: BatchStore, files: Files) -> None:
        self._store = store
        self._files = files

    async def create(self, caller: Caller, fields: Mapping[str, Any], base_url: str, mark: Mark | None = None) -> Asked:
        """Promise to work off a file. A request that comes again makes no second batch.

        Raises:
            InvalidRequestError: names the field at fault and what is allowed.
            PermissionDeniedError: the plan does not include the service class batch.
            NotFoundError: no such file; the batch that this request has made is swept.
            TooManyBatchesError: too many are under way.
            UnavailableError: the database is away; UnknownOutcomeError: it went while it committed.
        """
        batch = await self._read(caller, fields, base_url)
        if SERVICE_CLASS not in caller.classes:
            raise PermissionDeniedError(f'Your plan does not include the service class "{SERVICE_CLASS}".')
        sent = await repeatable(mark, caller.tenant_id, caller.api_key_sha256, "batch", fields)
        batch_id = await self._store.made(sent) if sent is not None and sent.may_be_made else None
        if batch_id is None:
            file = await self._files.file(caller.tenant_id, batch.input_file_id)
            if file.purpose != INPUT:
                raise InvalidRequestError(f'The purpose of the file must be "{INPUT}".', param="input_file_id")
            batch_id = await self._store.add(batch, sent, MAX_BATCHES)
            if batch_id == batch.batch_id:
                _log.info("batch.created", batch=batch_id, tenant=caller.tenant_id, num_bytes=file.num_bytes)
                return Asked(batch)
        return Asked(await self.batch(caller.tenant_id, batch_id), is_replayed=True)

    async def _read(self, caller: Caller, fields: Mapping[str, Any], base_url: str) -> Batch:
        for name in fields:
            if name not in FIELDS:
                shown = ascii(name[:60])[1:-1]
                raise InvalidRequestError(f"Unknown field {shown}; known are {', '.join(FIELDS)}.", param=shown)
        for name, allowed in (("endpoint", ENDPOINT), ("completion_window", WINDOW)):
            if fields.get(name) != allowed:
                message = f'{name} must be "{allowed}"; got {show(fields.get(name))}.'
                raise InvalidRequestError(message, param=name)
        file_id = fields.get("input_file_id")
        if not isinstance(file_id, str):
            raise InvalidRequestError("input_file_id must be the id of an uploaded file.", param="input_file_id")
        labels = fields.get("metadata")
        now_ms = ids.now_ms()
        return Batch(
            batch_id=ids.new_batch_id(),
            tenant_id=caller.tenant_id,
            input_file_id=file_id,
            labels=read_labels({} if labels is None else labels),
            base_url=base_url,
            output_ttl_ms=read_ttl_ms(fields.get("output_expires_after"), "output_expires_after"),
            created_at_ms=now_ms,
            deadline_at_ms=now_ms + WINDOW_MS,
        )

    async def batch(self, tenant_id: str, batch_id: str) -> Batch:
        """Return one batch. Raises: NotFoundError."""
        found = await self._store.batch(tenant_id, batch_id) if ids.is_batch_id(batch_id) else None
        if found is None:
            raise NotFoundError("There is no batch with this id.", param="batch_id")
        return found

    async def page(self, tenant_id: str, after: str | None, limit: int) -> tuple[Sequence[Batch], bool]:
        """Return one page, newest first, and whether more follow. Raises: InvalidRequestError."""
        if after is not None and not ids.is_batch_id(after):
            raise InvalidRequestError("after must be the id of one of your batches.", param="after")
        return await self._store.page(tenant_id, after, limit)

    async def cancel(self, tenant_id: str, batch_id: str) -> Batch:
        """Make no more of a batch; what is done already goes into its output.

        Raises:
            NotFoundError: no such batch; ConflictError: it is over, or about to be.
        """
        await self._store.cancel(tenant_id, batch_id, ids.now_ms())
        batch = await self.batch(tenant_id, batch_id)
        if batch.state not in (BatchState.CANCELLING, BatchState.CANCELLED):
            raise ConflictError(f"A batch that is {batch.state} cannot be cancelled.", param="batch_id")
        return batch
