"""The statements that the job manager is made of.

Every transaction touches the row of its job first (`lock_job`): one lock order for all of them, and whatever concerns
one job happens one after the other on both databases, without relying on isolation above READ COMMITTED. Because the
outbox row is inserted while that lock is held, the order of outbox ids is the order of versions of a job.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common import tables
from vitascope_common.events import EventType
from vitascope_common.jobs import (
    ACTIVE_JOB,
    OPEN_TASK,
    TERMINAL_JOB,
    JobState,
    TaskState,
    job_states_before,
    task_states_before,
)
from vitascope_common.meters import SHOWN, combined
from vitascope_scheduler.tasks import TaskRow
from vitascope_scheduler.webhooks.deliveries import JobEnd, announce

_JOBS, _TASKS, _TENANTS = tables.jobs, tables.tasks, tables.tenants
_COLUMNS = [_TASKS.c[field.name] for field in fields(TaskRow) if field.name in _TASKS.c]
_OF_TENANT = [_TENANTS.c.weight.label("weight"), _TENANTS.c.max_in_flight.label("cap")]
_WITH_TENANT = _TASKS.outerjoin(_TENANTS, _TASKS.c.tenant_id == _TENANTS.c.tenant_id)


@dataclass(frozen=True)
class JobRow:
    """What a transaction needs to know of its job."""

    job_id: str
    tenant_id: str
    kind: str
    state: str
    traceparent: str
    deadline_at_ms: int | None


def select_tasks() -> sa.Select[Any]:
    """Select task rows together with weight and cap of their tenant."""
    return sa.select(*_COLUMNS, *_OF_TENANT).select_from(_WITH_TENANT)


async def rows_of(connection: AsyncConnection, statement: Any) -> list[TaskRow]:
    """Run a statement that returns task rows."""
    return [TaskRow.from_mapping(dict(row)) for row in (await connection.execute(statement)).mappings()]


async def read_task(connection: AsyncConnection, task_id: str) -> TaskRow | None:
    """Read one task; None when there is none."""
    found = await rows_of(connection, select_tasks().where(_TASKS.c.task_id == task_id))
    return found[0] if found else None


async def lock_job(connection: AsyncConnection, job_id: str) -> JobRow | None:
    """Begin every transaction about a job: hold its row until the end. None when there is no such job."""
    statement = (
        sa.update(_JOBS)
        .where(_JOBS.c.job_id == job_id)
        .values(version=_JOBS.c.version)
        .returning(*(_JOBS.c[field.name] for field in fields(JobRow)))
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    return JobRow(**row) if row else None


async def move_task(
    connection: AsyncConnection,
    row: TaskRow,
    state: TaskState,
    *conditions: sa.ColumnElement[bool],
    **changes: Any,
) -> TaskRow | None:
    """Bring a task into another state, in the attempt that `row` shows. None: the transition is not open to it."""
    statement = (
        sa.update(_TASKS)
        .where(_TASKS.c.task_id == row.task_id, _TASKS.c.attempt == row.attempt)
        .where(_TASKS.c.state.in_(task_states_before(state)), *conditions)
        .values(state=state, **changes)
        .returning(*_COLUMNS)
    )
    found = await rows_of(connection, statement)
    return replace(found[0], weight=row.weight, cap=row.cap) if found else None


async def update_attempt(connection: AsyncConnection, task_id: str, attempt: int, **changes: Any) -> TaskRow | None:
    """Write down what the running attempt says of itself. None: it does not hold the task any more."""
    statement = (
        sa.update(_TASKS)
        .where(_TASKS.c.task_id == task_id, _TASKS.c.attempt == attempt, _TASKS.c.state == TaskState.LEASED)
        .values(**changes)
        .returning(_TASKS.c.task_id)
    )
    if (await connection.execute(statement)).one_or_none() is None:
        return None
    return await read_task(connection, task_id)


def at_least_used(used_s: float) -> sa.ColumnElement[float]:
    """Return what an attempt has used, as the value of an UPDATE: calls overtake each other, and it never shrinks."""
    return sa.case((_TASKS.c.used_s < used_s, sa.literal(used_s, sa.Float)), else_=_TASKS.c.used_s)


async def cancel_open_tasks(connection: AsyncConnection, job_id: str, now_ms: int) -> list[TaskRow]:
    """Cancel every task of a job that is not over; those that were leased still name their worker."""
    statement = (
        sa.update(_TASKS)
        .where(_TASKS.c.job_id == job_id, _TASKS.c.state.in_(OPEN_TASK))
        .values(state=TaskState.CANCELLED, finished_at_ms=now_ms)
        .returning(*_COLUMNS)
    )
    return await rows_of(connection, statement)


async def change_job(
    connection: AsyncConnection,
    job_id: str,
    event: EventType,
    data: Mapping[str, Any],
    now_ms: int,
    *,
    changes: Mapping[str, Any] | None = None,
    row: TaskRow | None = None,
    closes: bool = False,
) -> bool:
    """Change a job and say so: version + 1, the outbox row of the event and, of its end, what webhooks tell.

    False: the job is over already.
    """
    changes = changes or {}
    before = job_states_before(JobState(changes["state"])) if "state" in changes else ACTIVE_JOB
    statement = (
        sa.update(_JOBS)
        .where(_JOBS.c.job_id == job_id, _JOBS.c.state.in_(before))
        .values(version=_JOBS.c.version + 1, **changes)
        .returning(_JOBS.c.version, *(_JOBS.c[field.name] for field in fields(JobEnd)))
    )
    job = (await connection.execute(statement)).one_or_none()
    if job is None:
        return False
    payload = {"type": event.value, "data": dict(data), "version": job.version, "closes": closes}
    if row is not None:
        payload |= {"task": row.task_id, "attempt": row.attempt}
    await put_outbox(connection, "event", job_id, job.tenant_id, job.traceparent, payload, now_ms)
    if job.state in TERMINAL_JOB:
        await announce(connection, JobEnd(*(getattr(job, field.name) for field in fields(JobEnd))), now_ms)
    return True


async def announce_ready(connection: AsyncConnection, row: TaskRow, now_ms: int) -> None:
    """Have the relay hand a task to its executor."""
    payload = {"task_id": row.task_id}
    await put_outbox(connection, "ready", row.job_id, row.tenant_id, row.traceparent, payload, now_ms)


async def put_outbox(
    connection: AsyncConnection,
    topic: str,
    job_id: str,
    tenant_id: str,
    traceparent: str,
    payload: Mapping[str, Any],
    now_ms: int,
) -> None:
    """Have the relay tell something, once this transaction is committed."""
    await connection.execute(
        sa.insert(tables.outbox).values(
            tenant_id=tenant_id,
            job_id=job_id,
            topic=topic,
            payload=payload,
            traceparent=traceparent,
            created_at_ms=now_ms,
        )
    )


async def charge_ledger(
    connection: AsyncConnection, row: TaskRow, outcome: str, used_s: float, meters: Mapping[str, float], now_ms: int
) -> None:
    """Write what an attempt really used; a second row for the same attempt is impossible."""
    await connection.execute(
        sa.insert(tables.ledger).values(
            task_id=row.task_id,
            attempt=row.attempt,
            job_id=row.job_id,
            tenant_id=row.tenant_id,
            used_s=used_s * row.group_size,
            meters={name: value for name, value in meters.items() if math.isfinite(value)},
            outcome=outcome,
            created_at_ms=now_ms,
        )
    )


async def keep_meters(connection: AsyncConnection, job_id: str, meters: Mapping[str, float]) -> None:
    """Add what an attempt that ends has measured to what people see of its job, whose lock is held."""
    finite = {name: value for name, value in meters.items() if math.isfinite(value)}
    if not finite.keys() & SHOWN:
        return
    is_job = _JOBS.c.job_id == job_id
    before = (await connection.execute(sa.select(_JOBS.c.meters).where(is_job))).scalar_one()
    await connection.execute(sa.update(_JOBS).where(is_job).values(meters=combined(before, finite)))


async def charge_late(connection: AsyncConnection, row: TaskRow, used_s: float) -> TaskRow:
    """Raise what the last attempt of a task that was cancelled under it has used, in its ledger row as well."""
    if used_s <= row.used_s:
        return row
    ledger = tables.ledger
    is_task = sa.and_(_TASKS.c.task_id == row.task_id, _TASKS.c.attempt == row.attempt)
    is_charge = sa.and_(ledger.c.task_id == row.task_id, ledger.c.attempt == row.attempt)
    await connection.execute(sa.update(_TASKS).where(is_task).values(used_s=used_s))
    await connection.execute(sa.update(ledger).where(is_charge).values(used_s=used_s * row.group_size))
    return replace(row, used_s=used_s)


async def outcome_of(connection: AsyncConnection, task_id: str, attempt: int) -> str | None:
    """Return how an attempt ended, from the ledger; None when it has not ended, or never was."""
    statement = sa.select(tables.ledger.c.outcome).where(
        tables.ledger.c.task_id == task_id, tables.ledger.c.attempt == attempt
    )
    return (await connection.execute(statement)).scalar_one_or_none()


async def count_down(connection: AsyncConnection, done: TaskRow) -> list[tuple[str, str]]:
    """Tell the tasks that need this one that it is done.

    Returns stage and executor of those stages whose first shard needs nothing any more.
    """
    is_meant = sa.or_(_TASKS.c.needs_same_shard == sa.false(), _TASKS.c.shard == done.shard)
    statement = (
        sa.update(_TASKS)
        .where(_TASKS.c.job_id == done.job_id, _TASKS.c.needs == done.stage, is_meant)
        .where(_TASKS.c.state == TaskState.WAITING, _TASKS.c.num_needed > 0)
        .values(num_needed=_TASKS.c.num_needed - 1)
        .returning(_TASKS.c.stage, _TASKS.c.executor, _TASKS.c.num_needed)
    )
    free = Counter((row.stage, row.executor) for row in await connection.execute(statement) if row.num_needed == 0)
    if not free:
        return []
    needs_nothing = (
        sa.select(_TASKS.c.stage, sa.func.count())
        .where(_TASKS.c.job_id == done.job_id, _TASKS.c.num_needed == 0)
        .group_by(_TASKS.c.stage)
    )
    in_all = {stage: number for stage, number in await connection.execute(needs_nothing)}
    return sorted(one for one, number in free.items() if in_all[one[0]] == number)


async def next_waiting(connection: AsyncConnection, job_id: str, limit: int) -> list[TaskRow]:
    """Read the first tasks of a job that need nothing any more and are not ready yet, by shard."""
    statement = (
        select_tasks()
        .where(_TASKS.c.job_id == job_id, _TASKS.c.state == TaskState.WAITING, _TASKS.c.num_needed == 0)
        .order_by(_TASKS.c.shard, _TASKS.c.stage)
        .limit(limit)
    )
    return await rows_of(connection, statement)


def num_ready(job_id: str) -> sa.ScalarSelect[int]:
    """Count the ready tasks of a job, as part of the condition of an UPDATE."""
    one = _TASKS.alias()
    return sa.select(sa.func.count()).where(one.c.job_id == job_id, one.c.state == TaskState.READY).scalar_subquery()


async def inputs_of(connection: AsyncConnection, row: TaskRow) -> list[Mapping[str, Any]]:
    """Collect what the tasks that this one needed have put out, by shard."""
    if not row.needs:
        return []
    needed = _TASKS.c.stage == row.needs
    if row.needs_same_shard:
        needed = sa.and_(needed, _TASKS.c.shard == row.shard)
    return await _outputs(connection, row.job_id, needed)


async def published_outputs(connection: AsyncConnection, job_id: str) -> list[Mapping[str, Any]]:
    """Collect what the publishing tasks of a job have put out, by shard."""
    return await _outputs(connection, job_id, _TASKS.c.publishes == sa.true())


async def _outputs(
    connection: AsyncConnection, job_id: str, condition: sa.ColumnElement[bool]
) -> list[Mapping[str, Any]]:
    statement = (
        sa.select(_TASKS.c.outputs)
        .where(_TASKS.c.job_id == job_id, _TASKS.c.state == TaskState.DONE, condition)
        .order_by(_TASKS.c.shard, _TASKS.c.stage)
    )
    lists: Sequence[list[Mapping[str, Any]]] = (await connection.execute(statement)).scalars().all()
    return [artifact for outputs in lists for artifact in outputs]


async def num_unfinished(connection: AsyncConnection, job_id: str) -> int:
    """Count the tasks of a job that are not done."""
    statement = sa.select(sa.func.count()).where(_TASKS.c.job_id == job_id, _TASKS.c.state != TaskState.DONE)
    return int((await connection.execute(statement)).scalar_one())


async def is_running(connection: AsyncConnection, job_id: str) -> bool:
    """Tell whether an attempt owns a task of this job."""
    statement = sa.select(_TASKS.c.task_id).where(_TASKS.c.job_id == job_id, _TASKS.c.state == TaskState.LEASED)
    return (await connection.execute(statement.limit(1))).one_or_none() is not None


async def progress_of(connection: AsyncConnection, row: TaskRow) -> Mapping[str, int]:
    """Add up what all shards of a stage have done, and what they have to do."""
    statement = sa.select(sa.func.sum(_TASKS.c.done).label("done"), sa.func.sum(_TASKS.c.total).label("total")).where(
        _TASKS.c.job_id == row.job_id, _TASKS.c.stage == row.stage
    )
    found = (await connection.execute(statement)).one()
    return {"done": int(found.done), "total": int(found.total)}


async def show_job(connection: AsyncConnection, job_id: str, **shown: Any) -> None:
    """Write down what people see of a running job: phase and progress, no event."""
    is_running = sa.and_(_JOBS.c.job_id == job_id, _JOBS.c.state == JobState.RUNNING)
    await connection.execute(sa.update(_JOBS).where(is_running).values(**shown))
