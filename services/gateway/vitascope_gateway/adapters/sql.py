"""SQL: keys and tenants, admission, and reading jobs."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from vitascope_common.database import Database
from vitascope_common.jobs import GENERATE, TERMINAL_JOB, Artifact, JobState, TaskState
from vitascope_common.tables import api_keys, jobs, tasks, tenants
from vitascope_gateway import admission
from vitascope_gateway.adapters.paging import page_of
from vitascope_gateway.hook import Hook
from vitascope_gateway.idempotency import Repeatable, find, note_refusal
from vitascope_gateway.request import SERVICE_CLASSES
from vitascope_gateway.service import Caller, JobRecord

KEY_CACHE_S = 5.0
KEY_CACHE_SIZE = 10_000
RATIO_CACHE_S = 2.0

_COLUMNS = (
    jobs,
    tasks.c.done.label("steps_done"),
    tasks.c.total.label("steps_total"),
    tasks.c.attempt,
    tasks.c.cost_s,
    tasks.c.priority,
    tasks.c.state.label("task_state"),
    tasks.c.used_s,
    tasks.c.ran_s,
    tasks.c.group_size,
)
_FIRST = GENERATE.stages[0]  # does the work that people watch
_JOBS = sa.select(*_COLUMNS).select_from(
    jobs.outerjoin(
        tasks,
        sa.and_(tasks.c.job_id == jobs.c.job_id, tasks.c.stage == _FIRST.name, tasks.c.shard == sa.literal(0)),
    )
)


class SqlStore:
    """Implements service.Store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._keys: dict[str, tuple[Caller | None, float]] = {}
        self._ratios: dict[str, tuple[Mapping[str, float], float]] = {}  # by model

    async def caller(self, key_sha256: str) -> Caller | None:
        """Return whose key this is; None for one that is unknown or revoked. Cached for a few seconds."""
        now = time.monotonic()
        known = self._keys.get(key_sha256)
        if known is not None and now < known[1]:
            return known[0]
        query = (
            sa.select(api_keys.c.tenant_id, tenants.c.classes, api_keys.c.scopes)
            .join(tenants, tenants.c.tenant_id == api_keys.c.tenant_id)
            .where(api_keys.c.key_sha256 == key_sha256, api_keys.c.revoked_at_ms.is_(None))
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        caller = None
        if row is not None:
            named = (name.strip() for name in row.classes.split(","))
            classes = tuple(name for name in named if name in SERVICE_CLASSES)
            caller = Caller(row.tenant_id, classes, key_sha256, frozenset(row.scopes.split()))
        if len(self._keys) >= KEY_CACHE_SIZE:
            self._keys.clear()
        self._keys[key_sha256] = (caller, now + KEY_CACHE_S)
        return caller

    async def admit(self, job: admission.NewJob, sent: Repeatable | None = None) -> None:
        """Write the job in one transaction."""
        await admission.admit(self._database, job, sent, await self._cost_ratios(job.card.id))

    async def made(self, sent: Repeatable) -> str | None:
        """Return the job that this request has made already."""
        return await find(self._database, sent)

    async def note_refusal(self, sent: Repeatable) -> None:
        """Remember that the first try of a call was refused."""
        await note_refusal(self._database, sent)

    async def job(self, tenant_id: str, job_id: str) -> JobRecord | None:
        """Return one job of this tenant that is not deleted."""
        query = _JOBS.where(jobs.c.job_id == job_id, jobs.c.tenant_id == tenant_id, jobs.c.deleted_at_ms.is_(None))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else _record(row)

    async def open_jobs(self, job_ids: Iterable[str]) -> frozenset[str]:
        """Return those of these jobs that have neither ended nor been deleted."""
        query = sa.select(jobs.c.job_id).where(
            jobs.c.job_id.in_(job_ids), jobs.c.state.not_in(TERMINAL_JOB), jobs.c.deleted_at_ms.is_(None)
        )
        async with self._database.read() as connection:
            return frozenset((await connection.execute(query)).scalars())

    async def jobs(self, tenant_id: str, job_ids: Sequence[str]) -> Mapping[str, JobRecord]:
        """Return those jobs of this tenant that are not deleted, by id."""
        query = _JOBS.where(jobs.c.job_id.in_(job_ids), jobs.c.tenant_id == tenant_id, jobs.c.deleted_at_ms.is_(None))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return {row["job_id"]: _record(row) for row in rows}

    async def page(
        self, tenant_id: str, after: str | None, limit: int, is_ascending: bool
    ) -> tuple[Sequence[JobRecord], bool]:
        """Return a page by creation, and whether more follow. A deleted video still serves as `after`."""
        query = _JOBS.where(jobs.c.tenant_id == tenant_id, jobs.c.deleted_at_ms.is_(None))
        cursor = sa.select(jobs.c.created_at_ms).where(jobs.c.job_id == after, jobs.c.tenant_id == tenant_id)
        rows, has_more = await page_of(
            self._database, query, cursor, jobs.c.job_id, after, limit, "videos", is_ascending=is_ascending
        )
        return [_record(row) for row in rows], has_more

    async def published(self, job_id: str) -> Sequence[Artifact]:
        """Return the files of a finished job."""
        query = sa.select(tasks.c.outputs).where(tasks.c.job_id == job_id, tasks.c.publishes)
        async with self._database.read() as connection:
            found = (await connection.execute(query)).scalars().all()
        return [Artifact(**one) for outputs in found for one in outputs]

    async def cost_ratio(self, pool: str, model: str) -> float:
        """Return what admission would multiply the card's estimate by."""
        return (await self._cost_ratios(model)).get(pool, 1.0)

    async def _cost_ratios(self, model: str) -> Mapping[str, float]:
        """Read them, or remember: they move slowly, and every write waits for the transactions before it."""
        now = time.monotonic()
        found, until = self._ratios.get(model, ({}, 0.0))
        if now >= until:
            async with self._database.read() as connection:
                found = await admission.cost_ratios_of(connection, model)
            self._ratios[model] = found, now + RATIO_CACHE_S
        return found

    async def check(self) -> None:
        """Raise UnavailableError unless the database answers."""
        await self._database.check()


def _record(row: Any) -> JobRecord:
    return JobRecord(
        job_id=row["job_id"],
        tenant_id=row["tenant_id"],
        state=JobState(row["state"]),
        phase=row["phase"],
        model=row["model"],
        prompt=row["prompt"],
        params=row["params"],
        labels=row["labels"],
        created_at_ms=row["created_at_ms"],
        finished_at_ms=row["finished_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        steps_done=row["steps_done"] or 0,
        steps_total=row["steps_total"] or 0,
        attempt=row["attempt"] or 0,
        cost_s=row["cost_s"] or 0.0,
        stage=_stage(row),
        gpu_seconds=((row["ran_s"] or 0.0) + (row["used_s"] or 0.0)) * (row["group_size"] or 1),
        started_at_ms=row["started_at_ms"],
        price_usd_micros=row["price_usd_micros"],
        has_previews=row["has_previews"],
        meters=row["meters"],
        class_name=row["class_name"],
        priority=row["priority"] or 0,
        deadline_at_ms=row["deadline_at_ms"],
        retry_of=row["retry_of"],
        remixed_from=row["remixed_from"],
        hook=Hook.stored(row["webhook_url"], row["webhook_events"]),
    )


def _stage(row: Any) -> str | None:
    """Return the stage that a running job is in: the first one, or the one after it."""
    if row["state"] != JobState.RUNNING:
        return None
    if row["task_state"] != TaskState.DONE:
        return _FIRST.name
    after = GENERATE.after(_FIRST.name)
    return None if after is None else after.name
