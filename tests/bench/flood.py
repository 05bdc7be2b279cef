"""One tenant submits a thousand jobs at once: what the others notice, beside first come, first served.

The clock is simulated, the Lua and the Redis are real, seeds are fixed. Jobs are 20 to 200 seconds long.

1. A light tenant submits one job every five minutes while the thousand are served, and waits. Nothing can be better
   than to go before all others (`light first`): somebody's job must end first.
2. Three tenants of weights 4, 2 and 1 who always have jobs waiting are joined by a tenant of weight 1 who submits a
   thousand. Who gets which share of eight servers is drawn in `out/bench/flood.svg`.
"""

import asyncio
import itertools
import random
from collections.abc import Mapping, Sequence

from redis.asyncio import Redis
from tests.bench import plot
from tests.bench.figures import OUT, Figure
from tests.bench.pool import Fifo, Job, Queue, Served, Shipped, redis, serve
from tests.bench.service import consumed_s, percentile

NUM_FLOOD = 1_000
SHORTEST_S, LONGEST_S = 20.0, 200.0

NUM_RUNS = {8: 30, 32: 10}
"""By number of servers: as many as the 95th percentile of a wait needs to settle."""
LIGHT_EVERY_S = 300.0

NUM_SHARED = 8
WEIGHTS = {"steady, weight 4": 4.0, "steady, weight 2": 2.0, "steady, weight 1": 1.0}
FLOOD, FLOOD_WEIGHT, FLOOD_S = "flood, weight 1", 1.0, 3_600.0
NUM_STEADY_WAITING = 16
END_S, WINDOW_S, STEP_S = 4.5 * 3_600, 1_200.0, 300.0
SHARE_GOAL = 0.05
"""How far the share of a tenant over twenty minutes may be from its entitlement, as a share of the pool."""


class _LightFirst(Fifo):
    async def put(self, job: Job, now_s: float) -> None:
        (self.line.appendleft if job.tenant == "light" else self.line.append)(job)


def run() -> list[Figure]:
    """Measure and draw."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    async with redis() as client:
        figures = [figure for num in NUM_RUNS for figure in await _light_waits(client, num)]
        return [*figures, await _shares(client)]


async def _light_waits(client: Redis, num_servers: int) -> list[Figure]:
    """Measure what a light tenant waits for while the flood lasts."""
    waits = dict[str, list[float]]()
    for seed in range(1, 1 + NUM_RUNS[num_servers]):
        random_ = random.Random(seed)
        jobs = [_job(random_, f"flood{i}", "flood", 0.0) for i in range(NUM_FLOOD)]
        lasts_s = sum(job.length_s for job in jobs) / num_servers
        jobs += [_job(random_, f"light{i}", "light", LIGHT_EVERY_S * i) for i in range(1, int(lasts_s / LIGHT_EVERY_S))]
        for name, queue in {**await _queues(client, num_servers), "light first": _LightFirst()}.items():
            served = await serve(queue, num_servers, jobs)
            waits.setdefault(name, []).extend(one.waited_s for one in served if one.job.tenant == "light")
    p95 = {name: percentile(found, 0.95) for name, found in waits.items()}
    longest = {name: max(found) for name, found in waits.items()}
    goal_s = 1.5 * LONGEST_S / num_servers + 1
    case = f"K={num_servers}: a light tenant's wait"
    return [
        Figure(f"{case}, p95", p95.pop("ours"), "s", 1.0, goal_s, beside=p95),
        Figure(f"{case}, longest", longest.pop("ours"), "s", 1.0, LONGEST_S + 1, beside=longest),
    ]


async def _shares(client: Redis) -> Figure:
    """Measure who gets which share of the pool, and draw it."""
    found = {
        name: _shares_over_time(await _share(queue)) for name, queue in (await _queues(client, NUM_SHARED)).items()
    }
    entitled = {tenant: [_entitled(tenant, time_s) for time_s in _times_s()] for tenant in found["ours"]}
    OUT.mkdir(parents=True, exist_ok=True)
    titles = {"ours": "Vitascope's queue", "FIFO": "First come, first served"}
    (OUT / "flood.svg").write_text(
        plot.draw(
            "Share of eight GPUs while one tenant submits 1,000 jobs at hour 1",
            [plot.Panel(titles[name], shares, entitled) for name, shares in found.items()],
            [time_s / 3_600 for time_s in _times_s()],
            "hours",
        )
    )
    worst = {name: _worst(shares, entitled) for name, shares in found.items()}
    metric = "largest distance of a served from its entitled share, windows of 20 min"
    return Figure(metric, worst.pop("ours"), "of the pool", 1.0, SHARE_GOAL, beside=worst)


async def _share(queue: Queue) -> list[Served]:
    random_, numbers = random.Random(1), itertools.count(NUM_STEADY_WAITING)
    jobs = [
        _job(random_, f"{tenant}-{i}", tenant, 0.0, weight)
        for i in range(NUM_STEADY_WAITING)
        for tenant, weight in WEIGHTS.items()
    ]
    jobs += [_job(random_, f"flood{i}", FLOOD, FLOOD_S, FLOOD_WEIGHT) for i in range(NUM_FLOOD)]

    def next_job(job: Job, now_s: float) -> Job | None:
        if job.tenant == FLOOD:
            return None
        return _job(random_, f"{job.tenant}-{next(numbers)}", job.tenant, now_s, job.weight)

    return await serve(queue, NUM_SHARED, jobs, until_s=END_S, next_job=next_job)


def _times_s() -> list[float]:
    return [WINDOW_S + STEP_S * i for i in range(1 + int((END_S - WINDOW_S) / STEP_S))]


def _shares_over_time(served: Sequence[Served]) -> dict[str, list[float]]:
    """Return each tenant's share of the pool in the window before each moment."""
    return {
        tenant: [
            consumed_s(served, tenant, time_s - WINDOW_S, time_s) / (WINDOW_S * NUM_SHARED) for time_s in _times_s()
        ]
        for tenant in (*WEIGHTS, FLOOD)
    }


def _entitled(tenant: str, time_s: float) -> float:
    """Return the share due to a tenant in the window before a moment; all of them always have jobs waiting."""
    sum_before = sum(WEIGHTS.values())
    sum_after = sum_before + FLOOD_WEIGHT
    flooded = min(1.0, max(0.0, (time_s - FLOOD_S) / WINDOW_S))
    if tenant == FLOOD:
        return flooded * FLOOD_WEIGHT / sum_after
    return WEIGHTS[tenant] * (flooded / sum_after + (1 - flooded) / sum_before)


def _worst(shares: Mapping[str, Sequence[float]], entitled: Mapping[str, Sequence[float]]) -> float:
    return max(abs(a - b) for tenant in shares for a, b in zip(shares[tenant], entitled[tenant], strict=True))


def _job(random_: random.Random, name: str, tenant: str, arrives_s: float, weight: float = 1.0) -> Job:
    length_s = random_.uniform(SHORTEST_S, LONGEST_S)
    return Job(name, tenant, arrives_s, length_s, length_s, weight)


async def _queues(client: Redis, num_servers: int) -> dict[str, Queue]:
    await client.flushdb()
    ours = Shipped(client, "bench")
    await ours.open(num_servers)
    return {"ours": ours, "FIFO": Fifo()}
