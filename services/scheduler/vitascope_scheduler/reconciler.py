"""Reaper and reconciler: what was promised in SQL and got lost on the way is found here.

Every replica runs both; conditional updates make that safe. Nothing is reaped during one lease after this process
started, stood still, could not reach SQL or Redis, or found a new epoch: until then heartbeats make leases again.
What goes wrong with one pool or one task holds up no other; what is much is done a few pages per round.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from vitascope_common.errors import UnavailableError
from vitascope_scheduler import metrics
from vitascope_scheduler.dispatch import Dispatcher
from vitascope_scheduler.job_manager import JobManager
from vitascope_scheduler.reader import Flow, Position, Reader
from vitascope_scheduler.relay import Relay
from vitascope_scheduler.tasks import TaskRow

PAGE = 200
PAGES_PER_ROUND = 5  # of all pools together, one of each at least: deadlines and expired leases wait for them
SWEEP_EVERY = 15  # rounds of the reconciler between two looks at what Redis should know
FOR_EVER = 2**53  # later than any attempt
MAX_SUSPECTS = 1_000

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
        self._last_sign_ms = self._clock()
        self._epochs: dict[str, str] = {}
        self._flows: set[Flow] = set()
        self._num_rounds = 0
        # What failed when it was last done, though SQL and Redis were there.
        self._suspects: set[tuple[str, ...]] = set()
        self._handing_out: dict[str, Position] = {}  # pools of which there is more to read than one round does, and
        self._sweeping: dict[str, Position] = {}  # where the next round goes on

    async def run(self) -> None:
        """Tick for ever; every second tick reconciles first, and each one while there is much to do."""
        is_odd = is_behind = False
        while True:
            is_odd = not is_odd
            try:
                if is_odd or is_behind:
                    await self.reconcile()
                await self.tick()
                is_behind = bool(self._handing_out or self._sweeping)
            except UnavailableError as error:
                is_behind = False
                self._distrust("unavailable")
                metrics.FAILURES.labels("reconciler").inc()
                log.warning("reconciler.unavailable", error=error.message)
            except Exception:  # a fault of ours must not end the reaper; it is logged and tried again
                is_behind = False
                metrics.FAILURES.labels("reconciler").inc()
                log.exception("reconciler.crashed")
            if not is_behind:
                await asyncio.sleep(self._timing.tick_ms / 1000)

    async def tick(self) -> None:
        """End what is past its deadline, reap expired leases, fill free slots, measure the queues."""
        await self._expire()
        for pool in sorted(self._dispatcher.pools):
            if self._is_trusted():
                async with self._isolated("reap", pool=pool):
                    await self._reap(pool)
            async with self._isolated("tick", pool=pool):
                await self._give_out(pool)

    async def _give_out(self, pool: str) -> None:
        await self._dispatcher.fill(pool)
        await self._dispatcher.preempt(pool)
        num_waiting, num_in_flight = await self._queue.depth(pool)
        metrics.QUEUE_DEPTH.labels(pool).set(num_waiting)
        metrics.IN_FLIGHT.labels(pool).set(num_in_flight)
        metrics.BACKLOG_S.labels(pool).set(await self._queue.backlog_s(pool))
        metrics.IDLE_WORKERS.labels(pool).set(len(await self._queue.idle_workers(pool, self._clock())))

    async def reconcile(self) -> None:
        """Hand out ready tasks that this epoch was never given; end leased ones that have no lease.

        Of a pool, drains are told before tasks are handed out again. A Redis that was wiped has forgotten them until
        this round comes: what relay, calls or ticks give away before may still go to a worker that is to get nothing.
        """
        self._dispatcher.pools |= await self._pools_in_use()
        for pool in sorted(self._dispatcher.pools):
            async with self._isolated("reconcile", pool=pool):
                await self._reconcile_pool(pool)
        self._num_rounds += 1
        if self._num_rounds % SWEEP_EVERY == 0 or self._sweeping:
            await self.sweep()
        await self._apply_flows()
        if self._is_trusted():
            await self._end_without_lease()

    async def _reconcile_pool(self, pool: str) -> None:
        epoch = await self._queue.epoch(pool)
        known = self._epochs.setdefault(pool, epoch)
        if known != epoch:
            self._epochs[pool] = epoch
            self._handing_out.pop(pool, None)
            self._flows = set()  # Redis may have forgotten what it was told last
            self._distrust("new epoch")
        await self._dispatcher.apply_drains(pool)
        await self._hand_out_again(pool, epoch)

    async def _hand_out_again(self, pool: str, epoch: str) -> None:
        overdue_ms = self._clock() - self._timing.resend_ms

        async def read(after: Position) -> list[TaskRow]:
            return await self._reader.not_handed_out(pool, epoch, overdue_ms, after, PAGE)

        async def hand_out(row: TaskRow) -> bool:
            try:
                await self._dispatcher.hand_out(row, epoch)
            except UnavailableError as error:
                if not row.is_for_celery:
                    raise
                log.warning("reconciler.broker_unavailable", pool=pool, error=error.message)
                return False
            metrics.ENQUEUED_AGAIN.labels(pool).inc()
            return True

        async def hand_out_all(rows: list[TaskRow]) -> bool:
            for row in rows:
                self._give_sign()
                async with self._isolated("hand_out", pool=pool, task=row.task_id):
                    if not await hand_out(row):
                        return False
            return True

        await self._go_on(self._handing_out, pool, read, hand_out_all)

    async def sweep(self) -> None:
        """Put back what this epoch was given and has lost all the same. Nothing should; each find is logged.

        What is too much for one round is gone on with in the next. A sweep that begins forgets the pools that nobody
        needs any more.
        """
        is_new = not self._sweeping
        if is_new:
            await self._forget_pools()
        for pool in sorted(self._dispatcher.pools if is_new else self._sweeping):
            async with self._isolated("sweep", pool=pool):
                await self._sweep_pool(pool)

    async def _sweep_pool(self, pool: str) -> None:
        async def read(after: Position) -> list[TaskRow]:
            return await self._reader.queued(pool, after, PAGE)

        async def put_back(rows: list[TaskRow]) -> bool:
            self._give_sign()
            for task_id in await self._queue.unknown(pool, [row.task_id for row in rows]):
                log.warning("queue.lost_task", task=task_id, pool=pool)
                async with self._isolated("sweep", pool=pool, task=task_id):
                    await self._dispatcher.agree(task_id)
            return True

        await self._go_on(self._sweeping, pool, read, put_back)

    async def _go_on(
        self,
        places: dict[str, Position],
        pool: str,
        read: Callable[[Position], Awaitable[list[TaskRow]]],
        deal: Callable[[list[TaskRow]], Awaitable[bool]],
    ) -> None:
        """Deal with a few pages from where the last round stopped, and keep the place where the next one goes on.

        There is none when all is read, `deal` says that it is enough, or something goes wrong.
        """
        after = places.pop(pool, (0, ""))
        for _ in range(max(1, PAGES_PER_ROUND // max(1, len(self._dispatcher.pools)))):
            rows = await read(after)
            if not rows or not await deal(rows) or len(rows) < PAGE:
                return
            after = (rows[-1].created_at_ms, rows[-1].task_id)
        places[pool] = after

    async def _pools_in_use(self) -> set[str]:
        return set(await self._reader.drains()) | await self._reader.pools()

    async def _forget_pools(self) -> None:
        """Forget pools without work, drains or workers; a heartbeat or a task makes them known again."""
        now_ms = self._clock()
        for pool in sorted(self._dispatcher.pools - await self._pools_in_use()):
            async with self._isolated("forget", pool=pool):
                if not any(await self._queue.depth(pool)) and not await self._queue.idle_workers(pool, now_ms):
                    self._dispatcher.pools.discard(pool)
                    self._epochs.pop(pool, None)
                    self._handing_out.pop(pool, None)

    async def _apply_flows(self) -> None:
        flows = await self._reader.flows()
        for flow in flows - self._flows:
            self._give_sign()
            async with self._isolated("set_flow", pool=flow.pool, tenant=flow.tenant_id):
                await self._queue.set_flow(flow.pool, flow.tenant_id, flow.weight, flow.cap, self._clock())
        self._flows = flows

    async def _reap(self, pool: str) -> None:
        await self._queue.shorten_leases(pool, self._clock() + 2 * self._timing.lease_ttl_ms)
        expired = await self._queue.expired_leases(pool, self._clock(), PAGE)
        if expired and not await self._is_same_epoch(pool):
            return
        rows = await self._reader.tasks(expired)
        for task_id in expired:
            async with self._isolated("reap", pool=pool, task=task_id):
                row = rows.get(task_id)
                if row is None:
                    await self._queue.settle(pool, task_id, FOR_EVER, 0.0, self._clock())
                elif row.is_leased:
                    await self._lose(row)
                else:
                    await self._dispatcher.agree_with(row)

    async def _expire(self) -> None:
        cancelled: list[TaskRow] = []
        self._give_sign()
        for job_id in await self._reader.past_deadline(self._clock(), PAGE):
            async with self._isolated("expire", job=job_id):
                if ended := await self._manager.expire(job_id):  # nothing: it is over meanwhile
                    metrics.EXPIRED.inc()
                    log.info("job.expired", job=job_id)
                    cancelled += ended
            self._give_sign()
        if cancelled:
            self._relay.wake()
        for row in cancelled:
            async with self._isolated("expire", task=row.task_id):
                await self._queue.stop(row, self._clock())

    async def _end_without_lease(self) -> None:
        by_pool: dict[str, list[TaskRow]] = defaultdict(list)
        now_ms, lease_ttl_ms = self._clock(), self._timing.lease_ttl_ms
        for row in await self._reader.leased(now_ms - lease_ttl_ms, now_ms + lease_ttl_ms):
            by_pool[row.pool].append(row)
        for pool, rows in by_pool.items():
            async with self._isolated("lose", pool=pool):
                missing = set(await self._queue.without_lease(pool, [row.task_id for row in rows]))
                if missing and not await self._is_same_epoch(pool):
                    return
                for row in rows:
                    if row.task_id in missing:
                        async with self._isolated("lose", pool=pool, task=row.task_id):
                            await self._lose(row)

    async def _lose(self, row: TaskRow) -> None:
        if not self._is_trusted() or await self._queue.has_lease(row.pool, row.task_id, self._clock()):
            return  # renewed while others were looked at
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
        """Tell whether heartbeats have come through for a lease."""
        self._give_sign()
        return self._clock() - self._trusted_since_ms >= self._timing.lease_ttl_ms

    def _give_sign(self) -> None:
        """Notice that time has stood still or gone back; called at every step, as SQL may hang in between.

        Many short steps are work; a long time since the last one says that this process, SQL or Redis stood still.
        """
        now_ms = self._clock()
        elapsed_ms, self._last_sign_ms = now_ms - self._last_sign_ms, now_ms
        if elapsed_ms > self._timing.lease_ttl_ms / 2 + self._timing.tick_ms:
            self._distrust("stood still")
        elif elapsed_ms < 0:
            self._distrust("the clock went back")

    def _distrust(self, reason: str) -> None:
        self._trusted_since_ms = self._clock()
        log.info("reaper.waits", reason=reason)

    @asynccontextmanager
    async def _isolated(self, duty: str, pool: str = "", **of: str) -> AsyncIterator[None]:
        """Let a fault with one pool or task hold up no other: it is logged and tried again in the next round.

        A call that fails while SQL and the Redis of that pool answer otherwise may be such a fault as well (a script
        that meets what it cannot read): surely so when it happens again. Raises UnavailableError: they are away.
        """
        where = (duty, pool, *of.values())
        try:
            yield
            self._suspects.discard(where)
        except UnavailableError as error:
            if not pool:
                raise
            await self._queue.epoch(pool)
            await self._reader.drains()
            metrics.FAILURES.labels("reconciler").inc()
            log.warning("reconciler.refused", duty=duty, pool=pool, error=error.message, **of)
            if where not in self._suspects:
                self._distrust("unavailable")
                self._suspects = {*self._suspects, where} if len(self._suspects) < MAX_SUSPECTS else {where}
        except Exception:  # a fault of ours with this one alone; it is logged and tried again
            metrics.FAILURES.labels("reconciler").inc()
            log.exception("reconciler.failed", duty=duty, pool=pool, **of)
