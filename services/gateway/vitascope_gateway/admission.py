"""Admission: the one place where a job comes into being."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common import ids, webhooks
from vitascope_common.database import Database, upsert_into
from vitascope_common.errors import ConflictError, UnavailableError
from vitascope_common.events import EventType
from vitascope_common.jobs import (
    MAX_READY_SHARDS,
    FinishParams,
    GenerateParams,
    JobState,
    Kind,
    Params,
    Stage,
    TaskState,
    params_to_dict,
)
from vitascope_common.registry import Capability, ModelCard
from vitascope_common.tables import batch_lines, cost_ratios, jobs, outbox, tasks, webhook_tenants
from vitascope_gateway.hook import Hook
from vitascope_gateway.idempotency import AlreadyMadeError, Repeatable, bind


@dataclass(frozen=True)
class BatchLine:
    """The line of a batch that a job is for; it gets that one job."""

    batch_id: str
    number: int
    deadline_at_ms: int  # of the batch


@dataclass(frozen=True)
class NewJob:
    """Everything that is promised with the 202; all values resolved.

    GenerateParams are those of the kind "generate", both stages; other kinds name parameters and cost of each stage.
    """

    job_id: str
    tenant_id: str
    kind: Kind
    card: ModelCard
    prompt: str  # as the client sent it; `params` hold the normalised one
    params: GenerateParams | Mapping[str, Params]
    safety: Mapping[str, Any]
    labels: Mapping[str, str]
    created_at_ms: int
    traceparent: str = ""
    costs_s: Mapping[str, float] = field(default_factory=dict)  # seconds of one shard of a stage, as the card says
    class_name: str = "standard"
    priority: int = 0  # within the tenant's flow, smaller first
    deadline_at_ms: int | None = None
    retry_of: str | None = None
    remixed_from: str | None = None
    hook: Hook | None = None  # whom the request wants to be told of the end
    line: BatchLine | None = None

    @property
    def price_usd_micros(self) -> int | None:
        """The list price; None: this kind of job has none."""
        return self.card.price_usd_micros(self.params.seconds) if isinstance(self.params, GenerateParams) else None

    @property
    def has_previews(self) -> bool:
        """Whether its worker shows what it is making."""
        return Capability.PREVIEWS in self.card.capabilities

    @property
    def cost_s(self) -> float:
        """Seconds of work of the first stage times the devices that do it, as the card estimates them."""
        return self.cost_of(self.kind.stages[0])

    def cost_of(self, stage: Stage) -> float:
        """Return the card's estimate for one shard of a stage, times the devices that do it; 0: nobody pays for it."""
        if not isinstance(self.params, GenerateParams):
            return self.costs_s.get(stage.name, 0.0) * self.group_size_of(stage)
        if stage.pool is not None:
            return 0.0
        size = f"{self.params.width_px}x{self.params.height_px}"
        seconds = self.card.estimate_s(self.params.num_inference_steps, self.params.num_frames, size)
        return seconds * self.card.group_size

    def group_size_of(self, stage: Stage) -> int:
        """Return how many devices do one shard together."""
        return self.card.group_size if stage.pool is None else 1

    def pool_of(self, stage: Stage) -> str:
        """Return the pool whose workers do a stage."""
        return stage.pool or self.card.pool

    def total_of(self, stage: Stage) -> int:
        """Return how many units a shard has; 0: its executor says."""
        if not isinstance(self.params, GenerateParams):
            return 0
        return self.params.num_inference_steps if stage.unit == "step" else self.params.num_frames_in_all

    def params_of(self, stage: Stage) -> Params:
        """Return what the executor of a stage is told."""
        if not isinstance(self.params, GenerateParams):
            return self.params[stage.name]
        if stage.name == "generate":
            return self.params
        return FinishParams(
            model=self.params.model,
            prompt_sha256=sha256(self.params.prompt.encode()).hexdigest(),
            width_px=self.params.width_px,
            height_px=self.params.height_px,
            num_frames=self.params.num_frames_in_all,
            fps=self.params.fps,
        )


