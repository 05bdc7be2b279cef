"""How far apart the services of backlogged tenants drift, beside FIFO and round robin.

Four tenants of weights 1, 2, 4 and 1 submit 1,500 jobs each at once, one tenant after the other; jobs are 20 to 200
seconds long. The clock is simulated, the Lua and the Redis are real. Service is what was consumed, while all four still
have jobs waiting. With an error, the platform believes a job to be half to one and a half times as long as it is and
learns the truth when it ends. Seeds are fixed: every run prints the same.
"""

import asyncio
import itertools
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from tests.bench.figures import Figure
from tests.bench.pool import Fifo, Job, Queue, RoundRobin, Served, Shipped, redis, serve
from tests.bench.service import consumed_s, gap, jain

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 1.0}
NUM_JOBS = 1_500
NUM_SERVERS = (1, 8, 32)
SEEDS = (1, 2, 3)
SHORTEST_S, LONGEST_S = 20.0, 200.0
ERRORS = {"exact costs": 0.0, "costs ±50 %": 0.5}
GAP_GOALS = {"exact costs": 1.5, "costs ±50 %": 6.0}
WINDOW_GOALS = {"exact costs": 2.0, "costs ±50 %": 6.0}
"""Of exact costs the theory promises two largest jobs between tenants of weight 1, whenever a window begins."""
GROWTH_GOAL = 1.2
JAIN_GOAL = 0.999


def run() -> list[Figure]:
    """Measure."""
    return asyncio.run(_run())


@dataclass(frozen=True)
class _Service:
    """What a queue did: gaps in largest jobs, that over any window within each half too, and Jain's index."""

    from_start: float
    any_window: float
    halves: tuple[float, float]
    jain: float


async def _run() -> list[Figure]:
    figures = list[Figure]()
    async with redis() as client:
        for num_servers, (errors, error) in itertools.product(NUM_SERVERS, ERRORS.items()):
            found = [await _measure(client, num_servers, error, seed) for seed in SEEDS]
            figures += _figures(f"K={num_servers}, {errors}", errors, found)
    return figures


async def _measure(client: Redis, num_servers: int, error: float, seed: int) -> dict[str, _Service]:
    """Serve the same jobs by each queue."""
    random_ = random.Random(seed)
    jobs = []
    for tenant, weight in WEIGHTS.items():
        for i in range(NUM_JOBS):
            length_s = random_.uniform(SHORTEST_S, LONGEST_S)
            cost_s = length_s * random_.uniform(1 - error, 1 + error)
            jobs.append(Job(f"{tenant}{i}", tenant, 0.0, length_s, cost_s, weight))
    await client.flushdb()
    ours = Shipped(client, "bench")
    await ours.open(num_servers)
    queues: dict[str, Queue] = {"ours": ours, "FIFO": Fifo(), "round robin": RoundRobin()}
    return {name: await _service(queue, num_servers, jobs) for name, queue in queues.items()}


async def _service(queue: Queue, num_servers: int, jobs: Sequence[Job]) -> _Service:
    num_waiting = Counter(job.tenant for job in jobs)

    def is_last(one: Served) -> bool:
        num_waiting[one.job.tenant] -= 1
        return num_waiting[one.job.tenant] == 0

    served = await serve(queue, num_servers, jobs, is_last=is_last)
    until_s, longest_s = served[-1].begun_s, max(job.length_s for job in jobs)
    windows = ((0.0, until_s), (0.0, until_s / 2), (until_s / 2, until_s))
    whole, first, second = (gap(served, WEIGHTS, *window) for window in windows)
    normalised = [consumed_s(served, tenant, 0.0, until_s) / weight for tenant, weight in WEIGHTS.items()]
    return _Service(
        whole.from_start_s / longest_s,
        whole.any_window_s / longest_s,
        (first.any_window_s / longest_s, second.any_window_s / longest_s),
        jain(normalised),
    )


def _figures(case: str, errors: str, found: Sequence[Mapping[str, _Service]]) -> list[Figure]:
    """Sum the seeds up: the largest gaps, the mean gaps of the halves, the lowest index."""
    from_start, any_window = (
        {name: max(getattr(one[name], gap_) for one in found) for name in found[0]}
        for gap_ in ("from_start", "any_window")
    )
    index = {name: min(one[name].jain for one in found) for name in found[0]}
    figures = [
        Figure(f"{case}: {what}", largest.pop("ours"), "Lmax", 1.0, goals[errors], beside=largest)
        for what, largest, goals in (("gap", from_start, GAP_GOALS), ("gap of any window", any_window, WINDOW_GOALS))
    ]
    if ERRORS[errors]:
        first, second = (statistics.mean(one["ours"].halves[half] for one in found) for half in (0, 1))
        figures.append(Figure(f"{case}: second half / first half", second, "Lmax", first, GROWTH_GOAL))
    return [*figures, Figure(f"{case}: Jain's index", index.pop("ours"), "", 1.0, JAIN_GOAL, "higher", index)]
