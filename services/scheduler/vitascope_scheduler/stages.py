"""From stage to stage: what a finished task opens, and when its job is complete.

The rows say it all (`needs`, `needs_same_shard`, `num_needed`, `publishes`); no kind of job is known here. All
functions run inside a transaction that holds the lock of the job.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common.events import EventType
from vitascope_common.jobs import MAX_READY_SHARDS, Artifact, JobState, TaskState
from vitascope_scheduler import statements as sql
from vitascope_scheduler.tasks import TaskRow

MANIFEST = "manifest"  # role of the output that publishes a job


def manifest_in(outputs: Iterable[Artifact]) -> Artifact | None:
    """Return the manifest among the outputs of a task."""
    return next((artifact for artifact in outputs if artifact.role == MANIFEST), None)


async def finish(
    connection: AsyncConnection, row: TaskRow, outputs: tuple[Artifact, ...], now_ms: int, job_retention_ms: int
) -> TaskRow | None:
    """End a task well, open what waits for it alone, and publish the job when it was the last one. None: refused."""
    kept = [asdict(one) for one in outputs]
    done = await sql.move_task(connection, row, TaskState.DONE, outputs=kept, finished_at_ms=now_ms)
    if done is None:
        return None
    opened = await sql.count_down(connection, row)
    await promote(connection, row.job_id, now_ms)
    for stage, executor in opened:
        if executor == "postproc":
            changes, data = {"phase": "postprocessing"}, {"stage": stage}
            event = EventType.POSTPROCESSING
            await sql.change_job(connection, row.job_id, event, data, now_ms, changes=changes, row=done, closes=True)
        else:
            await sql.show_job(connection, row.job_id, phase=stage)
    if await sql.num_unfinished(connection, row.job_id) == 0:
        await _complete(connection, done, now_ms, job_retention_ms)
    return done


async def promote(connection: AsyncConnection, job_id: str, now_ms: int) -> None:
    """Make ready what needs nothing any more, by shard, while fewer than MAX_READY_SHARDS tasks of the job are.

    Called whenever a place becomes free (a task was claimed) or a task comes to need nothing. Tasks that come back are
    ready on top of the limit, as many as were running; then nothing more is made ready until claims have brought the
    number below it again.
    """
    for waiting in await sql.next_waiting(connection, job_id, MAX_READY_SHARDS):
        has_place = sql.num_ready(job_id) < MAX_READY_SHARDS
        inputs = await sql.inputs_of(connection, waiting)
        ready = await sql.move_task(connection, waiting, TaskState.READY, has_place, inputs=inputs)
        if ready is None:
            return
        await sql.announce_ready(connection, ready, now_ms)


async def _complete(connection: AsyncConnection, done: TaskRow, now_ms: int, job_retention_ms: int) -> None:
    published: dict[str, Any] = {"state": JobState.COMPLETED, "phase": "completed", "finished_at_ms": now_ms}
    if job_retention_ms:
        published["expires_at_ms"] = now_ms + job_retention_ms
    outputs = await sql.published_outputs(connection, done.job_id)
    manifest = manifest_in(Artifact(**one) for one in outputs)
    if manifest is not None:
        published |= {"manifest_key": manifest.key, "manifest_sha256": manifest.sha256}
    event = EventType.COMPLETED
    await sql.change_job(connection, done.job_id, event, {}, now_ms, changes=published, row=done, closes=True)
