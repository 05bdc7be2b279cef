"""SQL: the files of tenants."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common.database import Database
from vitascope_common.errors import QuotaExceededError
from vitascope_common.tables import batches, files, tenants
from vitascope_gateway.adapters.paging import page_of
from vitascope_gateway.files import File, gone_while_stored

_ROW = files.c
_COLUMNS = (
    _ROW.file_id,
    _ROW.tenant_id,
    _ROW.filename,
    _ROW.purpose,
    _ROW.key,
    _ROW.created_at_ms,
    _ROW.expires_at_ms,
    _ROW.num_bytes,
    _ROW.sha256,
)


class SqlFiles:
    """Implements files.FileStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, file: File, sweep_at_ms: int, max_bytes: int | None) -> None:
        """Write the row of a file that nobody sees yet, if its tenant has room for it."""
        values = {
            "file_id": file.file_id,
            "tenant_id": file.tenant_id,
            "filename": file.filename,
            "purpose": file.purpose,
            "key": file.key,
            "created_at_ms": file.created_at_ms,
            "expires_at_ms": sweep_at_ms,
            "num_bytes": file.num_bytes,
        }
        async with self._database.transaction() as connection:
            if max_bytes is not None:
                await _check_room(connection, file, max_bytes)
            await connection.execute(sa.insert(files).values(values))

    async def show(self, file: File, now_ms: int) -> None:
        """Let a stored file be seen."""
        async with self._database.transaction() as connection:
            await show(connection, file, now_ms)

    async def file(self, tenant_id: str, file_id: str, now_ms: int) -> File | None:
        """Return one file."""
        query = sa.select(*_COLUMNS).where(_ROW.file_id == file_id, *_is_seen(tenant_id, now_ms))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else File(**row)

    async def stored(self, tenant_id: str, file_id: str) -> File | None:
        """Return a file that is stored still."""
        query = sa.select(*_COLUMNS).where(
            _ROW.file_id == file_id, _ROW.tenant_id == tenant_id, _ROW.stored_at_ms.is_not(None)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else File(**row)

    async def page(
        self, tenant_id: str, purpose: str | None, after: str | None, limit: int, is_ascending: bool, now_ms: int
    ) -> tuple[Sequence[File], bool]:
        """Return a page by creation, and whether more follow."""
        query = sa.select(*_COLUMNS).where(*_is_seen(tenant_id, now_ms))
        if purpose is not None:
            query = query.where(_ROW.purpose == purpose)
        cursor = sa.select(_ROW.created_at_ms).where(_ROW.file_id == after, _ROW.tenant_id == tenant_id)
        rows, has_more = await page_of(
            self._database, query, cursor, _ROW.file_id, after, limit, "files", is_ascending=is_ascending
        )
        return [File(**row) for row in rows], has_more

    async def hide(self, tenant_id: str, file_id: str, now_ms: int) -> bool:
        """Hide a file, so that it may be swept. False: there is none."""
        hide = (
            sa.update(files)
            .where(_ROW.file_id == file_id, *_is_seen(tenant_id, now_ms))
            .values(deleted_at_ms=now_ms, expires_at_ms=now_ms)
            .returning(_ROW.file_id)
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(hide)).one_or_none() is not None

    async def expire(self, file_id: str, now_ms: int) -> None:
        """Let the next sweep take a file."""
        async with self._database.transaction() as connection:
            await connection.execute(sa.update(files).where(_ROW.file_id == file_id).values(expires_at_ms=now_ms))

    async def expired(self, now_ms: int, limit: int) -> Sequence[File]:
        """Return files that may be swept, those that have waited longest first."""
        is_read = sa.exists().where(batches.c.input_file_id == _ROW.file_id, batches.c.ended_at_ms.is_(None))
        query = sa.select(*_COLUMNS).where(_ROW.expires_at_ms <= now_ms, ~is_read)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(_ROW.expires_at_ms).limit(limit))).mappings().all()
        return [File(**row) for row in rows]

    async def forget(self, file_id: str) -> None:
        """Delete the row."""
        async with self._database.transaction() as connection:
            await connection.execute(sa.delete(files).where(_ROW.file_id == file_id))


async def _check_room(connection: AsyncConnection, file: File, max_bytes: int) -> None:
    """Count what the tenant has; who adds another file of the same tenant waits for the end of the transaction.

    A row is there as long as its bytes may be, so deleted files count until they are swept.
    """
    its_row = sa.select(tenants.c.tenant_id).where(tenants.c.tenant_id == file.tenant_id)
    await connection.execute(its_row.with_for_update(key_share=True))
    used = sa.select(sa.func.coalesce(sa.func.sum(_ROW.num_bytes), 0)).where(_ROW.tenant_id == file.tenant_id)
    used_bytes = int((await connection.execute(used)).scalar_one())
    if used_bytes + file.num_bytes > max_bytes:
        raise QuotaExceededError(
            f"There is no room for this file of {file.num_bytes} bytes: your files have {used_bytes} of the "
            f"{max_bytes} bytes that are allowed. Delete some; their bytes count for another minute, or until the "
            "batch that reads them is over.",
            param="file",
        )


async def show(connection: AsyncConnection, file: File, now_ms: int) -> None:
    """Let a stored file be seen, in the transaction of what comes with it. Raises: UnavailableError."""
    update = (
        sa.update(files)
        .where(_ROW.file_id == file.file_id, _ROW.stored_at_ms.is_(None))
        .values(sha256=file.sha256, expires_at_ms=file.expires_at_ms, stored_at_ms=now_ms)
        .returning(_ROW.file_id)
    )
    if (await connection.execute(update)).one_or_none() is None:
        raise gone_while_stored()


def _is_seen(tenant_id: str, now_ms: int) -> tuple[sa.ColumnElement[Any], ...]:
    return (
        _ROW.tenant_id == tenant_id,
        _ROW.stored_at_ms.is_not(None),
        _ROW.deleted_at_ms.is_(None),
        _ROW.expires_at_ms > now_ms,
    )
