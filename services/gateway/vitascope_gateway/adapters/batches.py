"""SQL: batches and their lines."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common.database import Database
from vitascope_common.jobs import JobState
from vitascope_common.tables import batch_lines, batches, jobs, tenants
from vitascope_gateway.adapters.files import show
from vitascope_gateway.adapters.paging import page_of
from vitascope_gateway.admission import once
from vitascope_gateway.batch_lines import EXPIRED
from vitascope_gateway.batches import (
    CAN_BE_CANCELLED,
    Batch,
    BatchState,
    Counts,
    End,
    Line,
    LineState,
    TooManyBatchesError,
)
from vitascope_gateway.idempotency import Repeatable, find

INSERT_ROWS = 500

_ROW, _LINE = batches.c, batch_lines.c


class SqlBatches:
    """Implements batches.BatchStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def made(self, sent: Repeatable) -> str | None:
        """Return the batch that this request has made already."""
        return await find(self._database, sent)

    async def add(self, batch: Batch, sent: Repeatable | None, max_batches: int) -> str:
        """Write a batch, unless the request has made one or too many are under way."""
        values = {
            "batch_id": batch.batch_id,
            "tenant_id": batch.tenant_id,
            "input_file_id": batch.input_file_id,
            "labels": dict(batch.labels),
            "base_url": batch.base_url,
            "output_ttl_ms": batch.output_ttl_ms,
            "state": batch.state.value,
            "errors": [],
            "created_at_ms": batch.created_at_ms,
            "deadline_at_ms": batch.deadline_at_ms,
            "next_at_ms": batch.created_at_ms,
        }
        hint = "The database stopped to answer; the batch may have been accepted: look at GET /v1/batches."
        async with once(self._database, sent, batch.batch_id, hint) as (connection, made):
            if made is None:
                if not await _count(connection, batch.tenant_id, 1, tenants.c.num_batches < max_batches):
                    message = f"You have {max_batches} batches under way; begin another one when one of them is over."
                    raise TooManyBatchesError(message)
                await connection.execute(sa.insert(batches).values(values))
        return made or batch.batch_id

    async def batch(self, tenant_id: str, batch_id: str) -> Batch | None:
        """Return one batch."""
        query = sa.select(batches).where(_ROW.batch_id == batch_id, _ROW.tenant_id == tenant_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else _batch(row)

    async def page(self, tenant_id: str, after: str | None, limit: int) -> tuple[Sequence[Batch], bool]:
        """Return a page, newest first, and whether more follow."""
        query = sa.select(batches).where(_ROW.tenant_id == tenant_id)
        cursor = sa.select(_ROW.created_at_ms).where(_ROW.batch_id == after, _ROW.tenant_id == tenant_id)
        rows, has_more = await page_of(self._database, query, cursor, _ROW.batch_id, after, limit, "batches")
        return [_batch(row) for row in rows], has_more

    async def cancel(self, tenant_id: str, batch_id: str, now_ms: int) -> bool:
        """Let no more be made of a batch. False: there is none that can be cancelled."""
        return await self._change(
            (_ROW.batch_id == batch_id, _ROW.tenant_id == tenant_id, _ROW.state.in_(CAN_BE_CANCELLED)),
            {"state": BatchState.CANCELLING.value, "cancelling_at_ms": now_ms},
        )

    async def claim(self, claim: str, now_ms: int, lease_ms: int) -> Batch | None:
        """Take the batch that has been due for longest."""
        is_due = sa.and_(_ROW.ended_at_ms.is_(None), _ROW.next_at_ms <= now_ms)
        first = sa.select(_ROW.batch_id).where(is_due).order_by(_ROW.next_at_ms, _ROW.batch_id).limit(1)
        async with self._database.read() as connection:  # most often nothing is due, and then nothing is locked
            batch_id = (await connection.execute(first)).scalar_one_or_none()
        if batch_id is None:
            return None
        take = (
            sa.update(batches)
            .where(_ROW.batch_id == batch_id, is_due)
            .values(claim=claim, next_at_ms=now_ms + lease_ms)
            .returning(batches)
        )
        async with self._database.transaction() as connection:
            row = (await connection.execute(take)).mappings().one_or_none()
        return None if row is None else _batch(row)

    async def renew(self, batch: Batch, until_ms: int) -> bool:
        """Move the end of a lease."""
        return await self._change((_is_claimed(batch),), {"next_at_ms": until_ms})

    async def begin(self, batch: Batch, lines: Sequence[Line], now_ms: int) -> bool:
        """Write the lines of a valid file."""
        begin = (
            sa.update(batches)
            .where(_is_claimed(batch), _ROW.state == BatchState.VALIDATING.value)
            .values(state=BatchState.IN_PROGRESS.value, in_progress_at_ms=now_ms, num_lines=len(lines))
            .returning(_ROW.batch_id)
        )
        rows = [_line_row(batch, line) for line in lines]
        async with self._database.transaction() as connection:
            if (await connection.execute(begin)).one_or_none() is None:
                return False
            for start in range(0, len(rows), INSERT_ROWS):
                await connection.execute(sa.insert(batch_lines), rows[start : start + INSERT_ROWS])
        return True

    async def reject(self, batch: Batch, errors: Sequence[Mapping[str, Any]], now_ms: int) -> bool:
        """End a batch whose file cannot be used."""
        values = {"state": BatchState.FAILED.value, "errors": [dict(one) for one in errors], "ended_at_ms": now_ms}
        async with self._database.transaction() as connection:
            return await _end(connection, batch, values)

    async def finalize(self, batch: Batch, now_ms: int) -> bool:
        """Say that all lines are over."""
        return await self._change(
            (_is_claimed(batch), _ROW.state == BatchState.IN_PROGRESS.value),
            {"state": BatchState.FINALIZING.value, "finalizing_at_ms": now_ms},
        )

    async def settle(self, batch: Batch) -> Counts:
        """Write down which lines' jobs are over, and count."""
        of_line = sa.and_(jobs.c.job_id == _LINE.job_id, jobs.c.tenant_id == _LINE.tenant_id)
        is_completed = sa.and_(jobs.c.state == JobState.COMPLETED.value, jobs.c.deleted_at_ms.is_(None))
        is_late = sa.and_(jobs.c.error_code == "expired", jobs.c.finished_at_ms >= batch.deadline_at_ms)
        is_over = sa.or_(jobs.c.finished_at_ms.is_not(None), jobs.c.deleted_at_ms.is_not(None))
        endings: Sequence[tuple[sa.ColumnElement[bool], dict[str, Any]]] = (
            (sa.exists().where(of_line, is_completed), {"state": LineState.DONE.value}),
            (sa.exists().where(of_line, is_late), {"state": LineState.FAILED.value, "error": EXPIRED}),
            (sa.exists().where(of_line, is_over), {"state": LineState.FAILED.value}),
            (~sa.exists().where(of_line), {"state": LineState.FAILED.value}),  # swept after it was deleted
        )
        query = sa.select(_LINE.state, sa.func.count()).where(_LINE.batch_id == batch.batch_id).group_by(_LINE.state)
        async with self._database.transaction() as connection:
            for condition, values in endings:
                update = sa.update(batch_lines).where(
                    _LINE.batch_id == batch.batch_id, _LINE.state == LineState.ADMITTED.value, condition
                )
                await connection.execute(update.values(values))
            found = {state: number for state, number in await connection.execute(query)}
            counts = Counts(*(found.get(state.value, 0) for state in LineState))
            known = {"num_completed": counts.num_completed, "num_failed": counts.num_failed}
            is_news = sa.or_(*(batches.c[name] != number for name, number in known.items()))
            await connection.execute(sa.update(batches).where(_ROW.batch_id == batch.batch_id, is_news).values(known))
        return counts

    async def lines(self, batch_id: str, state: LineState | None, limit: int, after: int = 0) -> Sequence[Line]:
        """Return lines of a state, the ones that were tried least first; or all, from a number on."""
        query = sa.select(batch_lines).where(_LINE.batch_id == batch_id, _LINE.line > after).limit(limit)
        if state is not None:
            query = query.where(_LINE.state == state.value).order_by(_LINE.num_tries)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(_LINE.line))).mappings().all()
        return [_line(row) for row in rows]

    async def refuse(self, batch_id: str, number: int, status_code: int, error: Mapping[str, Any]) -> None:
        """End a pending line that is not to become a job."""
        values = {"state": LineState.FAILED.value, "status_code": status_code, "error": dict(error)}
        await self._change_lines((_is_line(batch_id, number), _LINE.state == LineState.PENDING.value), values)

    async def put_off(self, batch_id: str, number: int) -> None:
        """Let others go before a pending line."""
        await self._change_lines((_is_line(batch_id, number),), {"num_tries": _LINE.num_tries + 1})

    async def give_up(self, batch_id: str, state: LineState, error: Mapping[str, Any]) -> None:
        """End all lines in a state."""
        values = {"state": LineState.FAILED.value, "error": dict(error)}
        await self._change_lines((_LINE.batch_id == batch_id, _LINE.state == state.value), values)

    async def end(self, batch: Batch, end: End, now_ms: int) -> bool:
        """End a batch and let its files be seen."""
        files = [file for file in (end.output, end.errors) if file is not None]
        values = {
            "state": end.state.value,
            "ended_at_ms": now_ms,
            "output_file_id": end.output and end.output.file_id,
            "error_file_id": end.errors and end.errors.file_id,
            "num_completed": end.num_completed,
            "num_failed": end.num_failed,
        }
        async with self._database.transaction() as connection:
            if not await _end(connection, batch, values):
                return False
            for file in files:
                await show(connection, file, now_ms)
        return True

    async def num_under_way(self) -> int:
        """Return how many batches are not over."""
        query = sa.select(sa.func.count()).select_from(batches).where(_ROW.ended_at_ms.is_(None))
        async with self._database.read() as connection:
            return (await connection.execute(query)).scalar_one()

    async def sweep(self, before_ms: int, limit: int) -> int:
        """Delete batches that ended before."""
        query = sa.select(_ROW.batch_id).where(_ROW.ended_at_ms < before_ms).limit(limit)
        async with self._database.read() as connection:
            found = (await connection.execute(query)).scalars().all()
        for batch_id in found:
            async with self._database.transaction() as connection:
                await connection.execute(sa.delete(batch_lines).where(_LINE.batch_id == batch_id))
                await connection.execute(sa.delete(batches).where(_ROW.batch_id == batch_id))
        return len(found)

    async def _change(self, conditions: Sequence[sa.ColumnElement[bool]], values: Mapping[str, Any]) -> bool:
        update = sa.update(batches).where(*conditions).values(values).returning(_ROW.batch_id)
        async with self._database.transaction() as connection:
            return (await connection.execute(update)).one_or_none() is not None

    async def _change_lines(self, conditions: Sequence[sa.ColumnElement[bool]], values: Mapping[str, Any]) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(sa.update(batch_lines).where(*conditions).values(values))


