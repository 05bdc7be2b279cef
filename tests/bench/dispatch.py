"""What one dispatch costs when 10, 1,000 and 10,000 tenants wait.

The cost is the CPU time of the Redis server, so that neither the client nor anybody else on the machine hides or makes
a difference; the time for which the scheduler's client waits is measured beside. Each round takes a hundred tasks from
every pool, one after another, and puts as many back.
"""

import asyncio
import statistics
import time

from redis.asyncio import Redis
from tests.bench.figures import Figure
from tests.bench.pool import FOREVER_MS, redis

from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.testing import task_row
from vitascope_scheduler.worker import Dispatched, Worker

NUM_TENANTS = (10, 1_000, 10_000)
NUM_TASKS = 2
"""Tasks of each tenant; those of the few are more, so that nobody's line ends within a round."""
NUM_DISPATCHES = 100
NUM_ROUNDS = 25
GOAL = 1.15
NOW_MS, WORKER = 1_000_000, "w"


def run() -> list[Figure]:
    """Measure."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    async with redis() as client:
        queue = RedisQueue(client)
        for num_tenants in NUM_TENANTS:
            await _fill(queue, num_tenants)
        rounds = [
            {num_tenants: await _round(client, queue, num_tenants) for num_tenants in NUM_TENANTS}
            for _ in range(NUM_ROUNDS)
        ]
    few, *many = NUM_TENANTS
    figures = []
    for column, what in enumerate(("CPU time of Redis", "time at the client")):
        medians_us = {n: statistics.median(one[n][column] for one in rounds) for n in NUM_TENANTS}
        figures += [
            Figure(f"one dispatch, {n} tenants / {few}: {what}", medians_us[n], "us", medians_us[few], GOAL)
            for n in many
        ]
    return figures


async def _fill(queue: RedisQueue, num_tenants: int) -> None:
    await queue.register(Worker(WORKER, "gpu-worker", _pool(num_tenants), "cpu", 1, NUM_DISPATCHES, ()), 0, FOREVER_MS)
    num_tasks = max(NUM_TASKS, 2 * NUM_DISPATCHES // num_tenants)
    for i in range(num_tasks):
        for tenant in range(num_tenants):
            await _put(queue, num_tenants, f"t{tenant}-{i}", f"t{tenant}")


async def _put(queue: RedisQueue, num_tenants: int, task_id: str, tenant: str) -> None:
    row = task_row(task_id, tenant_id=tenant, pool=_pool(num_tenants))
    await queue.enqueue(row, NOW_MS, "")


async def _round(client: Redis, queue: RedisQueue, num_tenants: int) -> tuple[float, float]:
    """Return microseconds of one dispatch: CPU time of the server, and wall clock of the client."""
    pool, taken = _pool(num_tenants), list[Dispatched]()
    before_us, begun_s = await _spent_us(client), time.perf_counter()
    for _ in range(NUM_DISPATCHES):
        found = await queue.dispatch(pool, WORKER, NOW_MS, FOREVER_MS)
        if not isinstance(found, Dispatched):
            raise RuntimeError(f"nothing was dispatched: {found}")
        taken.append(found)
    took_s, spent_us = time.perf_counter() - begun_s, await _spent_us(client) - before_us
    for one in taken:
        await queue.settle(pool, one.task_id, 1, 10.0, NOW_MS)
        await _put(queue, num_tenants, f"{one.task_id}+", one.tenant_id)  # another task: this one is over
    return spent_us / NUM_DISPATCHES, 1e6 * took_s / NUM_DISPATCHES


async def _spent_us(client: Redis) -> float:
    found = await client.info("cpu")
    return 1e6 * (float(found["used_cpu_user"]) + float(found["used_cpu_sys"]))


def _pool(num_tenants: int) -> str:
    return f"p{num_tenants}"
