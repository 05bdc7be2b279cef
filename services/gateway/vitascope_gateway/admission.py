"""Admission: the one place where a job comes into being."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common import ids
from vitascope_common.database import Database
from vitascope_common.errors import UnavailableError
from vitascope_common.events import EventType
from vitascope_common.jobs import FinishParams, GenerateParams, JobState, Kind, Params, Stage, TaskState
from vitascope_common.registry import ModelCard
from vitascope_common.tables import jobs, outbox, tasks


@dataclass(frozen=True)
class NewJob:
    """Everything that is promised with the 202; all values resolved."""

    job_id: str
    tenant_id: str
    kind: Kind
    card: ModelCard
    prompt: str  # as the client sent it; `params` hold the normalised one
    params: GenerateParams
    safety: Mapping[str, Any]
    labels: Mapping[str, str]
    traceparent: str
    created_at_ms: int

    @property
    def cost_s(self) -> float:
        """Estimated seconds of work times the devices that do it."""
        return self.card.estimate_s(self.params.num_inference_steps, self.params.num_frames) * self.card.group_size


class UnknownOutcomeError(UnavailableError):
    """The database went away while it committed: the job may exist, and repeating the request may make a second one."""

    default_message = (
        "The database stopped to answer; the video may have been accepted: look at GET /v1/videos before you repeat it."
    )


async def admit(database: Database, job: NewJob) -> None:
    """Write job, tasks and outbox in one transaction: after it, the job ends one way or another.

    Raises:
        UnavailableError: nothing was promised; repeating the request is safe.
        UnknownOutcomeError: the job may have been promised.
    """
    rows = [_task_row(job, stage) for stage in job.kind.stages]
    is_committing = False
    try:
        async with database.transaction() as connection:
            await connection.execute(sa.insert(jobs), _job_row(job))
            await connection.execute(sa.insert(tasks), rows)
            await _outbox(connection, job, "event", {"type": EventType.QUEUED.value, "data": {}, "version": 1})
            for row in rows:
                if row["state"] == TaskState.READY.value:
                    await _outbox(connection, job, "ready", {"task_id": row["task_id"]})
            is_committing = True
    except UnavailableError as error:
        if is_committing:
            raise UnknownOutcomeError from error
        raise


async def _outbox(connection: AsyncConnection, job: NewJob, topic: str, payload: dict[str, Any]) -> None:
    """Add one row; one statement each, so that `outbox_id` keeps this order."""
    await connection.execute(
        sa.insert(outbox).values(
            tenant_id=job.tenant_id,
            job_id=job.job_id,
            topic=topic,
            payload=payload,
            traceparent=job.traceparent,
            created_at_ms=job.created_at_ms,
        )
    )


def _job_row(job: NewJob) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "tenant_id": job.tenant_id,
        "kind": job.kind.name,
        "model": job.card.id,
        "state": JobState.QUEUED.value,
        "phase": JobState.QUEUED.value,
        "version": 1,
        "total": job.params.num_inference_steps,
        "unit": job.kind.stages[0].unit,
        "prompt": job.prompt,
        "params": asdict(job.params),
        "safety": dict(job.safety),
        "labels": dict(job.labels),
        "traceparent": job.traceparent,
        "created_at_ms": job.created_at_ms,
    }


def _task_row(job: NewJob, stage: Stage) -> dict[str, Any]:
    is_first = stage.needs is None
    params = _params(job, stage)
    return {
        "task_id": ids.task_id(job.job_id, stage.name, 0),
        "job_id": job.job_id,
        "tenant_id": job.tenant_id,
        "kind": job.kind.name,
        "stage": stage.name,
        "shard": 0,
        "executor": stage.executor,
        "pool": stage.pool or job.card.pool,
        "state": (TaskState.READY if is_first else TaskState.WAITING).value,
        "needs": stage.needs or "",
        "needs_same_shard": stage.needs_same_shard,
        "num_needed": job.kind.num_needed(stage),
        "publishes": stage.publishes,
        "params": asdict(params),
        "inputs": [],
        "outputs": [],
        "checkpoints": [],
        "total": job.params.num_inference_steps if stage.unit == "step" else job.params.num_frames,
        "unit": stage.unit,
        "cost_s": job.cost_s if stage.pool is None else 0.0,
        "group_size": job.card.group_size if stage.pool is None else 1,
        "yieldable": stage.yieldable,
        "affinity": {"model": job.card.id, "adapters": []},
        "traceparent": job.traceparent,
        "created_at_ms": job.created_at_ms,
    }


def _params(job: NewJob, stage: Stage) -> Params:
    if stage.name == "generate":
        return job.params
    return FinishParams(
        model=job.params.model,
        prompt_sha256=sha256(job.params.prompt.encode()).hexdigest(),
        width_px=job.params.width_px,
        height_px=job.params.height_px,
        num_frames=job.params.num_frames,
        fps=job.params.fps,
    )
