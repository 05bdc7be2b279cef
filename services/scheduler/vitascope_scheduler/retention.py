"""Retention: what a finished job leaves behind is removed by policy, bytes first and its row last.

One replica at a time does it, as a rule; twice is harmless. Whatever dies in between, the row is still there and the
next round begins with it again. The ledger stays: it holds no prompt. A gateway that dies before it has admitted a job
leaves references that no row tells of; those are found by what lies in the store.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

import structlog

from vitascope_common import ids
from vitascope_common.errors import UnavailableError, VitascopeError
from vitascope_common.objectstore import ObjectStore
from vitascope_scheduler import metrics
from vitascope_scheduler.job_manager import JobManager
from vitascope_scheduler.reader import FinishedJob, Position, Reader

ROUND_S = 60.0
LEAD_TTL_MS = 90_000
PAGE = 100
LOST_S = 3600.0
"""Between two looks for work files of jobs that there are not."""
LOST_MS = 31 * 24 * 3600 * 1000
"""How old the id of such a job is at least: longer than jobs wait, should the store have those of others."""

log = structlog.get_logger()


class Histories(Protocol):
    """The events of jobs, and who leads. Raises UnavailableError."""

    async def forget_events(self, job_id: str) -> None: ...
    async def lead(self, duty: str, replica_id: str, ttl_ms: int) -> bool: ...


@dataclass(frozen=True)
class Policy:
    """How long what is kept."""

    work_ms: int = 24 * 3600 * 1000  # checkpoints and what passes between stages; and what its tenant has deleted
    job_ms: int = 30 * 24 * 3600 * 1000  # the job itself and its videos; 0: for ever, unless its tenant deletes it


class Retention:
    """Removes what is over: see `round`."""

    def __init__(
        self,
        manager: JobManager,
        reader: Reader,
        store: ObjectStore,
        histories: Histories,
        policy: Policy,
        clock: Callable[[], int] = ids.now_ms,
    ) -> None:
        self._manager = manager
        self._reader = reader
        self._store = store
        self._histories = histories
        self._policy = policy
        self._clock = clock
        self._replica_id = uuid4().hex
        self._looked_at_ms = clock()

    async def run(self) -> None:
        """Look for ever, once a minute."""
        while True:
            try:
                await self.take_turn()
            except UnavailableError as error:
                metrics.FAILURES.labels("retention").inc()
                log.warning("retention.unavailable", error=error.message)
            except Exception:  # a fault of ours must not end it; it is logged and tried again
                metrics.FAILURES.labels("retention").inc()
                log.exception("retention.crashed")
            await asyncio.sleep(ROUND_S)

    async def take_turn(self) -> bool:
        """Do one round, unless another replica has the lead."""
        is_leader = await self._histories.lead("retention", self._replica_id, LEAD_TTL_MS)
        if is_leader:
            await self.round()
        return is_leader

    async def round(self) -> None:
        """Purge the jobs that are kept no longer, then sweep work files of those that ended long ago or never were."""
        now_ms = self._clock()
        after: Position = (0, "")
        while page := await self._reader.to_purge(now_ms, self._policy.work_ms, self._policy.job_ms, after, PAGE):
            for job in page:
                await self._try(job, self._purge)
            after = page[-1].position
        after = (0, "")
        while page := await self._reader.to_sweep(now_ms - self._policy.work_ms, after, PAGE):
            for job in page:
                await self._try(job, self._sweep)
            after = page[-1].position
        if now_ms >= self._looked_at_ms + LOST_S * 1000:
            await self._sweep_lost(now_ms - LOST_MS)
            self._looked_at_ms = now_ms

    async def _sweep_lost(self, made_before_ms: int) -> None:
        """Remove the work files of jobs that there are not, unless there is none of those that have some."""
        found = await asyncio.to_thread(self._with_work, made_before_ms)
        known: set[str] = set()
        for begin in range(0, len(found), PAGE):
            known.update(await self._reader.known(found[begin : begin + PAGE]))
        if found and not known:  # a new database, one that is not restored yet, or the store of somebody else
            log.warning("work.unknown_kept", num_jobs=len(found), oldest=found[0])
            return
        for job_id in found:
            if job_id not in known:
                num_files = await asyncio.to_thread(self._store.delete_prefix, f"work/{job_id}/")
                log.info("work.lost_removed", job=job_id, num_files=num_files)

    def _with_work(self, made_before_ms: int) -> list[str]:
        """Name the jobs of that age that have work files; their ids, and so the keys, begin with their time."""
        found: dict[str, None] = {}
        for one in self._store.list("work/video_"):
            job_id = one.key.split("/")[1]
            if not ids.is_job_id(job_id):
                continue
            if ids.job_made_at_ms(job_id) >= made_before_ms:
                break
            found[job_id] = None
        return list(found)

    async def _try(self, job: FinishedJob, remove: Callable[[FinishedJob], Awaitable[None]]) -> None:
        """Remove what one job left; what stands in the way there holds up no other job."""
        try:
            await remove(job)
        except VitascopeError as error:
            metrics.FAILURES.labels("retention").inc()
            log.warning("retention.failed", job=job.job_id, code=error.code, error=error.message)

    async def _purge(self, job: FinishedJob) -> None:
        await asyncio.to_thread(self._remove_files, job.job_id, "")
        await self._histories.forget_events(job.job_id)
        if await self._manager.purge(job.job_id):
            metrics.PURGED.inc()
            log.info("job.purged", job=job.job_id, tenant=job.tenant_id)

    async def _sweep(self, job: FinishedJob) -> None:
        """Remove what SQL does not name: work files, and videos of attempts that were not published."""
        await asyncio.to_thread(self._remove_files, job.job_id, job.published_folder)
        await self._manager.mark_swept(job.job_id)

    def _remove_files(self, job_id: str, kept: str) -> None:
        """Remove every file of a job except those below the prefix `kept`; "": all."""
        for root in ("videos", "work"):
            folder = f"{root}/{job_id}/"
            if not kept.startswith(folder):
                self._store.delete_prefix(folder)
                continue
            for key in [one.key for one in self._store.list(folder)]:
                if not key.startswith(kept):
                    self._store.delete(key)
