"""Dispatcher: make Redis and Celery agree with a row of SQL, and give free slots to whoever's turn it is.

All of it may run twice, late or not at all: SQL decides at Claim, and the reconciler repeats what was lost.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from vitascope_common import ids, telemetry
from vitascope_common.jobs import TERMINAL_TASK, TaskState
from vitascope_scheduler import metrics
from vitascope_scheduler.forecast import Line
from vitascope_scheduler.job_manager import JobManager
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.tasks import TaskRow
from vitascope_scheduler.view import PoolView
from vitascope_scheduler.worker import Dispatched, Nothing, Preempted, Preemption, SlotsOfWorker, Worker

log = structlog.get_logger()


class Queue(Protocol):
    """The fair queues of all pools. Raises UnavailableError; every call may be repeated."""

    async def enqueue(self, row: TaskRow, now_ms: int, traceparent: str) -> Dispatched | str: ...
    async def dispatch(self, pool: str, worker_id: str, now_ms: int, lease_ttl_ms: int) -> Dispatched | Nothing: ...
    async def lease(self, row: TaskRow, worker_id: str, now_ms: int, lease_ttl_ms: int) -> str: ...
    async def settle(self, pool: str, task_id: str, ended: int, actual_s: float, now_ms: int) -> Dispatched | bool: ...
    async def stop(self, row: TaskRow, now_ms: int) -> str: ...
    async def register(self, worker: Worker, now_ms: int, ttl_ms: int) -> None: ...
    async def heartbeat(
        self, pool: str, worker_id: str, beat: SlotsOfWorker, now_ms: int, ttl_ms: int
    ) -> list[str] | None: ...
    async def set_flow(self, pool: str, tenant_id: str, weight: float, cap: int, now_ms: int) -> None: ...
    async def preempt(self, pool: str, rule: Preemption, now_ms: int, lease_ttl_ms: int) -> Preempted | None: ...
    async def set_drains(self, pool: str, worker_ids: Collection[str], now_ms: int) -> list[str]: ...
    async def view(self, pool: str, now_ms: int) -> PoolView: ...
    async def line(self, pool: str, now_ms: int, limit: int) -> Line: ...
    async def idle_workers(self, pool: str, now_ms: int) -> list[str]: ...
    async def shorten_leases(self, pool: str, latest_ms: int) -> None: ...
    async def expired_leases(self, pool: str, now_ms: int, limit: int) -> list[str]: ...
    async def without_lease(self, pool: str, task_ids: Sequence[str]) -> list[str]: ...
    async def has_lease(self, pool: str, task_id: str, now_ms: int) -> bool: ...
    async def unknown(self, pool: str, task_ids: Sequence[str]) -> list[str]: ...
    async def epoch(self, pool: str) -> str: ...
    async def depth(self, pool: str) -> tuple[int, int]: ...
    async def backlog_s(self, pool: str) -> float: ...


class TaskSender(Protocol):
    """Hands tasks to the executors of Celery. Raises UnavailableError; a task may be sent twice."""

    async def send(self, task_id: str, pool: str, traceparent: str) -> None: ...


@dataclass(frozen=True)
class Timing:
    """The periods that everything here keeps."""

    lease_ttl_ms: int = 10_000
    heartbeat_ms: int = 2_000
    tick_ms: int = 1_000
    resend_ms: int = 60_000  # a task sent to Celery that nobody has claimed for this long is sent again
    preemption: Preemption = field(default_factory=Preemption)


class Dispatcher:
    """Hands ready tasks to their executors; knows every pool that it has met."""

    def __init__(
        self,
        manager: JobManager,
        reader: Reader,
        queue: Queue,
        sender: TaskSender,
        timing: Timing,
        clock: Callable[[], int] = ids.now_ms,
    ) -> None:
        self.queue = queue
        self.timing = timing
        self.clock = clock
        self.pools: set[str] = set()
        self._manager = manager
        self._reader = reader
        self._sender = sender
        self._draining = asyncio.Lock()

    async def hand_out(self, row: TaskRow, epoch: str) -> None:
        """Give a ready task to its queue and write down that this epoch has it. `epoch` was read before."""
        self.pools.add(row.pool)
        attributes = {"job": row.job_id, "task": row.task_id, "pool": row.pool}
        if row.is_for_celery:
            with telemetry.span("task.send", parent=row.traceparent, **attributes):
                await self._settle(row, row.attempt, 0.0)
                await self._sender.send(row.task_id, row.pool, telemetry.current_traceparent() or row.traceparent)
            metrics.DISPATCHES.labels(row.pool).inc()
            log.info("task.sent", job=row.job_id, task=row.task_id, pool=row.pool)
        else:
            with telemetry.span("task.enqueue", parent=row.traceparent, **attributes):
                traceparent = telemetry.current_traceparent() or row.traceparent
                answer = await self._enqueue(row, traceparent)
            log.info("task.enqueued", job=row.job_id, task=row.task_id, pool=row.pool, answer=answer)
        if not await self._manager.mark_enqueued(row, epoch):
            await self.agree(row.task_id)  # claimed or cancelled since it was read

    async def agree(self, task_id: str) -> None:
        """Read a task again and make its queue agree with what SQL says now."""
        row = (await self._reader.tasks([task_id])).get(task_id)
        if row is not None:
            await self.agree_with(row)

    async def agree_with(self, row: TaskRow) -> None:
        """End or repeat what Redis knows of a task that is over or ready; a leased one is its heartbeats' business."""
        if row.state in TERMINAL_TASK:
            await self._settle(row, row.attempt + 1, row.actual_s)
        elif row.state == TaskState.READY and row.is_for_celery:
            await self._settle(row, row.attempt, 0.0)
        elif row.state == TaskState.READY:
            await self._enqueue(row, row.traceparent)

    async def preempt(self, pool: str) -> None:
        """Have running tasks make way for urgent ones that have waited too long; for the tick, cheap when none has."""
        timing = self.timing
        while found := await self.queue.preempt(pool, timing.preemption, self.clock(), timing.lease_ttl_ms):
            metrics.PREEMPTIONS.labels(pool).inc()
            log.info("task.preempted", task=found.task_id, worker=found.worker_id, pool=pool, by=found.beneficiary_id)

    async def apply_drains(self, pool: str) -> None:
        """Make a pool agree with the drains that SQL has for it. May be repeated at any time.

        Read and told in one go, so that what was read before a change is not told after it; another replica that does
        is corrected by the next round of either's reconciler.
        """
        self.pools.add(pool)
        async with self._draining:
            worker_ids = (await self._reader.drains()).get(pool, [])
            let_go = await self.queue.set_drains(pool, worker_ids, self.clock())
        for task_id in let_go:
            await self.agree(task_id)
        await self.fill(pool)

    async def fill(self, pool: str) -> None:
        """Give every free slot of a pool to the task whose turn it is."""
        for worker_id in await self.queue.idle_workers(pool, self.clock()):
            if await self.fill_worker(pool, worker_id) is Nothing.NO_TASK:
                return

    async def fill_worker(self, pool: str, worker_id: str) -> Nothing:
        """Give the free slots of one worker away; say why it ended."""
        while True:
            found = await self.queue.dispatch(pool, worker_id, self.clock(), self.timing.lease_ttl_ms)
            if isinstance(found, Nothing):
                return found
            self._handed_over(pool, found)

    async def _enqueue(self, row: TaskRow, traceparent: str) -> str:
        answer = await self.queue.enqueue(row, self.clock(), traceparent)
        if isinstance(answer, str):
            if answer == "unclaimed":
                metrics.HANDOVERS_EXPIRED.labels(row.pool).inc()
            return answer
        self._handed_over(row.pool, answer)
        return "made way"

    async def _settle(self, row: TaskRow, ended: int, actual_s: float) -> None:
        answer = await self.queue.settle(row.pool, row.task_id, ended, actual_s, self.clock())
        if isinstance(answer, Dispatched):
            self._handed_over(row.pool, answer)

    def _handed_over(self, pool: str, one: Dispatched) -> None:
        with telemetry.span("task.dispatch", parent=one.traceparent, task=one.task_id, worker=one.worker_id):
            metrics.DISPATCHES.labels(pool).inc()
            log.info("task.dispatched", task=one.task_id, tenant=one.tenant_id, pool=pool, worker=one.worker_id)
