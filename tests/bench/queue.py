"""One task through the fair queue, over the least that a Redis Stream can do, and over Celery.

All three use one Redis, with an AOF synced every second. A cycle of ours is enqueue, dispatch and settle, three calls
of the scheduler's own client while 800 tasks of eight tenants wait; a raw cycle is XADD, XREADGROUP and XACK by the
same asyncio client of redis-py. Both have 16 cycles open at a time in one process, without pipelining; beside stands
the CPU time of a cycle, in the Redis server and in the client. Celery's cycle is a task that does nothing: sent by this
process, taken by a worker process with the solo pool, the fastest here, from the first message until the broker has
none left.
"""

import asyncio
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from tests.bench.figures import Figure
from tests.bench.noop_tasks import app, noop
from tests.bench.pool import FOREVER_MS

from vitascope_common import redis_clients
from vitascope_common.process import dying_with_parent
from vitascope_common.testing import redis_server
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.tasks import TaskRow
from vitascope_scheduler.testing import task_row
from vitascope_scheduler.worker import Dispatched, Worker

NUM_OPEN = 16
NUM_TENANTS, NUM_WAITING = 8, 800
NUM_CYCLES, NUM_ROUNDS = 500, 21
NUM_CELERY_CYCLES, NUM_CELERY_ROUNDS = 1_500, 5
RAW_GOAL, CELERY_GOAL = 0.5, 5.0
CELERY_APP, CELERY_TIMEOUT_S = "tests.bench.noop_tasks", 60.0
POOL, STREAM, GROUP, NOW_MS = "bench", "raw", "bench", 1_000_000


def run() -> list[Figure]:
    """Measure."""
    with TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        ours, raw, beside = asyncio.run(_against_raw(url))
        beside_celery, celery = _against_celery(url)
    return [
        Figure("enqueue + dispatch + settle / raw", ours, "cycles/s", raw, RAW_GOAL, "higher", beside),
        Figure("enqueue + dispatch + settle / Celery", beside_celery, "tasks/s", celery, CELERY_GOAL, "higher"),
    ]


async def _against_raw(url: str) -> tuple[float, float, dict[str, float]]:
    """Return cycles per second of ours and of a raw stream, in alternation, and the time of Redis in each."""
    async with redis_clients.connect_async(url) as client:
        await client.xgroup_create(STREAM, GROUP, mkstream=True)
        ours = await _Ours.open(client)

        async def raw(slot: int) -> None:
            await client.xadd(STREAM, {"data": "task"})
            found: Any = await client.xreadgroup(GROUP, f"w{slot}", {STREAM: ">"}, count=1)
            await client.xack(STREAM, GROUP, found[0][1][0][0])

        samples = list[tuple[float, ...]]()
        for _ in range(1 + NUM_ROUNDS):
            ours.prepare(NUM_CYCLES)
            marks = [await _cpu_us(client)]
            rates = [await _rate(ours.cycle, NUM_CYCLES)]
            marks.append(await _cpu_us(client))
            rates.append(await _rate(raw, NUM_CYCLES))
            marks.append(await _cpu_us(client))
            spent_us = [(b - a) / NUM_CYCLES for one, other in pairwise(marks) for a, b in zip(one, other, strict=True)]
            samples.append((*rates, *spent_us))
    ours_rate, raw_rate, *spent_us = (statistics.median(column) for column in zip(*samples[1:], strict=True))
    names = ("CPU us of a cycle, Redis: ours", "client: ours", "Redis: raw", "client: raw")
    return ours_rate, raw_rate, dict(zip(names, spent_us, strict=True))


async def _cpu_us(client: AsyncRedis) -> tuple[float, float]:
    """Return the CPU time that the server and this process have used."""
    found = await client.info("cpu")
    return 1e6 * (float(found["used_cpu_user"]) + float(found["used_cpu_sys"])), 1e6 * time.process_time()


class _Ours:
    """The scheduler's queue with a backlog, and one worker with one slot for each open cycle."""

    _numbers = itertools.count()  # of all openings: a task that is settled does not wait again

    def __init__(self, client: AsyncRedis) -> None:
        self._queue, self._row = RedisQueue(client), task_row("", pool=POOL)
        self._rows = list[TaskRow]()

    @classmethod
    async def open(cls, client: AsyncRedis) -> "_Ours":
        self = cls(client)
        for slot in range(NUM_OPEN):
            await self._queue.register(Worker(f"w{slot}", "gpu-worker", POOL, "cpu", 1, 1, ()), NOW_MS, FOREVER_MS)
        self.prepare(NUM_WAITING)
        while self._rows:
            await self._queue.enqueue(self._rows.pop(), NOW_MS, "")
        return self

    def prepare(self, num_cycles: int) -> None:
        """Make the rows of so many cycles, which the scheduler would have read from SQL."""
        numbers = itertools.islice(self._numbers, num_cycles)
        self._rows += [replace(self._row, task_id=f"task-{n}", tenant_id=f"t{n % NUM_TENANTS}") for n in numbers]

    async def cycle(self, slot: int) -> None:
        await self._queue.enqueue(self._rows.pop(), NOW_MS, "")
        found = await self._queue.dispatch(POOL, f"w{slot}", NOW_MS, FOREVER_MS)
        if not isinstance(found, Dispatched):
            raise RuntimeError(f"nothing was dispatched: {found}")
        await self._queue.settle(POOL, found.task_id, 1, 10.0, NOW_MS)


async def _rate(cycle: Callable[[int], Awaitable[None]], num_cycles: int) -> float:
    """Keep NUM_OPEN cycles open until `num_cycles` are done; return cycles per second."""
    left = iter(range(num_cycles))

    async def worker(slot: int) -> None:
        for _ in left:
            await cycle(slot)

    begun_s = time.perf_counter()
    await asyncio.gather(*(worker(slot) for slot in range(NUM_OPEN)))
    return num_cycles / (time.perf_counter() - begun_s)


def _against_celery(url: str) -> tuple[float, float]:
    """Return tasks per second of ours and of Celery, in alternation."""
    app.conf.broker_url = url
    client = redis_clients.connect(url)
    with _celery_worker(url), asyncio.Runner() as runner:
        asynchronous = redis_clients.connect_async(url)
        ours = runner.run(_Ours.open(asynchronous))
        _celery_rate(client, NUM_OPEN)  # until the worker is up
        rates = list[tuple[float, float]]()
        for _ in range(1 + NUM_CELERY_ROUNDS):
            ours.prepare(NUM_CELERY_CYCLES)
            rates.append((runner.run(_rate(ours.cycle, NUM_CELERY_CYCLES)), _celery_rate(client, NUM_CELERY_CYCLES)))
        runner.run(asynchronous.aclose())
    client.close()
    ours_rates, celery_rates = zip(*rates[1:], strict=True)
    return statistics.median(ours_rates), statistics.median(celery_rates)


@contextmanager
def _celery_worker(url: str) -> Iterator[None]:
    command = [sys.executable, "-m", "celery", "-A", CELERY_APP, "-b", url, "worker", "--pool=solo"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with subprocess.Popen(dying_with_parent(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def _celery_rate(client: Redis, num_tasks: int) -> float:
    begun_s = time.perf_counter()
    for i in range(num_tasks):
        noop.delay(f"task-{i}")
    while client.llen("celery") or client.hlen("unacked"):
        if time.perf_counter() - begun_s > CELERY_TIMEOUT_S:
            raise RuntimeError(f"the Celery worker did not take {num_tasks} tasks within {CELERY_TIMEOUT_S:.0f} s")
        time.sleep(0.002)
    return num_tasks / (time.perf_counter() - begun_s)