async def _end(connection: AsyncConnection, batch: Batch, values: Mapping[str, Any]) -> bool:
    """End a batch that is as it was read, and make room for another one."""
    update = (
        sa.update(batches)
        .where(_is_claimed(batch), _ROW.ended_at_ms.is_(None), _ROW.state == batch.state.value)
        .values(values)
        .returning(_ROW.batch_id)
    )
    is_ended = (await connection.execute(update)).one_or_none() is not None
    if is_ended:
        await _count(connection, batch.tenant_id, -1, tenants.c.num_batches > 0)
    return is_ended


async def _count(connection: AsyncConnection, tenant_id: str, change: int, condition: sa.ColumnElement[bool]) -> bool:
    update = (
        sa.update(tenants)
        .where(tenants.c.tenant_id == tenant_id, condition)
        .values(num_batches=tenants.c.num_batches + change)
        .returning(tenants.c.num_batches)
    )
    return (await connection.execute(update)).one_or_none() is not None


def _is_claimed(batch: Batch) -> sa.ColumnElement[bool]:
    return sa.and_(_ROW.batch_id == batch.batch_id, _ROW.claim == batch.claim)


def _is_line(batch_id: str, number: int) -> sa.ColumnElement[bool]:
    return sa.and_(_LINE.batch_id == batch_id, _LINE.line == number)


