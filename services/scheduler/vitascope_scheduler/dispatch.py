"""Dispatcher: make Redis and Celery agree with a row of SQL, and give free slots to whoever's turn it is.

All of it may run twice, late or not at all: SQL decides at Claim, and the reconciler repeats what was lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from vitascope_common import ids, telemetry
from vitascope_common.jobs import TERMINAL_TASK, TaskState
from vitascope_scheduler import metrics
from vitascope_scheduler.job_manager import JobManager
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.tasks import TaskRow
from vitascope_scheduler.worker import Dispatched, Nothing, Place, SlotsOfWorker, Worker

log = structlog.get_logger()


class Queue(Protocol):
    """The fair queues of all pools. Raises UnavailableError; every call may be repeated."""

    async def enqueue(self, row: TaskRow, now_ms: int, traceparent: str) -> str: ...
    async def dispatch(self, pool: str, worker_id: str, now_ms: int, lease_ttl_ms: int) -> Dispatched | Nothing: ...
    async def lease(self, row: TaskRow, worker_id: str, now_ms: int, lease_ttl_ms: int) -> str: ...
    async def settle(self, pool: str, task_id: str, ended: int, actual_s: float, now_ms: int) -> bool: ...
    async def stop(self, row: TaskRow, now_ms: int) -> str: ...
    async def register(self, worker: Worker, now_ms: int, ttl_ms: int) -> None: ...
    async def heartbeat(
        self, pool: str, worker_id: str, beat: SlotsOfWorker, now_ms: int, ttl_ms: int
    ) -> list[str] | None: ...
    async def set_flow(self, pool: str, tenant_id: str, weight: float, cap: int, now_ms: int) -> None: ...
    async def position(self, pool: str, task_id: str, now_ms: int) -> Place | None: ...
    async def idle_workers(self, pool: str, now_ms: int) -> list[str]: ...
    async def expired_leases(self, pool: str, now_ms: int, limit: int) -> list[str]: ...
    async def without_lease(self, pool: str, task_ids: Sequence[str]) -> list[str]: ...
    async def unknown(self, pool: str, task_ids: Sequence[str]) -> list[str]: ...
    async def epoch(self, pool: str) -> str: ...
    async def depth(self, pool: str) -> tuple[int, int]: ...


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

    async def hand_out(self, row: TaskRow, epoch: str) -> None:
        """Give a ready task to its queue and write down that this epoch has it. `epoch` was read before."""
        self.pools.add(row.pool)
        attributes = {"job": row.job_id, "task": row.task_id, "pool": row.pool}
        if row.is_for_celery:
            with telemetry.span("task.send", parent=row.traceparent, **attributes):
                await self.queue.settle(row.pool, row.task_id, row.attempt, 0.0, self.clock())
                await self._sender.send(row.task_id, row.pool, telemetry.current_traceparent() or row.traceparent)
            metrics.DISPATCHES.labels(row.pool).inc()
            log.info("task.sent", job=row.job_id, task=row.task_id, pool=row.pool)
        else:
            with telemetry.span("task.enqueue", parent=row.traceparent, **attributes):
                traceparent = telemetry.current_traceparent() or row.traceparent
                answer = await self.queue.enqueue(row, self.clock(), traceparent)
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
        now_ms = self.clock()
        if row.state in TERMINAL_TASK:
            await self.queue.settle(row.pool, row.task_id, row.attempt + 1, row.actual_s, now_ms)
        elif row.state == TaskState.READY and row.is_for_celery:
            await self.queue.settle(row.pool, row.task_id, row.attempt, 0.0, now_ms)
        elif row.state == TaskState.READY:
            answer = await self.queue.enqueue(row, now_ms, row.traceparent)
            if answer == "returned":
                metrics.HANDOVERS_EXPIRED.labels(row.pool).inc()

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
            with telemetry.span("task.dispatch", parent=found.traceparent, task=found.task_id, worker=worker_id):
                metrics.DISPATCHES.labels(pool).inc()
                log.info("task.dispatched", task=found.task_id, tenant=found.tenant_id, pool=pool, worker=worker_id)
