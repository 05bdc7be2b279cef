"""Attempts: what executors say of one, and every way in which one ends.

All functions run inside a transaction that holds the lock of the job; none of them does any other I/O.
"""

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common import tables
from vitascope_common.errors import DeadlineError, UnavailableError
from vitascope_common.events import EventType
from vitascope_common.executor import Outcome
from vitascope_common.jobs import Artifact, Checkpoint, Progress, Task, TaskState
from vitascope_scheduler import costs, endings, stages
from vitascope_scheduler import statements as sql
from vitascope_scheduler.tasks import TaskRow

MAX_FAILURES = 3  # attempts in a row that ended unasked without a newer checkpoint
MAX_OUTAGES = 20  # attempts in a row that ended in an outage without a newer checkpoint: nobody pays for them
NUM_CHECKPOINTS = 2
NUM_YIELDS_KEPT = 8  # more than anyone asks for
OUTAGES = frozenset({UnavailableError.code, DeadlineError.code})
MIN_OUTAGE_MS = 10_000
LOST = "lost"  # outcome in the ledger of an attempt whose lease ran out


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


async def end(connection: AsyncConnection, row: TaskRow, report: Report, now_ms: int, job_retention_ms: int) -> Ended:
    """End the running attempt as its executor says; what it used and measured is kept either way."""
    used_s = max(row.used_s, report.used_s)
    await sql.charge_ledger(connection, row, report.outcome, used_s, report.meters, now_ms)
    await sql.keep_meters(connection, row.job_id, report.meters)
    row = await sql.update_attempt(connection, row.task_id, row.attempt, used_s=used_s) or row
    if report.outcome is Outcome.DONE:
        return await _done(connection, row, report.outputs, now_ms, job_retention_ms)
    row = await record(connection, row, report.checkpoint, now_ms)
    if report.outcome is Outcome.YIELDED:
        yields = [*row.yielded_at_s, row.running_s][-NUM_YIELDS_KEPT:]
        data = {"step": row.newest_done}
        return await _put_back(connection, row, EventType.PREEMPTED, data, now_ms, yielded_at_s=yields)
    if report.outcome is Outcome.FAILED and not report.is_retryable:
        return await fail(connection, row, report.error_code or "internal", report.error_message, now_ms)
    if report.outcome is Outcome.CANCELLED:  # nobody has asked: count it, so that it cannot go on for ever
        return await _retry(connection, row, "stopped", "its worker stopped by itself", now_ms)
    return await _retry(connection, row, report.error_code or "internal", report.error_message, now_ms)


async def lose(connection: AsyncConnection, row: TaskRow, now_ms: int) -> Ended:
    """End the running attempt because its lease ran out."""
    await sql.charge_ledger(connection, row, LOST, row.used_s, {}, now_ms)
    return await _retry(connection, row, "worker_lost", "its worker was lost (the lease ran out)", now_ms)


async def fail(connection: AsyncConnection, row: TaskRow, code: str, message: str, now_ms: int) -> Ended:
    """End the running attempt, its task and the whole job."""
    why = {"error_code": code, "error_message": message, "finished_at_ms": now_ms}
    failed = await sql.move_task(connection, row, TaskState.FAILED, **why)
    if failed is None:
        return Ended(False, row.state, row)
    cancelled = await endings.fail_job(connection, row, code, message, now_ms)
    return Ended(True, failed.state, failed, tuple(cancelled))


async def record(connection: AsyncConnection, row: TaskRow, checkpoint: Checkpoint | None, now_ms: int) -> TaskRow:
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
    changes: dict[str, Any] = {"num_failures": 0, "num_outages": 0} if checkpoint.done > row.furthest_done else {}
    recorded = await sql.update_attempt(connection, row.task_id, row.attempt, checkpoints=kept, **changes)
    data = {"step": checkpoint.done}
    await sql.change_job(connection, row.job_id, EventType.CHECKPOINT, data, now_ms, row=row)
    return recorded or row


async def _done(
    connection: AsyncConnection, row: TaskRow, outputs: tuple[Artifact, ...], now_ms: int, job_retention_ms: int
) -> Ended:
    if row.publishes and stages.manifest_in(outputs) is None:
        return await fail(connection, row, "internal", "its last stage named no manifest to publish", now_ms)
    done = await stages.finish(connection, row, outputs, now_ms, job_retention_ms)
    if done is None:
        return Ended(False, row.state, row)
    await costs.learn(connection, done, now_ms)
    return Ended(True, done.state, done)


async def _put_back(
    connection: AsyncConnection,
    row: TaskRow,
    event: EventType,
    data: dict[str, Any],
    now_ms: int,
    *conditions: sa.ColumnElement[bool],
    **changes: Any,
) -> Ended:
    """leased -> ready, to be handed out again; refused when one of the conditions does not hold.

    It comes on top of MAX_READY_SHARDS of its job, as does every other that was running: what has begun goes on
    before what has not.
    """
    cleared = {"worker_id": None, "epoch": None, "enqueued_at_ms": None, "used_s": 0.0, "ran_s": row.running_s}
    ready = await sql.move_task(connection, row, TaskState.READY, *conditions, **cleared, **changes)
    if ready is None:
        return Ended(False, row.state, row)
    shown = {} if await sql.is_running(connection, row.job_id) else {"phase": "queued"}
    await sql.change_job(connection, row.job_id, event, data, now_ms, changes=shown, row=row, closes=True)
    await sql.announce_ready(connection, ready, now_ms)
    return Ended(True, ready.state, ready)


async def _retry(connection: AsyncConnection, row: TaskRow, code: str, message: str, now_ms: int) -> Ended:
    """An attempt ended unasked: once more, unless it was the third in a row without a newer checkpoint.

    An outage is not the task's fault and does not count as one, but it has an end too. Executors wait 24 to 60 s for
    what is away before they report, so that this is no hot loop; one that gave up at once (its own disk is full)
    counts like any failure.
    """
    num_failures, num_outages = tables.tasks.c.num_failures, tables.tasks.c.num_outages
    attempt_ms = now_ms - (row.claimed_at_ms or 0)
    is_outage = code in OUTAGES and attempt_ms >= MIN_OUTAGE_MS
    ended = await _put_back(
        connection,
        row,
        EventType.QUEUED,
        {"reason": code},
        now_ms,
        num_outages < MAX_OUTAGES - 1 if is_outage else num_failures < MAX_FAILURES - 1,
        num_failures=num_failures + (0 if is_outage else 1),
        num_outages=num_outages + (1 if is_outage else 0),
        error_code=code,
        error_message=message,
    )
    if ended.is_accepted:
        return ended
    if is_outage:
        text = f"It met {MAX_OUTAGES} outages in a row without a newer checkpoint. The last one: {message}"
        return await fail(connection, row, code, text, now_ms)
    text = f"It failed {MAX_FAILURES} times in a row without a newer checkpoint. The last error: {code}: {message}"
    return await fail(connection, row, "poison", text, now_ms)
