"""Job manager: the only writer of jobs and tasks after their admission.

Each method is one SQL transaction without any other I/O inside; each transition in it is one conditional UPDATE, and
zero rows is an answer. An attempt begins in `claim` and nowhere else.
"""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common import ids, tables
from vitascope_common.database import Database, upsert_into
from vitascope_common.errors import NotFoundError
from vitascope_common.events import EventType
from vitascope_common.executor import Action
from vitascope_common.jobs import TERMINAL_JOB, JobState, TaskState
from vitascope_scheduler import attempts, endings, stages
from vitascope_scheduler import statements as sql
from vitascope_scheduler.attempts import MAX_FAILURES, Claim, Ended, Report, TaskStatus
from vitascope_scheduler.statements import JobRow
from vitascope_scheduler.tasks import TaskRow

__all__ = ["MAX_FAILURES", "Claim", "Ended", "JobManager", "Report", "TaskStatus"]

log = structlog.get_logger()


class JobManager:
    """Every transition of jobs and tasks.

    A video that is completed is promised for `job_retention_ms`; 0: for ever.
    """

    def __init__(self, database: Database, clock: Callable[[], int] = ids.now_ms, *, job_retention_ms: int = 0) -> None:
        self._database = database
        self._clock = clock
        self._job_retention_ms = job_retention_ms

    async def claim(self, task_id: str, worker_id: str, group_size: int = 0) -> Claim:
        """Begin an attempt: ready -> leased, attempt + 1; the job runs from its first one on.

        The worker that holds the task already gets the same attempt again: the answer to its claim was lost on the way.
        What it uses counts once per rank of its group; `group_size` 0: as many as before.
        """
        now_ms = self._clock()
        ranks = {"group_size": group_size} if group_size > 0 else {}
        async with self._database.transaction() as connection:
            job = await sql.lock_job(connection, ids.job_id_of(task_id))
            seen = await sql.read_task(connection, task_id)
            if job is None or seen is None:
                return Claim(None, None, "unknown")
            row = await sql.move_task(
                connection,
                seen,
                TaskState.LEASED,
                attempt=tables.tasks.c.attempt + 1,
                worker_id=worker_id,
                claimed_at_ms=now_ms,
                used_s=0.0,
                **ranks,
            )
            if row is None and seen.is_leased and seen.worker_id == worker_id:
                return Claim(seen.to_task(), seen)
            if row is None:
                return Claim(None, seen, seen.state)
            try:
                task = row.to_task()
            except (KeyError, TypeError) as error:
                log.error("task.unreadable", task=task_id, error=repr(error))
                message = "its parameters cannot be read by this version"
                ended = await attempts.fail(connection, row, "internal", message, now_ms)
                return Claim(None, ended.row, ended.state)
            event: EventType | None = None
            data: dict[str, Any] = {}
            changes: dict[str, Any] = {"phase": "loading"}
            if job.state == JobState.QUEUED:
                event = EventType.STARTED
                changes |= {"state": JobState.RUNNING, "started_at_ms": now_ms}
            elif row.attempt > 1 and not row.is_for_celery:
                event, data = EventType.RESUMED, {"from_step": row.newest_done}
            if event is not None:
                await sql.change_job(connection, job.job_id, event, data, now_ms, changes=changes, row=row)
            await stages.promote(connection, job.job_id, now_ms)
            return Claim(task, row)

    async def heartbeat(self, status: TaskStatus) -> tuple[Action, TaskRow | None]:
        """Write down progress and checkpoint of a running attempt; say whether it still is one."""
        now_ms = self._clock()
        progress = status.progress
        shown = {"done": progress.done, "total": progress.total, "unit": progress.unit, "phase": progress.phase}
        async with self._database.transaction() as connection:
            job = await sql.lock_job(connection, ids.job_id_of(status.task_id))
            changes: dict[str, Any] = {"used_s": sql.at_least_used(status.used_s)} | (shown if progress.phase else {})
            row = await sql.update_attempt(connection, status.task_id, status.attempt, **changes)
            if job is None or row is None:
                seen = await sql.read_task(connection, status.task_id)
                is_stopped = seen and seen.attempt == status.attempt and seen.state == TaskState.CANCELLED
                return (Action.STOP if is_stopped else Action.STALE), seen
            if progress.phase:
                await sql.show_job(connection, job.job_id, **{**shown, **await sql.progress_of(connection, row)})
            return Action.RUN, await attempts.record(connection, row, status.checkpoint, now_ms)

    async def report(self, report: Report) -> Ended:
        """End an attempt as its executor says. The same report again is accepted again; an older attempt never is.

        One whose job was cancelled or has expired is over already: what it has used since its last heartbeat is paid.
        """
        async with self._database.transaction() as connection:
            job = await sql.lock_job(connection, ids.job_id_of(report.task_id))
            row = await sql.read_task(connection, report.task_id)
            if job is None or row is None:
                return Ended(False, "")
            if not row.is_leased or row.attempt != report.attempt:
                known = await sql.outcome_of(connection, report.task_id, report.attempt)
                if row.state == TaskState.CANCELLED and row.attempt == report.attempt and row.worker_id is not None:
                    row = await sql.charge_late(connection, row, report.used_s)
                return Ended(known == report.outcome, row.state, row)
            return await attempts.end(connection, row, report, self._clock(), self._job_retention_ms)

    async def lose(self, row: TaskRow, claimed_before_ms: int) -> Ended:
        """End an attempt whose lease ran out. Refused when the row has moved on, or was claimed after that time.

        A claim that lies as far ahead is no recent one: the clock went back.
        """
        now_ms = self._clock()
        async with self._database.transaction() as connection:
            await sql.lock_job(connection, row.job_id)
            seen = await sql.read_task(connection, row.task_id)
            if (
                seen is None
                or not seen.is_leased
                or seen.attempt != row.attempt
                or abs(now_ms - (seen.claimed_at_ms or 0)) < now_ms - claimed_before_ms
            ):
                return Ended(False, seen.state if seen else "", seen)
            return await attempts.lose(connection, seen, now_ms)

    async def cancel(self, job_id: str, tenant_id: str) -> tuple[str, list[TaskRow]]:
        """Cancel a job that is not over, with all its tasks. Returns its state and the tasks that ended now.

        Raises NotFoundError for a job that this tenant does not have.
        """
        async with self._database.transaction() as connection:
            job = await self._job_of(connection, job_id, tenant_id)
            if job.state in TERMINAL_JOB:
                return job.state, []
            return JobState.CANCELLED, await endings.cancel_job(connection, job_id, self._clock())

    async def expire(self, job_id: str) -> list[TaskRow]:
        """Fail a job whose deadline has passed, unless it is over. Returns the tasks that ended now."""
        now_ms = self._clock()
        async with self._database.transaction() as connection:
            job = await sql.lock_job(connection, job_id)
            if job is None or job.deadline_at_ms is None or job.deadline_at_ms > now_ms or job.state in TERMINAL_JOB:
                return []
            return await endings.expire_job(connection, job_id, job.deadline_at_ms, now_ms)

    async def delete(self, job_id: str, tenant_id: str) -> list[TaskRow]:
        """Hide a job and its files, cancelled first when it is not over. Raises NotFoundError as `cancel` does."""
        jobs = tables.jobs
        async with self._database.transaction() as connection:
            job = await self._job_of(connection, job_id, tenant_id)
            is_over = job.state in TERMINAL_JOB
            cancelled = [] if is_over else await endings.cancel_job(connection, job_id, self._clock())
            is_shown = sa.and_(jobs.c.job_id == job_id, jobs.c.deleted_at_ms.is_(None))
            await connection.execute(sa.update(jobs).where(is_shown).values(deleted_at_ms=self._clock()))
            return cancelled

    async def mark_enqueued(self, row: TaskRow, epoch: str) -> bool:
        """Write down in which epoch a ready task was handed to its queue. False: it is not ready any more."""
        tasks = tables.tasks
        statement = (
            sa.update(tasks)
            .where(tasks.c.task_id == row.task_id, tasks.c.attempt == row.attempt, tasks.c.state == TaskState.READY)
            .values(epoch=epoch, enqueued_at_ms=self._clock())
            .returning(tasks.c.task_id)
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).one_or_none() is not None

    async def mark_swept(self, job_id: str) -> None:
        """Write down that the work files of a job that is over are gone."""
        jobs = tables.jobs
        is_meant = sa.and_(jobs.c.job_id == job_id, jobs.c.state.in_(TERMINAL_JOB), jobs.c.swept_at_ms.is_(None))
        async with self._database.transaction() as connection:
            await connection.execute(sa.update(jobs).where(is_meant).values(swept_at_ms=self._clock()))

    async def purge(self, job_id: str) -> bool:
        """Delete a job that is over, with its tasks and what is still to be told of it. False: there is none.

        Only once its files are gone: afterwards nothing knows of them.
        """
        async with self._database.transaction() as connection:
            job = await sql.lock_job(connection, job_id)
            if job is None or job.state not in TERMINAL_JOB:
                return False
            for table in (tables.outbox, tables.tasks, tables.jobs):
                await connection.execute(sa.delete(table).where(table.c.job_id == job_id))
            return True

    async def set_drain(self, pool: str, worker_id: str, is_draining: bool, tenant_id: str) -> None:
        """Write down that a worker ("": every one of the pool) gets no more work, or that it does again. Idempotent.

        The reconciler tells Redis what stands here, as often as Redis forgets it.
        """
        drains = tables.drains
        is_meant = sa.and_(drains.c.pool == pool, drains.c.worker_id == worker_id)
        values = {"pool": pool, "worker_id": worker_id, "tenant_id": tenant_id, "created_at_ms": self._clock()}
        async with self._database.transaction() as connection:
            if not is_draining:
                await connection.execute(sa.delete(drains).where(is_meant))
                return
            await connection.execute(upsert_into(connection, drains).values(values).on_conflict_do_nothing())

    async def _job_of(self, connection: AsyncConnection, job_id: str, tenant_id: str) -> JobRow:
        job = await sql.lock_job(connection, job_id)
        if job is None or job.tenant_id != tenant_id:
            raise NotFoundError(f"there is no video {job_id}")
        return job