class UnknownOutcomeError(UnavailableError):
    """The database went away while it committed: the job, or what else was asked for, may exist.

    Repeating the request may make a second one, unless it `is_repeatable`, by the key that its client gave: then it
    finds the first. One without a key that `has_next_try` finds it as that, when the client tries again by itself.
    """

    default_message = (
        "The database stopped to answer; the video may have been accepted: look at GET /v1/videos before you repeat it."
    )

    def __init__(self, sent: Repeatable | None = None, hint: str | None = None) -> None:
        self.is_repeatable = sent is not None and sent.is_named
        self.has_next_try = sent is not None and sent.has_next_try
        text = "The database stopped to answer; repeat the request with the same Idempotency-Key."
        super().__init__(text if self.is_repeatable else hint)


class LineTakenError(ConflictError):
    """The line of the batch has its job already, or gets none any more."""


async def admit(
    database: Database, job: NewJob, sent: Repeatable | None = None, ratios: Mapping[str, float] | None = None
) -> None:
    """Write job, tasks, outbox and key in one transaction: after it, the job ends one way or another.

    `ratios` are what `cost_ratios_of` said not long ago; None: it is asked again.

    Raises:
        AlreadyMadeError: the same request has made a job before; no other one is written.
        EdgeError: 422, the key belongs to another request.
        LineTakenError: the job is for a line of a batch that waits for none; nothing is written.
        UnavailableError: nothing was promised; repeating the request is safe.
        UnknownOutcomeError: the job may have been promised.
    """
    async with once(database, sent, job.job_id) as (connection, made):
        if made is None:
            if ratios is None:
                ratios = await cost_ratios_of(connection, job.card.id)
            await _write(connection, job, ratios)
    if made is not None:
        raise AlreadyMadeError(made)


@asynccontextmanager
async def once(
    database: Database, sent: Repeatable | None, new_id: str, hint: str | None = None
) -> AsyncIterator[tuple[AsyncConnection, str | None]]:
    """Yield a transaction for what a request makes once, and what it has made already; None: it is to be made now.

    `new_id` is what it makes; `hint` says what to look at before that is asked for again.

    Raises:
        EdgeError: 422, the key belongs to another request.
        UnavailableError: nothing new was written; UnknownOutcomeError: it may have been.
    """
    is_committing = False
    try:
        async with database.transaction() as connection:
            made = None if sent is None else await bind(connection, sent, new_id)
            yield connection, made
            is_committing = made is None
    except UnavailableError as error:
        if is_committing:
            raise UnknownOutcomeError(sent, hint) from error
        raise


async def _write(connection: AsyncConnection, job: NewJob, ratios: Mapping[str, float]) -> None:
    if job.line is not None:
        await _take(connection, job.line, job.job_id)
    rows = _task_rows(job, ratios)
    await connection.execute(sa.insert(jobs), _job_row(job))
    await connection.execute(sa.insert(tasks), rows)
    told = [("event", {"type": EventType.QUEUED.value, "data": {}, "version": 1})]
    told += [("ready", {"task_id": row["task_id"]}) for row in rows if row["state"] == TaskState.READY.value]
    await connection.execute(sa.insert(outbox), [_outbox_row(job, topic, payload) for topic, payload in told])
    if job.hook is not None:
        await keep_webhook_secret(connection, job.tenant_id, job.created_at_ms)


async def keep_webhook_secret(connection: AsyncConnection, tenant_id: str, now_ms: int) -> None:
    """Make the secret that signs for the URLs of a tenant's requests, unless there is one."""
    new = upsert_into(connection, webhook_tenants).values(
        tenant_id=tenant_id, secret=webhooks.new_secret(), created_at_ms=now_ms
    )
    await connection.execute(new.on_conflict_do_nothing())


