"""What the scheduler asks SQL: tasks to hand out, tasks to watch, and the outbox."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from vitascope_common import tables
from vitascope_common.database import Database
from vitascope_common.jobs import TaskState
from vitascope_scheduler import statements as sql
from vitascope_scheduler.tasks import EXECUTORS_OF_CELERY, TaskRow

_JOBS, _TASKS, _OUTBOX, _TENANTS = tables.jobs, tables.tasks, tables.outbox, tables.tenants

Position = tuple[int, str]
"""Where a page begins: after a task accepted, or a job finished, at that time with that id."""


@dataclass(frozen=True)
class OutboxRow:
    """Something that SQL has promised to tell."""

    outbox_id: int
    job_id: str
    payload: Mapping[str, Any]
    traceparent: str
    created_at_ms: int


@dataclass(frozen=True)
class Flow:
    """A tenant with work that waits in a pool, and what it is entitled to there."""

    pool: str
    tenant_id: str
    weight: float
    cap: int


@dataclass(frozen=True)
class FinishedJob:
    """A job that is over and has left something behind."""

    job_id: str
    tenant_id: str
    finished_at_ms: int
    manifest_key: str | None

    @property
    def position(self) -> Position:
        """Return where the page after it begins."""
        return self.finished_at_ms, self.job_id

    @property
    def published_folder(self) -> str:
        """Return the prefix of all files that SQL names by naming their manifest; "" for a job without one."""
        return self.manifest_key.rpartition("/")[0] + "/" if self.manifest_key else ""


class Reader:
    """Read-only views, and the outbox, whose rows are deleted once told."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tasks(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Read tasks by id; unknown ones are left out."""
        if not task_ids:
            return {}
        return {row.task_id: row for row in await self._rows(_TASKS.c.task_id.in_(task_ids))}

    async def leased(self, claimed_before_ms: int, claimed_after_ms: int) -> list[TaskRow]:
        """Read the tasks that have been leased since before that time; after a time to come: the clock went back."""
        claimed_at_ms = _TASKS.c.claimed_at_ms
        when = sa.or_(claimed_at_ms <= claimed_before_ms, claimed_at_ms > claimed_after_ms)
        return await self._rows(_TASKS.c.state == TaskState.LEASED, when)

    async def not_handed_out(
        self, pool: str, epoch: str, sent_before_ms: int, after: Position, limit: int
    ) -> list[TaskRow]:
        """Read a page of ready tasks, oldest first, that this epoch of their pool was never given.

        Those of Celery also count when they were sent before `sent_before_ms` and still nobody has claimed them.
        """
        is_unknown = sa.or_(_TASKS.c.epoch.is_(None), _TASKS.c.epoch != epoch)
        is_overdue = sa.and_(_TASKS.c.executor.in_(EXECUTORS_OF_CELERY), _TASKS.c.enqueued_at_ms < sent_before_ms)
        return await self._ready(pool, after, limit, sa.or_(is_unknown, is_overdue))

    async def queued(self, pool: str, after: Position, limit: int) -> list[TaskRow]:
        """Read a page of ready tasks, oldest first, that should stand in a queue."""
        return await self._ready(pool, after, limit, _TASKS.c.executor.not_in(EXECUTORS_OF_CELERY))

    async def _ready(self, pool: str, after: Position, limit: int, condition: sa.ColumnElement[bool]) -> list[TaskRow]:
        statement = (
            sql.select_tasks()
            .where(_TASKS.c.state == TaskState.READY, _TASKS.c.pool == pool, condition)
            .where(sa.tuple_(_TASKS.c.created_at_ms, _TASKS.c.task_id) > sa.tuple_(*after))
            .order_by(_TASKS.c.created_at_ms, _TASKS.c.task_id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return await sql.rows_of(connection, statement)

    async def pools(self) -> set[str]:
        """Name the pools that have work."""
        statement = sa.select(_TASKS.c.pool).distinct().where(_TASKS.c.state.in_((TaskState.READY, TaskState.LEASED)))
        async with self._database.read() as connection:
            return set((await connection.execute(statement)).scalars())

    async def flows(self) -> set[Flow]:
        """Read weight and cap of every tenant that waits in a queue."""
        statement = (
            sa.select(_TASKS.c.pool, _TASKS.c.tenant_id, _TENANTS.c.weight, _TENANTS.c.max_in_flight)
            .distinct()
            .join(_TENANTS, _TASKS.c.tenant_id == _TENANTS.c.tenant_id)
            .where(_TASKS.c.state == TaskState.READY, _TASKS.c.executor.not_in(EXECUTORS_OF_CELERY))
            .where(_TENANTS.c.weight > 0)
        )
        async with self._database.read() as connection:
            return {Flow(*row) for row in await connection.execute(statement)}

    async def share(self, tenant_id: str) -> tuple[float, int] | None:
        """Read weight and cap of a tenant; None: there is no such tenant."""
        statement = sa.select(_TENANTS.c.weight, _TENANTS.c.max_in_flight).where(_TENANTS.c.tenant_id == tenant_id)
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else (row.weight, row.max_in_flight)

    async def past_deadline(self, now_ms: int, limit: int) -> list[str]:
        """Name jobs that are not over though their deadline has passed, the longest first."""
        statement = (
            sa.select(_JOBS.c.job_id)
            .where(_JOBS.c.finished_at_ms.is_(None), _JOBS.c.deadline_at_ms <= now_ms)
            .order_by(_JOBS.c.deadline_at_ms, _JOBS.c.job_id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return list((await connection.execute(statement)).scalars())

    async def drains(self) -> dict[str, list[str]]:
        """Read by pool which workers get no more work; "" stands for all of them."""
        drains = tables.drains
        statement = sa.select(drains.c.pool, drains.c.worker_id).order_by(drains.c.pool, drains.c.worker_id)
        found: dict[str, list[str]] = {}
        async with self._database.read() as connection:
            for pool, worker_id in await connection.execute(statement):
                found.setdefault(pool, []).append(worker_id)
        return found

    async def to_sweep(self, finished_before_ms: int, after: Position, limit: int) -> list[FinishedJob]:
        """Read a page of jobs that ended before that time and whose work files are still there."""
        return await self._finished(after, limit, _JOBS.c.swept_at_ms.is_(None), finished_before_ms)

    async def to_purge(
        self, now_ms: int, deleted_ms: int, job_ms: int, after: Position, limit: int
    ) -> list[FinishedJob]:
        """Read a page of jobs that are kept no longer: deleted by their tenant `deleted_ms` ago, or `job_ms` old.

        What a completed job was promised stands, whatever the policy is now; `job_ms` 0 keeps all that are not deleted.
        """
        is_due = _JOBS.c.deleted_at_ms <= now_ms - deleted_ms
        if job_ms:
            ends_ms = sa.func.coalesce(_JOBS.c.expires_at_ms, _JOBS.c.finished_at_ms + job_ms)
            is_due = sa.or_(is_due, ends_ms <= now_ms)
        return await self._finished(after, limit, is_due, now_ms)

    async def known(self, job_ids: Sequence[str]) -> set[str]:
        """Return which of these jobs there are, whatever became of them."""
        async with self._database.read() as connection:
            return set(
                (await connection.execute(sa.select(_JOBS.c.job_id).where(_JOBS.c.job_id.in_(job_ids)))).scalars()
            )

    async def _finished(
        self, after: Position, limit: int, condition: sa.ColumnElement[bool], finished_before_ms: int
    ) -> list[FinishedJob]:
        place = sa.tuple_(_JOBS.c.finished_at_ms, _JOBS.c.job_id)
        statement = (
            sa.select(_JOBS.c.job_id, _JOBS.c.tenant_id, _JOBS.c.finished_at_ms, _JOBS.c.manifest_key)
            .where(_JOBS.c.finished_at_ms <= finished_before_ms, condition)
            .where(place > sa.tuple_(*after))
            .order_by(_JOBS.c.finished_at_ms, _JOBS.c.job_id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return [FinishedJob(*row) for row in await connection.execute(statement)]

    async def outbox(self, topic: str, after: int, limit: int) -> list[OutboxRow]:
        """Read a page of what is to be told, in order."""
        columns = (_OUTBOX.c.outbox_id, _OUTBOX.c.job_id, _OUTBOX.c.payload, _OUTBOX.c.traceparent)
        statement = (
            sa.select(*columns, _OUTBOX.c.created_at_ms)
            .where(_OUTBOX.c.topic == topic, _OUTBOX.c.outbox_id > after)
            .order_by(_OUTBOX.c.outbox_id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return [OutboxRow(*row) for row in await connection.execute(statement)]

    async def forget(self, outbox_ids: Sequence[int]) -> None:
        """Delete what was told."""
        if not outbox_ids:
            return
        async with self._database.transaction() as connection:
            await connection.execute(sa.delete(_OUTBOX).where(_OUTBOX.c.outbox_id.in_(outbox_ids)))

    async def _rows(self, *conditions: sa.ColumnElement[bool]) -> list[TaskRow]:
        async with self._database.read() as connection:
            return await sql.rows_of(connection, sql.select_tasks().where(*conditions))
