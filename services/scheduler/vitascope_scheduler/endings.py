"""How a job ends before it is done: cancelled, expired or failed. One conditional UPDATE decides which of them.

All functions run inside a transaction that holds the lock of the job. They return the tasks that end with it, so that
whoever works on one can be told to stop.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common.events import EventType
from vitascope_common.executor import Outcome
from vitascope_common.jobs import JobState
from vitascope_scheduler import statements as sql
from vitascope_scheduler.tasks import TaskRow

EXPIRED = "expired"


async def cancel_job(connection: AsyncConnection, job_id: str, now_ms: int) -> list[TaskRow]:
    """End a job because its tenant asked."""
    return await _end(connection, job_id, JobState.CANCELLED, "cancelled", "The job was cancelled.", now_ms)


async def expire_job(connection: AsyncConnection, job_id: str, deadline_at_ms: int, now_ms: int) -> list[TaskRow]:
    """End a job because its deadline has passed."""
    deadline = datetime.fromtimestamp(deadline_at_ms / 1000, UTC).isoformat(timespec="seconds")
    message = f"The job was not finished by its deadline, {deadline}."
    return await _end(connection, job_id, JobState.FAILED, EXPIRED, message, now_ms)


async def fail_job(connection: AsyncConnection, row: TaskRow, code: str, message: str, now_ms: int) -> list[TaskRow]:
    """End a job because one of its tasks, `row`, has failed for good."""
    return await _end(connection, row.job_id, JobState.FAILED, code, message, now_ms, row)


async def _end(
    connection: AsyncConnection,
    job_id: str,
    state: JobState,
    code: str,
    message: str,
    now_ms: int,
    row: TaskRow | None = None,
) -> list[TaskRow]:
    changes = {
        "state": state,
        "phase": state.value,
        "finished_at_ms": now_ms,
        "error_code": code,
        "error_message": message,
    }
    event, data = _EVENTS[state], {}
    if state is JobState.FAILED:
        data = {"code": code, "message": message}
    if not await sql.change_job(
        connection, job_id, event, data, now_ms, changes=changes, row=row, closes=row is not None
    ):
        return []
    cancelled = await sql.cancel_open_tasks(connection, job_id, now_ms)
    for task in cancelled:
        if task.worker_id is not None:  # it was leased: what ran is paid
            await sql.charge_ledger(connection, task, Outcome.CANCELLED, task.used_s, {}, now_ms)
    return cancelled


_EVENTS: Mapping[JobState, EventType] = {JobState.FAILED: EventType.FAILED, JobState.CANCELLED: EventType.CANCELLED}
