"""Job manager: the only writer of jobs and tasks after their admission.

Each method is one SQL transaction without any other I/O inside; each transition in it is one conditional UPDATE, and
zero rows is an answer. An attempt begins in `claim` and nowhere else.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common import ids, tables
from vitascope_common.database import Database
from vitascope_common.errors import DeadlineError, NotFoundError, UnavailableError
from vitascope_common.events import EventType
from vitascope_common.executor import Action, Outcome
from vitascope_common.jobs import (
    KINDS,
    TERMINAL_JOB,
    Artifact,
    Checkpoint,
    JobState,
    Progress,
    Task,
    TaskState,
)
from vitascope_scheduler import statements as sql
from vitascope_scheduler.statements import JobRow
from vitascope_scheduler.tasks import TaskRow

MAX_FAILURES = 3  # attempts in a row that ended unasked without a newer checkpoint
NUM_CHECKPOINTS = 2
OUTAGES = frozenset({UnavailableError.code, DeadlineError.code})
MIN_OUTAGE_MS = 10_000
LOST = "lost"  # outcome in the ledger of an attempt whose lease ran out

log = structlog.get_logger()


@dataclass(frozen=True)
class Claim:
    """Answer to a claim: the task in its new attempt, or why not."""

    task: Task | None
    row: TaskRow | None
    reason: str = ""


@dataclass(frozen=True)
class TaskStatus:
    """What an executor says about a task that it holds."""

    task_id: str
    attempt: int
    progress: Progress = field(default_factory=Progress)
    used_s: float = 0.0
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Report:
    """How an attempt ended, as its executor says."""

    task_id: str
    attempt: int
    outcome: Outcome
    outputs: tuple[Artifact, ...] = ()
    error_code: str = ""
    error_message: str = ""
    is_retryable: bool = False
    used_s: float = 0.0
    meters: dict[str, float] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Ended:
    """What became of an attempt; `cancelled` are the tasks that ended with it because the job failed."""

    is_accepted: bool
    state: str
    row: TaskRow | None = None
    cancelled: tuple[TaskRow, ...] = ()


class JobManager:
    """Every transition of jobs and tasks."""

    def __init__(self, database: Database, clock: Callable[[], int] = ids.now_ms) -> None:
        self._database = database
        self._clock = clock

    async def claim(self, task_id: str, worker_id: str) -> Claim:
        """Begin an attempt: ready -> leased, attempt + 1; the job runs from its first one on.

        The worker that holds the task already gets the same attempt again: the answer to its claim was lost on the way.
        """
        now_ms = self._clock()
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
            )
            if row is None and seen.is_leased and seen.worker_id == worker_id:
                return Claim(seen.to_task(), seen)
            if row is None:
                return Claim(None, seen, seen.state)
            try:
                task = row.to_task()
            except (KeyError, TypeError) as error:
                log.error("task.unreadable", task=task_id, error=repr(error))
                ended = await self._fail(connection, row, "internal", "its parameters cannot be read by this version")
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
            return Claim(task, row)

    async def heartbeat(self, status: TaskStatus) -> tuple[Action, TaskRow | None]:
        """Write down progress and checkpoint of a running attempt; say whether it still is one."""
        now_ms = self._clock()
        progress = status.progress
        shown = {"done": progress.done, "total": progress.total, "unit": progress.unit, "phase": progress.phase}
        async with self._database.transaction() as connection:
            job = await sql.lock_job(connection, ids.job_id_of(status.task_id))
            changes: dict[str, Any] = {"used_s": status.used_s} | (shown if progress.phase else {})
            row = await sql.update_attempt(connection, status.task_id, status.attempt, **changes)
            if job is None or row is None:
                seen = await sql.read_task(connection, status.task_id)
                is_stopped = seen and seen.attempt == status.attempt and seen.state == TaskState.CANCELLED
                return (Action.STOP if is_stopped else Action.STALE), seen
            if progress.phase:
                jobs = tables.jobs
                is_running = sa.and_(jobs.c.job_id == job.job_id, jobs.c.state == JobState.RUNNING)
                await connection.execute(sa.update(jobs).where(is_running).values(**shown))
            return Action.RUN, await self._record(connection, row, status.checkpoint, now_ms)

    async def report(self, report: Report) -> Ended:
        """End an attempt as its executor says. The same report again is accepted again; an older attempt never is."""
        async with self._database.transaction() as connection:
            job = await sql.lock_job(connection, ids.job_id_of(report.task_id))
            row = await sql.read_task(connection, report.task_id)
            if job is None or row is None:
                return Ended(False, "")
            if not row.is_leased or row.attempt != report.attempt:
                known = await sql.outcome_of(connection, report.task_id, report.attempt)
                return Ended(known == report.outcome, row.state, row)
            return await self._end(connection, job, row, report)

    async def lose(self, row: TaskRow, claimed_before_ms: int) -> Ended:
        """End an attempt whose lease ran out. Refused when the row has moved on, or was claimed after that time."""
        now_ms = self._clock()
        async with self._database.transaction() as connection:
            await sql.lock_job(connection, row.job_id)
            seen = await sql.read_task(connection, row.task_id)
            if (
                seen is None
                or not seen.is_leased
                or seen.attempt != row.attempt
                or (seen.claimed_at_ms or 0) > claimed_before_ms
            ):
                return Ended(False, seen.state if seen else "", seen)
            await sql.charge_ledger(connection, seen, LOST, seen.used_s, {}, now_ms)
            return await self._retry(connection, seen, "worker_lost", "its worker was lost (the lease ran out)")

    async def cancel(self, job_id: str, tenant_id: str) -> tuple[str, list[TaskRow]]:
        """Cancel a job that is not over, with all its tasks. Returns its state and the tasks that ended now.

        Raises NotFoundError for a job that this tenant does not have.
        """
        async with self._database.transaction() as connection:
            job = await self._job_of(connection, job_id, tenant_id)
            if job.state in TERMINAL_JOB:
                return job.state, []
            return JobState.CANCELLED, await self._cancel(connection, job)

    async def delete(self, job_id: str, tenant_id: str) -> list[TaskRow]:
        """Hide a job and its files, cancelled first when it is not over. Raises NotFoundError as `cancel` does."""
        jobs = tables.jobs
        async with self._database.transaction() as connection:
            job = await self._job_of(connection, job_id, tenant_id)
            cancelled = [] if job.state in TERMINAL_JOB else await self._cancel(connection, job)
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

    async def _job_of(self, connection: AsyncConnection, job_id: str, tenant_id: str) -> JobRow:
        job = await sql.lock_job(connection, job_id)
        if job is None or job.tenant_id != tenant_id:
            raise NotFoundError(f"there is no video {job_id}")
        return job

    async def _end(self, connection: AsyncConnection, job: JobRow, row: TaskRow, report: Report) -> Ended:
        now_ms = self._clock()
        await sql.charge_ledger(connection, row, report.outcome, report.used_s, report.meters, now_ms)
        used = await sql.update_attempt(connection, row.task_id, row.attempt, used_s=report.used_s)
        row = used or row
        if report.outcome is Outcome.DONE:
            return await self._done(connection, row, report.outputs)
        row = await self._record(connection, row, report.checkpoint, now_ms)
        if report.outcome is Outcome.YIELDED:
            return await self._put_back(connection, row, EventType.PREEMPTED, {"step": row.newest_done})
        if report.outcome is Outcome.FAILED and not report.is_retryable:
            return await self._fail(connection, row, report.error_code or "internal", report.error_message)
        if report.outcome is Outcome.CANCELLED:  # nobody has asked: count it, so that it cannot go on for ever
            return await self._retry(connection, row, "stopped", "its worker stopped by itself")
        return await self._retry(connection, row, report.error_code or "internal", report.error_message)

    async def _done(self, connection: AsyncConnection, row: TaskRow, outputs: tuple[Artifact, ...]) -> Ended:
        now_ms = self._clock()
        manifest = next((artifact for artifact in outputs if artifact.role == "manifest"), None)
        following = KINDS[row.kind].after(row.stage)
        if following is None and manifest is None:
            return await self._fail(connection, row, "internal", "the last stage named no manifest to publish")
        kept = [asdict(one) for one in outputs]
        done = await sql.move_task(connection, row, TaskState.DONE, outputs=kept, finished_at_ms=now_ms)
        if done is None:
            return Ended(False, row.state, row)
        if following is not None:
            inputs = await sql.outputs_of(connection, row.job_id, row.stage)
            for task_id in await sql.count_down(connection, row.job_id, following.name):
                waiting = await sql.read_task(connection, task_id)
                ready = waiting and await sql.move_task(connection, waiting, TaskState.READY, inputs=inputs)
                if ready:
                    await sql.announce_ready(connection, ready, now_ms)
            if following.executor == "postproc":
                data = {"stage": following.name}
                event = EventType.POSTPROCESSING
                changes = {"phase": "postprocessing"}
                await sql.change_job(
                    connection, row.job_id, event, data, now_ms, changes=changes, row=done, closes=True
                )
        elif manifest is not None and await sql.num_unfinished(connection, row.job_id) == 0:
            published = {
                "state": JobState.COMPLETED,
                "phase": "completed",
                "finished_at_ms": now_ms,
                "manifest_key": manifest.key,
                "manifest_sha256": manifest.sha256,
            }
            event = EventType.COMPLETED
            await sql.change_job(connection, row.job_id, event, {}, now_ms, changes=published, row=done, closes=True)
        return Ended(True, done.state, done)

    async def _record(
        self, connection: AsyncConnection, row: TaskRow, checkpoint: Checkpoint | None, now_ms: int
    ) -> TaskRow:
        """Keep a checkpoint that is newer than those recorded, or made again by an attempt that could not read them.

        One that lies beyond every step recorded so far shows that the task makes progress.
        """
        if checkpoint is None or not checkpoint.artifacts or checkpoint.done <= 0:
            return row
        is_remade = row.newest_attempt != row.attempt and not row.has_checkpoint(checkpoint)
        if checkpoint.done <= row.newest_done and not is_remade:
            return row
        furthest = max(checkpoint.done, row.furthest_done)
        newest = {**checkpoint.to_dict(), "attempt": row.attempt, "furthest_done": furthest}
        kept = [newest, *(one for one in row.checkpoints if one["done"] < checkpoint.done)][:NUM_CHECKPOINTS]
        changes: dict[str, Any] = {"num_failures": 0} if checkpoint.done > row.furthest_done else {}
        recorded = await sql.update_attempt(connection, row.task_id, row.attempt, checkpoints=kept, **changes)
        data = {"step": checkpoint.done}
        await sql.change_job(connection, row.job_id, EventType.CHECKPOINT, data, now_ms, row=row)
        return recorded or row

    async def _put_back(
        self,
        connection: AsyncConnection,
        row: TaskRow,
        event: EventType,
        data: dict[str, Any],
        *conditions: sa.ColumnElement[bool],
        **changes: Any,
    ) -> Ended:
        """leased -> ready, to be handed out again; refused when one of the conditions does not hold."""
        now_ms = self._clock()
        cleared = {"worker_id": None, "epoch": None, "enqueued_at_ms": None, "used_s": 0.0}
        ready = await sql.move_task(connection, row, TaskState.READY, *conditions, **cleared, **changes)
        if ready is None:
            return Ended(False, row.state, row)
        shown = {"phase": "queued"}
        await sql.change_job(connection, row.job_id, event, data, now_ms, changes=shown, row=row, closes=True)
        await sql.announce_ready(connection, ready, now_ms)
        return Ended(True, ready.state, ready)

    async def _retry(self, connection: AsyncConnection, row: TaskRow, code: str, message: str) -> Ended:
        """An attempt ended unasked: once more, unless it was the third in a row without a newer checkpoint.

        An outage is not the task's fault and does not count. Executors wait 24 to 60 s for what is away before they
        report, so that this is no hot loop; one that gave up at once (its own disk is full) counts like any failure.
        """
        num_failures = tables.tasks.c.num_failures
        attempt_ms = self._clock() - (row.claimed_at_ms or 0)
        is_outage = code in OUTAGES and attempt_ms >= MIN_OUTAGE_MS
        ended = await self._put_back(
            connection,
            row,
            EventType.QUEUED,
            {"reason": code},
            sa.true() if is_outage else num_failures < MAX_FAILURES - 1,
            num_failures=num_failures + (0 if is_outage else 1),
            error_code=code,
            error_message=message,
        )
        if ended.is_accepted:
            return ended
        text = f"It failed {MAX_FAILURES} times in a row without a newer checkpoint. The last error: {code}: {message}"
        return await self._fail(connection, row, "poison", text)

    async def _fail(self, connection: AsyncConnection, row: TaskRow, code: str, message: str) -> Ended:
        now_ms = self._clock()
        why = {"error_code": code, "error_message": message, "finished_at_ms": now_ms}
        failed = await sql.move_task(connection, row, TaskState.FAILED, **why)
        if failed is None:
            return Ended(False, row.state, row)
        cancelled = await self._cancel_tasks(connection, row.job_id)
        data = {"code": code, "message": message}
        changes = {"state": JobState.FAILED, "phase": "failed", **why}
        event = EventType.FAILED
        await sql.change_job(connection, row.job_id, event, data, now_ms, changes=changes, row=row, closes=True)
        return Ended(True, failed.state, failed, tuple(cancelled))

    async def _cancel(self, connection: AsyncConnection, job: JobRow) -> list[TaskRow]:
        now_ms = self._clock()
        changes = {
            "state": JobState.CANCELLED,
            "phase": "cancelled",
            "finished_at_ms": now_ms,
            "error_code": "cancelled",
            "error_message": "The job was cancelled.",
        }
        await sql.change_job(connection, job.job_id, EventType.CANCELLED, {}, now_ms, changes=changes)
        return await self._cancel_tasks(connection, job.job_id)

    async def _cancel_tasks(self, connection: AsyncConnection, job_id: str) -> list[TaskRow]:
        now_ms = self._clock()
        cancelled = await sql.cancel_open_tasks(connection, job_id, now_ms)
        for row in cancelled:
            if row.worker_id is not None:  # it was leased: what ran is paid
                await sql.charge_ledger(connection, row, Outcome.CANCELLED, row.used_s, {}, now_ms)
        return cancelled
