"""Files of tenants: what they upload for batches, and what batches leave. A file of another tenant does not exist here.

The row comes first and goes last, so that whatever dies in between, the sweep knows of the object. Nobody sees a file
before all of its bytes are stored.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import structlog

from vitascope_common import ids
from vitascope_common.errors import (
    InvalidRequestError,
    NotFoundError,
    ObjectNotFoundError,
    UnavailableError,
    VitascopeError,
)
from vitascope_common.objectstore import ByteStream, ObjectStore, sha256_of
from vitascope_gateway.forms import object_of

INPUT: Final = "batch"
OUTPUT: Final = "batch_output"
MEDIA_TYPE = "application/jsonl"
MAX_FILE_BYTES = 200_000_000
TTL_S = (3600, 30 * 24 * 3600)
"""What a client may ask for; the longer one is what it gets otherwise."""
STORE_TTL_MS = 3600 * 1000
"""Within which a file is stored; what is not is swept."""
MAX_PAGE = 1000
SWEEP_PAGE = 100

_log = structlog.stdlib.get_logger("vitascope.gateway")


@dataclass(frozen=True)
class File:
    """One file."""

    file_id: str
    tenant_id: str
    filename: str
    purpose: str
    key: str
    created_at_ms: int
    expires_at_ms: int
    num_bytes: int = 0
    sha256: str = ""


class FileStore(Protocol):
    """SQL. Every method raises UnavailableError when the database is away."""

    async def add(self, file: File, sweep_at_ms: int, max_bytes: int | None) -> None:
        """Write the row of a file that nobody sees yet.

        Raises: QuotaExceededError: with it all files of its tenant, seen or not, would have more bytes.
        """
        ...

    async def show(self, file: File, now_ms: int) -> None:
        """Let a stored file be seen. Raises: UnavailableError: it was swept meanwhile."""
        ...

    async def file(self, tenant_id: str, file_id: str, now_ms: int) -> File | None: ...
    async def stored(self, tenant_id: str, file_id: str) -> File | None:
        """Return a file that is stored still, whether it is seen or not."""
        ...

    async def page(
        self, tenant_id: str, purpose: str | None, after: str | None, limit: int, is_ascending: bool, now_ms: int
    ) -> tuple[Sequence[File], bool]: ...
    async def hide(self, tenant_id: str, file_id: str, now_ms: int) -> bool: ...
    async def expire(self, file_id: str, now_ms: int) -> None: ...
    async def expired(self, now_ms: int, limit: int) -> Sequence[File]:
        """Return files that may be swept: none that a batch under way reads."""
        ...

    async def forget(self, file_id: str) -> None: ...


class Files:
    """The use cases."""

    def __init__(self, store: FileStore, objects: ObjectStore, *, max_bytes: int) -> None:
        """`max_bytes`: of all files of a tenant together. What batches leave counts, and is never refused."""
        self._store = store
        self._objects = objects
        self._max_bytes = max_bytes

    async def upload(self, tenant_id: str, filename: str, path: Path, ttl_ms: int) -> File:
        """Keep the input of a batch.

        Raises:
            QuotaExceededError: its tenant has no room for it.
            UnavailableError: database or object store are away.
        """
        file = await self.keep(tenant_id, filename, INPUT, path, ttl_ms, self._max_bytes)
        await self._store.show(file, ids.now_ms())
        _log.info("file.uploaded", file=file.file_id, tenant=tenant_id, num_bytes=file.num_bytes)
        return file

    async def keep(
        self, tenant_id: str, filename: str, purpose: str, path: Path, ttl_ms: int, max_bytes: int | None = None
    ) -> File:
        """Store a file under a key of its own; until somebody lets it be seen, it is to be swept in an hour.

        Raises: as `upload`; with `max_bytes` None there is always room.
        """
        now_ms, file_id = ids.now_ms(), ids.new_file_id()
        key, num_bytes = f"files/{tenant_id}/{file_id}", (await asyncio.to_thread(path.stat)).st_size
        file = File(file_id, tenant_id, filename, purpose, key, now_ms, now_ms + ttl_ms, num_bytes)
        await self._store.add(file, now_ms + STORE_TTL_MS, max_bytes)
        try:
            await asyncio.to_thread(self._objects.put_file, key, path, MEDIA_TYPE)
        except VitascopeError:
            with suppress(UnavailableError):  # then an hour passes until its bytes do not count any more
                await self._store.expire(file_id, ids.now_ms())
            raise
        return replace(file, sha256=await asyncio.to_thread(sha256_of, path))

    async def file(self, tenant_id: str, file_id: str) -> File:
        """Return one file. Raises: NotFoundError."""
        found = await self._store.file(tenant_id, file_id, ids.now_ms()) if ids.is_file_id(file_id) else None
        if found is None:
            raise NotFoundError("There is no file with this id.", param="file_id")
        return found

    async def input_of(self, tenant_id: str, file_id: str) -> File:
        """Return a file that a batch under way reads, its tenant may see it still or not. Raises: NotFoundError."""
        found = await self._store.stored(tenant_id, file_id)
        if found is None:
            raise NotFoundError("The input file is gone.", param="input_file_id")
        return found

    async def page(
        self, tenant_id: str, purpose: str | None, after: str | None, limit: int, is_ascending: bool
    ) -> tuple[Sequence[File], bool]:
        """Return one page by creation, and whether more follow. Raises: InvalidRequestError."""
        if after is not None and not ids.is_file_id(after):
            raise InvalidRequestError("after must be the id of one of your files.", param="after")
        if purpose not in (None, INPUT, OUTPUT):
            return [], False
        return await self._store.page(tenant_id, purpose, after, min(limit, MAX_PAGE), is_ascending, ids.now_ms())

    async def open(self, tenant_id: str, file_id: str) -> tuple[File, ByteStream]:
        """Return a file and its bytes; the caller closes them. Raises: NotFoundError."""
        file = await self.file(tenant_id, file_id)
        try:
            return file, await asyncio.to_thread(self._objects.open_range, file.key)
        except ObjectNotFoundError as error:
            raise NotFoundError("The bytes of this file are gone.", param="file_id") from error

    async def delete(self, tenant_id: str, file_id: str) -> None:
        """Hide a file; its bytes go when no batch reads them any more. Raises: NotFoundError."""
        if not ids.is_file_id(file_id) or not await self._store.hide(tenant_id, file_id, ids.now_ms()):
            raise NotFoundError("There is no file with this id.", param="file_id")

    async def sweep(self) -> int:
        """Remove some of the files whose time is over, bytes first; return how many. Twice at once is harmless."""
        expired = await self._store.expired(ids.now_ms(), SWEEP_PAGE)
        for file in expired:
            await asyncio.to_thread(self._objects.delete, file.key)
            await self._store.forget(file.file_id)
        return len(expired)


def read_ttl_ms(value: object, param: str) -> int:
    """Return for how long a file is kept, as a client says; None: for as long as can be. Raises InvalidRequestError."""
    value, (low, high) = object_of(value), TTL_S
    if value is None:
        return high * 1000
    seconds = value.get("seconds") if isinstance(value, dict) else None
    if isinstance(seconds, str) and seconds.isascii() and seconds.isdecimal() and len(seconds) < 10:
        seconds = int(seconds)
    is_known = isinstance(value, dict) and value.keys() == {"anchor", "seconds"} and value["anchor"] == "created_at"
    if not is_known or type(seconds) is not int or not low <= seconds <= high:
        message = f'{param} must be {{"anchor": "created_at", "seconds": N}} with N from {low} to {high}.'
        raise InvalidRequestError(message, param=param)
    return seconds * 1000


def gone_while_stored() -> UnavailableError:
    """Return the error for a file that took so long that it was swept."""
    return UnavailableError("Storing the file took too long; send it again.")