async def _take(connection: AsyncConnection, line: BatchLine, job_id: str) -> None:
    row = batch_lines.c
    take = (
        sa.update(batch_lines)
        .where(row.batch_id == line.batch_id, row.line == line.number, row.state == "pending")
        .values(state="admitted", job_id=job_id)
        .returning(row.line)
    )
    if (await connection.execute(take)).one_or_none() is None:
        raise LineTakenError


async def cost_ratios_of(connection: AsyncConnection, model: str) -> dict[str, float]:
    """Read, by pool, what runs of a model really cost over what its card estimates."""
    query = sa.select(cost_ratios.c.pool, cost_ratios.c.ratio).where(cost_ratios.c.model == model)
    return {pool: ratio for pool, ratio in await connection.execute(query)}


def _outbox_row(job: NewJob, topic: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return one row; those of one statement are numbered in their order."""
    return {
        "tenant_id": job.tenant_id,
        "job_id": job.job_id,
        "topic": topic,
        "payload": payload,
        "traceparent": job.traceparent,
        "created_at_ms": job.created_at_ms,
    }


def _job_row(job: NewJob) -> dict[str, Any]:
    first = job.kind.stages[0]
    return {
        "job_id": job.job_id,
        "tenant_id": job.tenant_id,
        "kind": job.kind.name,
        "model": job.card.id,
        "state": JobState.QUEUED.value,
        "phase": JobState.QUEUED.value,
        "version": 1,
        "total": job.total_of(first) * first.num_shards,
        "unit": first.unit,
        "prompt": job.prompt,
        "params": params_to_dict(job.params_of(first)),
        "safety": dict(job.safety),
        "labels": dict(job.labels),
        "class_name": job.class_name,
        "traceparent": job.traceparent,
        "created_at_ms": job.created_at_ms,
        "deadline_at_ms": job.deadline_at_ms,
        "price_usd_micros": job.price_usd_micros,
        "has_previews": job.has_previews,
        "retry_of": job.retry_of,
        "remixed_from": job.remixed_from,
        "webhook_url": None if job.hook is None else job.hook.url,
        "webhook_events": "" if job.hook is None else " ".join(job.hook.events),
    }


def _task_rows(job: NewJob, ratios: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return a row per stage and shard; of those that need nothing, the first MAX_READY_SHARDS are ready."""
    rows = [_task_row(job, stage, shard, ratios) for stage in job.kind.stages for shard in range(stage.num_shards)]
    for row in [row for row in rows if not row["needs"]][:MAX_READY_SHARDS]:
        row["state"] = TaskState.READY.value
    return rows


def _task_row(job: NewJob, stage: Stage, shard: int, ratios: Mapping[str, float]) -> dict[str, Any]:
    ratio = ratios.get(job.pool_of(stage), 1.0)
    return {
        "task_id": ids.task_id(job.job_id, stage.name, shard),
        "job_id": job.job_id,
        "tenant_id": job.tenant_id,
        "kind": job.kind.name,
        "stage": stage.name,
        "shard": shard,
        "executor": stage.executor,
        "pool": job.pool_of(stage),
        "class_name": job.class_name,
        "priority": job.priority,
        "state": TaskState.WAITING.value,
        "needs": stage.needs or "",
        "needs_same_shard": stage.needs_same_shard,
        "num_needed": job.kind.num_needed(stage),
        "publishes": stage.publishes,
        "params": params_to_dict(job.params_of(stage)),
        "inputs": [],
        "outputs": [],
        "checkpoints": [],
        "total": job.total_of(stage),
        "unit": stage.unit,
        "cost_s": job.cost_of(stage) * ratio,
        "cost_ratio": ratio,
        "group_size": job.group_size_of(stage),
        "yieldable": stage.yieldable,
        "affinity": {"model": job.card.id, "adapters": []},
        "traceparent": job.traceparent,
        "created_at_ms": job.created_at_ms,
    }
