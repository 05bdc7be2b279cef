"""Reaper and reconciler: what was promised in SQL and got lost on the way is found here.

Every replica runs both; conditional updates make that safe. Nothing is reaped during one lease after this process
started, slept, could not reach SQL or Redis, or found a new epoch: until then heartbeats make leases again.
"""

import asyncio
from collections import defaultdict

import structlog

from vitascope_common.errors import UnavailableError
from vitascope_scheduler import metrics
from vitascope_scheduler.dispatch import Dispatcher
from vitascope_scheduler.job_manager import JobManager
from vitascope_scheduler.reader import Flow, Reader
from vitascope_scheduler.relay import Relay
from vitascope_scheduler.tasks import TaskRow

PAGE = 200
SWEEP_EVERY = 15  # rounds of the reconciler between two looks at what Redis should know
FOR_EVER = 2**53  # later than any attempt

log = structlog.get_logger()


class Reconciler:
    """Runs every tick; see `tick` and `reconcile`."""

    def __init__(self, manager: JobManager, reader: Reader, dispatcher: Dispatcher, relay: Relay) -> None:
        self._manager = manager
        self._reader = reader
        self._dispatcher = dispatcher
        self._queue = dispatcher.queue
        self._relay = relay
        self._timing = dispatcher.timing
        self._clock = dispatcher.clock
        self._trusted_since_ms = self._clock()
        self._last_tick_ms = self._clock()
        self._epochs: dict[str, str] = {}
        self._flows: set[Flow] = set()
        self._num_rounds = 0

    async def run(self) -> None:
        """Tick for ever; every second tick reconciles first."""
        is_odd = False
        while True:
            is_odd = not is_odd
            try:
                if is_odd:
                    await self.reconcile()
                await self.tick()
            except UnavailableError as error:
                self._distrust("unavailable")
                metrics.FAILURES.labels("reconciler").inc()
                log.warning("reconciler.unavailable", error=error.message)
            except Exception:  # a fault of ours must not end the reaper; it is logged and tried again
                metrics.FAILURES.labels("reconciler").inc()
                log.exception("reconciler.crashed")
            await asyncio.sleep(self._timing.tick_ms / 1000)

    async def tick(self) -> None:
        """End what is past its deadline, reap expired leases, fill free slots, measure the queues."""
        self._is_trusted()  # notices how long ago the last tick was
        self._last_tick_ms = self._clock()
        await self._expire()
        for pool in sorted(self._dispatcher.pools):
            if self._is_trusted():
                await self._reap(pool)
            await self._dispatcher.fill(pool)
            await self._dispatcher.preempt(pool)
            num_waiting, num_in_flight = await self._queue.depth(pool)
            metrics.QUEUE_DEPTH.labels(pool).set(num_waiting)
            metrics.IN_FLIGHT.labels(pool).set(num_in_flight)
            metrics.BACKLOG_S.labels(pool).set(await self._queue.backlog_s(pool))
            metrics.IDLE_WORKERS.labels(pool).set(len(await self._queue.idle_workers(pool, self._clock())))

    async def reconcile(self) -> None:
        """Hand out ready tasks that this epoch was never given; end leased ones that have no lease.

        Drains come first, so that a Redis that was wiped gives nothing to workers that are to get nothing.
        """
        self._dispatcher.pools |= (await self._reader.drains()).keys() | await self._reader.pools()
        for pool in sorted(self._dispatcher.pools):
            epoch = await self._queue.epoch(pool)
            known = self._epochs.setdefault(pool, epoch)
            if known != epoch:
                self._epochs[pool] = epoch
                self._flows = set()  # Redis may have forgotten what it was told last
                self._distrust("new epoch")
            await self._dispatcher.apply_drains(pool)
            await self._hand_out_again(pool, epoch)
        self._num_rounds += 1
        if self._num_rounds % SWEEP_EVERY == 0:
            await self.sweep()
        await self._apply_flows()
        if self._is_trusted():
            await self._end_without_lease()

    async def _hand_out_again(self, pool: str, epoch: str) -> None:
        overdue_ms = self._clock() - self._timing.resend_ms
        after = (0, "")
        while True:
            rows = await self._reader.not_handed_out(pool, epoch, overdue_ms, after, PAGE)
            for row in rows:
                try:
                    await self._dispatcher.hand_out(row, epoch)
                except UnavailableError as error:
                    if not row.is_for_celery:
                        raise
                    log.warning("reconciler.broker_unavailable", pool=pool, error=error.message)
                    return
                metrics.ENQUEUED_AGAIN.labels(pool).inc()
            if len(rows) < PAGE:
                return
            after = (rows[-1].created_at_ms, rows[-1].task_id)

    async def sweep(self) -> None:
        """Put back what this epoch was given and has lost all the same. Nothing should; each find is logged."""
        for pool in sorted(self._dispatcher.pools):
            after = (0, "")
            while rows := await self._reader.queued(pool, after, PAGE):
                for task_id in await self._queue.unknown(pool, [row.task_id for row in rows]):
                    log.warning("queue.lost_task", task=task_id, pool=pool)
                    await self._dispatcher.agree(task_id)
                after = (rows[-1].created_at_ms, rows[-1].task_id)

    async def _apply_flows(self) -> None:
        flows = await self._reader.flows()
        for flow in flows - self._flows:
            await self._queue.set_flow(flow.pool, flow.tenant_id, flow.weight, flow.cap, self._clock())
        self._flows = flows

    async def _reap(self, pool: str) -> None:
        await self._queue.shorten_leases(pool, self._clock() + 2 * self._timing.lease_ttl_ms)
        expired = await self._queue.expired_leases(pool, self._clock(), PAGE)
        if expired and not await self._is_same_epoch(pool):
            return
        rows = await self._reader.tasks(expired)
        for task_id in expired:
            row = rows.get(task_id)
            if row is None:
                await self._queue.settle(pool, task_id, FOR_EVER, 0.0, self._clock())
            elif row.is_leased:
                await self._lose(row)
            else:
                await self._dispatcher.agree_with(row)

    async def _expire(self) -> None:
        cancelled: list[TaskRow] = []
        for job_id in await self._reader.past_deadline(self._clock(), PAGE):
            if ended := await self._manager.expire(job_id):  # nothing: it is over meanwhile
                metrics.EXPIRED.inc()
                log.info("job.expired", job=job_id)
                cancelled += ended
        if cancelled:
            self._relay.wake()
        for row in cancelled:
            await self._queue.stop(row, self._clock())

    async def _end_without_lease(self) -> None:
        by_pool: dict[str, list[TaskRow]] = defaultdict(list)
        now_ms, lease_ttl_ms = self._clock(), self._timing.lease_ttl_ms
        for row in await self._reader.leased(now_ms - lease_ttl_ms, now_ms + lease_ttl_ms):
            by_pool[row.pool].append(row)
        for pool, rows in by_pool.items():
            missing = set(await self._queue.without_lease(pool, [row.task_id for row in rows]))
            if missing and not await self._is_same_epoch(pool):
                return
            for row in rows:
                if row.task_id in missing:
                    await self._lose(row)

    async def _lose(self, row: TaskRow) -> None:
        if not self._is_trusted():
            return
        ended = await self._manager.lose(row, self._clock() - self._timing.lease_ttl_ms)
        if not ended.is_accepted or ended.row is None:
            return  # it was renewed, reported or claimed meanwhile
        metrics.LEASES_LOST.labels(row.pool).inc()
        log.warning("lease.lost", job=row.job_id, task=row.task_id, attempt=row.attempt, worker=row.worker_id)
        self._relay.wake()
        await self._dispatcher.agree_with(ended.row)
        for other in ended.cancelled:
            await self._queue.stop(other, self._clock())

    async def _is_same_epoch(self, pool: str) -> bool:
        """Tell whether leases that were just read are those that heartbeats have renewed; asked after the reading.

        A Redis that restarted since the last look may show old leases, or none.
        """
        epoch = await self._queue.epoch(pool)
        if self._epochs.get(pool, epoch) == epoch:
            return True
        self._distrust("new epoch")
        return False

    def _is_trusted(self) -> bool:
        """Tell whether heartbeats have come through for a lease; asked before each pool, as SQL may hang in between."""
        elapsed_ms = self._clock() - self._last_tick_ms
        if elapsed_ms > self._timing.lease_ttl_ms / 2 + self._timing.tick_ms:
            self._distrust("slept")
        elif elapsed_ms < 0:
            self._distrust("the clock went back")
        return self._clock() - self._trusted_since_ms >= self._timing.lease_ttl_ms

    def _distrust(self, reason: str) -> None:
        self._trusted_since_ms = self._clock()
        log.info("reaper.waits", reason=reason)
