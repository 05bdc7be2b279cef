"""A pool of servers on a simulated clock, and the queues that may stand before it.

`Shipped` is the fair queue as the scheduler uses it: its Lua in a real Redis, with the time of this clock. `Fifo` and
`RoundRobin` (one job per tenant and turn) are what it is compared with.
"""

import heapq
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from redis.asyncio import Redis

from vitascope_common import redis_clients
from vitascope_common.testing import redis_server
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.testing import task_row
from vitascope_scheduler.worker import Dispatched, Worker

FOREVER_MS = 10**12
"""Lifetime of leases and registrations: nobody dies here."""


@dataclass(frozen=True)
class Job:
    """A job of `length_s` on one server, which the platform believes to be `cost_s` long."""

    name: str
    tenant: str
    arrives_s: float
    length_s: float
    cost_s: float
    weight: float = 1.0


@dataclass(frozen=True)
class Served:
    """A job that got a server."""

    job: Job
    begun_s: float

    @property
    def ended_s(self) -> float:
        return self.begun_s + self.job.length_s

    @property
    def waited_s(self) -> float:
        return self.begun_s - self.job.arrives_s


class Queue(Protocol):
    """What stands before the servers."""

    async def put(self, job: Job, now_s: float) -> None: ...
    async def take(self, server: int, now_s: float) -> Job | None: ...
    async def end(self, job: Job, now_s: float) -> None: ...


class Fifo:
    """Who comes first is served first."""

    def __init__(self) -> None:
        self.line: deque[Job] = deque()

    async def put(self, job: Job, now_s: float) -> None:
        self.line.append(job)

    async def take(self, server: int, now_s: float) -> Job | None:
        return self.line.popleft() if self.line else None

    async def end(self, job: Job, now_s: float) -> None:
        pass


class RoundRobin:
    """One job of each tenant in turn."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Job]] = {}

    async def put(self, job: Job, now_s: float) -> None:
        self._lines.setdefault(job.tenant, deque()).append(job)

    async def take(self, server: int, now_s: float) -> Job | None:
        if not self._lines:
            return None
        tenant = next(iter(self._lines))
        line = self._lines.pop(tenant)
        job = line.popleft()
        if line:
            self._lines[tenant] = line
        return job

    async def end(self, job: Job, now_s: float) -> None:
        pass


class Shipped:
    """The scheduler's queue in one pool of a real Redis."""

    def __init__(self, redis: Redis, pool: str) -> None:
        self._queue, self._pool = RedisQueue(redis), pool
        self._jobs: dict[str, Job] = {}

    async def open(self, num_servers: int) -> None:
        """Register one worker with one slot for each server."""
        for server in range(num_servers):
            worker = Worker(f"w{server}", "gpu-worker", self._pool, "cpu", 1, 1, ())
            await self._queue.register(worker, 0, FOREVER_MS)

    async def put(self, job: Job, now_s: float) -> None:
        self._jobs[job.name] = job
        row = task_row(
            job.name,
            tenant_id=job.tenant,
            pool=self._pool,
            cost_s=job.cost_s,
            weight=job.weight,
            created_at_ms=round(1000 * job.arrives_s),
        )
        await self._queue.enqueue(row, round(1000 * now_s), "")

    async def take(self, server: int, now_s: float) -> Job | None:
        found = await self._queue.dispatch(self._pool, f"w{server}", round(1000 * now_s), FOREVER_MS)
        return self._jobs[found.task_id] if isinstance(found, Dispatched) else None

    async def end(self, job: Job, now_s: float) -> None:
        await self._queue.settle(self._pool, job.name, 1, job.length_s, round(1000 * now_s))


@asynccontextmanager
async def redis() -> AsyncIterator[Redis]:
    """Run the Redis that ships, with an AOF that is synced every second, and connect to it."""
    with TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        client = redis_clients.connect_async(url)
        try:
            yield client
        finally:
            await client.aclose()


async def serve(
    queue: Queue,
    num_servers: int,
    jobs: Iterable[Job],
    *,
    until_s: float = float("inf"),
    is_last: Callable[[Served], bool] = lambda _: False,
    next_job: Callable[[Job, float], Job | None] = lambda *_: None,
) -> list[Served]:
    """Serve jobs until none is left, one is the last or the clock reaches `until_s`; `next_job` answers one's end."""
    order = itertools.count()
    events: list[tuple[float, int, Job, int | None]] = [(job.arrives_s, next(order), job, None) for job in jobs]
    heapq.heapify(events)
    idle, served = list(range(num_servers)), list[Served]()
    while events and events[0][0] < until_s:
        now_s = events[0][0]
        while events and events[0][0] == now_s:
            _, _, job, server = heapq.heappop(events)
            if server is None:
                await queue.put(job, now_s)
                continue
            await queue.end(job, now_s)
            idle.append(server)
            if (following := next_job(job, now_s)) is not None:
                heapq.heappush(events, (following.arrives_s, next(order), following, None))
        while idle and (job_or_none := await queue.take(idle[0], now_s)) is not None:
            served.append(Served(job_or_none, now_s))
            if is_last(served[-1]):
                return served
            heapq.heappush(events, (served[-1].ended_s, next(order), job_or_none, idle.pop(0)))
    return served