def _batch(row: Mapping[Any, Any]) -> Batch:
    return Batch(
        batch_id=row["batch_id"],
        tenant_id=row["tenant_id"],
        input_file_id=row["input_file_id"],
        labels=row["labels"],
        base_url=row["base_url"],
        output_ttl_ms=row["output_ttl_ms"],
        created_at_ms=row["created_at_ms"],
        deadline_at_ms=row["deadline_at_ms"],
        state=BatchState(row["state"]),
        errors=row["errors"],
        num_lines=row["num_lines"],
        num_completed=row["num_completed"],
        num_failed=row["num_failed"],
        output_file_id=row["output_file_id"],
        error_file_id=row["error_file_id"],
        in_progress_at_ms=row["in_progress_at_ms"],
        finalizing_at_ms=row["finalizing_at_ms"],
        cancelling_at_ms=row["cancelling_at_ms"],
        ended_at_ms=row["ended_at_ms"],
        claim=row["claim"],
    )


def _line_row(batch: Batch, line: Line) -> dict[str, Any]:
    return {
        "batch_id": batch.batch_id,
        "line": line.number,
        "tenant_id": batch.tenant_id,
        "custom_id": line.custom_id,
        "start_byte": line.start_byte,
        "num_bytes": line.num_bytes,
        "state": line.state.value,
        "status_code": line.status_code,
        "error": dict(line.error),
    }


def _line(row: Mapping[Any, Any]) -> Line:
    return Line(
        number=row["line"],
        custom_id=row["custom_id"],
        start_byte=row["start_byte"],
        num_bytes=row["num_bytes"],
        state=LineState(row["state"]),
        job_id=row["job_id"],
        status_code=row["status_code"],
        error=row["error"],
    )
