"""The use cases behind the calls of gateways and executors.

SQL decides first and alone; what Redis is told afterwards is a hint, so that a call whose transaction is committed
succeeds even when Redis is away.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from vitascope_common.errors import NotFoundError, UnavailableError
from vitascope_common.executor import Action, Outcome
from vitascope_common.jobs import TERMINAL_TASK
from vitascope_scheduler import metrics
from vitascope_scheduler.dispatch import Dispatcher
from vitascope_scheduler.job_manager import Claim, Ended, JobManager, Report, TaskStatus
from vitascope_scheduler.positions import Positions, QueuePosition
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.relay import Relay
from vitascope_scheduler.tasks import EXECUTORS_OF_CELERY, TaskRow
from vitascope_scheduler.worker import SlotsOfWorker, Worker

REDIS_S = 1.0  # what a call waits for Redis in all: its caller gives up after executor.CALL_TIMEOUT_S
NUM_WORKERS_TIMED = 10_000  # heartbeats remembered for the metric

log = structlog.get_logger()


@dataclass(frozen=True)
class Beat:
    """A heartbeat: who, and every task it holds."""

    worker_id: str
    executor: str
    pool: str
    warm_models: tuple[str, ...] = ()
    tasks: tuple[TaskStatus, ...] = ()
    is_draining: bool = False


@dataclass(frozen=True)
class BeatAnswer:
    """What the scheduler wants of each task; whether the worker must register."""

    must_register: bool
    actions: tuple[tuple[TaskStatus, Action], ...]


class Scheduler:
    """Submit, Cancel, Delete, GetQueuePosition(s), Forecast; Register, Claim, Heartbeat, Report."""

    def __init__(self, manager: JobManager, reader: Reader, dispatcher: Dispatcher, relay: Relay) -> None:
        self._manager = manager
        self._reader = reader
        self._dispatcher = dispatcher
        self._queue = dispatcher.queue
        self._relay = relay
        self._clock = dispatcher.clock
        self.timing = dispatcher.timing
        self._last_beat_ms: dict[str, int] = {}
        self._positions = Positions(dispatcher.queue, dispatcher.clock)

    async def submit(self, job_id: str) -> None:
        """Look at the outbox now."""
        self._relay.wake()

    async def cancel(self, job_id: str, tenant_id: str) -> str:
        """Cancel a job that is not over; return its state. Raises NotFoundError."""
        state, cancelled = await self._manager.cancel(job_id, tenant_id)
        await self._stop(cancelled)
        return state

    async def delete(self, job_id: str, tenant_id: str) -> None:
        """Hide a job, cancelled first when it is not over. Raises NotFoundError."""
        await self._stop(await self._manager.delete(job_id, tenant_id))

    async def queue_positions(self, job_ids: Sequence[str]) -> list[QueuePosition]:
        """Say where jobs stand, in this order; at most 2 s old. From Redis alone. Raises UnavailableError."""
        async with in_time():
            return await self._positions.of(frozenset(self._dispatcher.pools), job_ids)

    async def foresee(self, pool: str, tenant_id: str, class_name: str, cost_s: float) -> QueuePosition:
        """Say where a job would stand that a tenant sent now. Raises NotFoundError, UnavailableError."""
        share = await self._reader.share(tenant_id)
        if share is None:
            raise NotFoundError("There is no such tenant.", param="tenant_id")
        async with in_time():
            return await self._positions.foresee(pool, tenant_id, class_name, share, cost_s)

    async def register(self, worker: Worker) -> None:
        """Enter a worker and give it work, unless it is drained. Raises UnavailableError: it asks again."""
        async with in_time():
            await self._dispatcher.apply_drains(worker.pool)  # a Redis that has lost them would give it work
            await self._queue.register(worker, self._clock(), self.timing.lease_ttl_ms)
            log.info("worker.registered", worker=worker.worker_id, pool=worker.pool, slots=worker.num_slots)
            await self._dispatcher.fill_worker(worker.pool, worker.worker_id)

    async def claim(self, task_id: str, worker_id: str, group_size: int = 0) -> Claim:
        """Begin an attempt, or say why not; of so many ranks, 0: as many as its card says."""
        claim = await self._manager.claim(task_id, worker_id, group_size)
        metrics.CLAIMS.labels("granted" if claim.task else claim.reason).inc()
        self._relay.wake()
        if claim.task is not None and claim.row is not None:
            log.info("task.claimed", task=task_id, attempt=claim.task.attempt, worker=worker_id)
            await self._hint(self._renew(claim.row, worker_id))
        else:
            log.info("task.claim_refused", task=task_id, reason=claim.reason, worker=worker_id)
            await self._hint(self._settle(claim.row))
        return claim

    async def heartbeat(self, beat: Beat) -> BeatAnswer:
        """Record progress and checkpoints, renew leases and registration, give free slots work."""
        actions: list[tuple[TaskStatus, Action]] = []
        running: list[TaskRow] = []
        yielding: set[str] = set()
        for status in beat.tasks:
            action, row = await self._manager.heartbeat(status)
            actions.append((status, action))
            if action is Action.RUN and row is not None:
                running.append(row)
        if any(status.checkpoint for status in beat.tasks):
            self._relay.wake()
        self._measure(beat.worker_id)
        try:
            async with in_time():
                must_register = await self._renew_all(beat, running, yielding)
        except UnavailableError as error:
            log.warning("queue.unavailable", error=error.message)
            must_register = False
        asked = (
            (status, Action.YIELD if action is Action.RUN and status.task_id in yielding else action)
            for status, action in actions
        )
        return BeatAnswer(must_register, tuple(asked))

    async def report(self, report: Report) -> Ended:
        """End an attempt in one transaction; then free its slot and hand out what is ready."""
        ended = await self._manager.report(report)
        metrics.REPORTS.labels(report.outcome, str(ended.is_accepted).lower()).inc()
        self._relay.wake()
        log.info(
            "task.reported",
            task=report.task_id,
            attempt=report.attempt,
            outcome=report.outcome.value,
            accepted=ended.is_accepted,
            state=ended.state,
        )
        if ended.is_accepted and report.outcome is Outcome.DONE:
            self._positions.done(report.task_id)
        if ended.row is not None:
            await self._hint(self._tell(ended))
        return ended

    async def _renew_all(self, beat: Beat, running: list[TaskRow], yielding: set[str]) -> bool:
        """Renew leases and registration; add the tasks that should yield. Tells whether the worker must register."""
        self._dispatcher.pools.add(beat.pool)
        for row in running:
            if await self._renew(row, beat.worker_id) == "yield":
                yielding.add(row.task_id)
        if beat.executor in EXECUTORS_OF_CELERY:
            return False  # they have no inbox and no slots here
        listed = tuple(status.task_id for status in beat.tasks)
        slots = SlotsOfWorker(listed, beat.warm_models, beat.is_draining)
        ttl_ms = self.timing.lease_ttl_ms
        let_go = await self._queue.heartbeat(beat.pool, beat.worker_id, slots, self._clock(), ttl_ms)
        if let_go is None:
            return not beat.is_draining
        for task_id in let_go:
            await self._dispatcher.agree(task_id)
        if let_go:
            await self._dispatcher.fill(beat.pool)
        else:
            await self._dispatcher.fill_worker(beat.pool, beat.worker_id)
        return False

    async def _renew(self, row: TaskRow, worker_id: str) -> str:
        self._dispatcher.pools.add(row.pool)
        answer = await self._queue.lease(row, worker_id, self._clock(), self.timing.lease_ttl_ms)
        if answer == "created":  # made again after a loss, or by a heartbeat that was overtaken by the report
            await self._dispatcher.agree(row.task_id)
        return answer

    async def _settle(self, row: TaskRow | None) -> None:
        if row is not None and row.state in TERMINAL_TASK:
            await self._agree(row)

    async def _agree(self, row: TaskRow) -> None:
        await self._dispatcher.agree_with(row)
        await self._dispatcher.fill(row.pool)

    async def _tell(self, ended: Ended) -> None:
        if ended.row is not None and (ended.is_accepted or ended.row.state in TERMINAL_TASK):
            await self._agree(ended.row)
        await self._stop_each(ended.cancelled)

    async def _stop(self, cancelled: list[TaskRow]) -> None:
        self._relay.wake()
        await self._hint(self._stop_each(cancelled))

    async def _stop_each(self, cancelled: Sequence[TaskRow]) -> None:
        for row in cancelled:
            log.info("task.cancelled", job=row.job_id, task=row.task_id, attempt=row.attempt)
            await self._queue.stop(row, self._clock())

    async def _hint(self, hint: Awaitable[object]) -> None:
        """Tell Redis what SQL has decided; reaper and reconciler do it when this cannot, or not soon enough."""
        try:
            async with in_time():
                await hint
        except UnavailableError as error:
            log.warning("queue.unavailable", error=error.message)

    def _measure(self, worker_id: str) -> None:
        now_ms = self._clock()
        before_ms = self._last_beat_ms.pop(worker_id, None)
        if before_ms is not None:
            metrics.HEARTBEAT_GAP_S.observe(max(0, now_ms - before_ms) / 1000)
        self._last_beat_ms[worker_id] = now_ms
        if len(self._last_beat_ms) > NUM_WORKERS_TIMED:
            del self._last_beat_ms[next(iter(self._last_beat_ms))]


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """End a block that Redis holds up. Raises UnavailableError; scripts are atomic and may be repeated."""
    try:
        async with asyncio.timeout(REDIS_S):
            yield
    except TimeoutError as error:
        raise UnavailableError("Redis does not answer in time, try again shortly") from error
