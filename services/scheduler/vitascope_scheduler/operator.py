"""What operators see and do: the queues as they are now, and drains. SQL keeps a drain, Redis is told at once."""

import structlog

from vitascope_common.errors import UnavailableError
from vitascope_scheduler.dispatch import Dispatcher
from vitascope_scheduler.job_manager import JobManager
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.service import in_time
from vitascope_scheduler.view import PoolView

log = structlog.get_logger()


class Operator:
    """GetQueue and SetDrain."""

    def __init__(self, manager: JobManager, reader: Reader, dispatcher: Dispatcher) -> None:
        self._manager = manager
        self._reader = reader
        self._dispatcher = dispatcher

    async def queue(self, pool: str) -> list[PoolView]:
        """Show one pool, or every pool (""): those with work or workers and those drained. Raises UnavailableError."""
        known = self._dispatcher.pools | set(await self._reader.drains())
        async with in_time():
            return [await self._view(one) for one in sorted(known) if pool in ("", one)]

    async def set_drain(self, pool: str, worker_id: str, is_draining: bool, tenant_id: str) -> int:
        """Give a worker ("": every one of the pool) no more work, or end that; return how many it concerns now.

        Once SQL has it, it holds: when Redis is away the reconciler repeats it, and the answer is 0.
        Raises UnavailableError: nothing has changed.
        """
        await self._manager.set_drain(pool, worker_id, is_draining, tenant_id)
        log.info("queue.drain_set", pool=pool, worker=worker_id, is_draining=is_draining, tenant=tenant_id)
        try:
            async with in_time():
                await self._dispatcher.apply_drains(pool)
                workers = (await self._view(pool)).workers
        except UnavailableError as error:
            log.warning("queue.unavailable", error=error.message)
            return 0
        return sum(worker_id in ("", one.worker_id) for one in workers)

    async def _view(self, pool: str) -> PoolView:
        return await self._dispatcher.queue.view(pool, self._dispatcher.clock())
