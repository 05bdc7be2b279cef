"""What the theory promises, over random histories on a real Redis."""

import itertools
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from vitascope_scheduler.adapters.redis_queue import CLASS_WEIGHTS, RedisQueue
from vitascope_scheduler.testing import NUM_STEPS, checkpoint, task_row
from vitascope_scheduler.worker import Dispatched, Nothing, SlotsOfWorker, Worker

POOL, TTL_MS, NOW = "default", 10_000, 1_000_000
TENANTS = "abc"

in_redis = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


class Siblings:
    """Work charged to nodes of one level, and how far any two have drifted apart while both could be served."""

    def __init__(self) -> None:
        self._charged: dict[str, float] = defaultdict(float)
        self._dearest: dict[str, float] = defaultdict(float)
        self._range: dict[tuple[str, str], tuple[float, float]] = {}

    def put(self, name: str, cost: float, weight: float) -> None:
        self._dearest[name] = max(self._dearest[name], cost / weight)

    def charge(self, name: str, cost: float, weight: float) -> None:
        self._charged[name] += cost / weight
        for (one, other), (low, high) in self._range.items():
            gap = self._charged[one] - self._charged[other]
            low, high = min(low, gap), max(high, gap)
            self._range[one, other] = (low, high)
            assert high - low <= self._dearest[one] + self._dearest[other] + 1e-6

    def see(self, eligible: set[str]) -> None:
        """Begin to watch the pairs that can be served from now on; forget the others."""
        for pair in itertools.combinations(sorted(self._charged.keys() | eligible), 2):
            if not set(pair) <= eligible:
                self._range.pop(pair, None)
            elif pair not in self._range:
                gap = self._charged[pair[0]] - self._charged[pair[1]]
                self._range[pair] = (gap, gap)


class History:
    """A pool in which every task costs what it is estimated at."""

    def __init__(self, queue: RedisQueue, weights: tuple[float, ...], caps: tuple[int, ...]) -> None:
        self._queue = queue
        self._weights = dict(zip(TENANTS, weights, strict=True))
        self._caps = dict(zip(TENANTS, caps, strict=True))
        self._top = Siblings()
        self._levels = {name: Siblings() for name in CLASS_WEIGHTS}
        self._waiting: dict[str, tuple[str, str, float]] = {}
        self._flying: dict[str, tuple[str, str, float]] = {}
        self._numbers = itertools.count()

    async def put(self, tenant: str, class_name: str, cost: float) -> None:
        number = next(self._numbers)
        row = task_row(f"t{number}", tenant_id=tenant, class_name=class_name, cost_s=cost, created_at_ms=number)
        row = replace(row, weight=self._weights[tenant], cap=self._caps[tenant])
        await self._queue.enqueue(row, NOW, "")
        self._waiting[row.task_id] = (tenant, class_name, cost)
        self._top.put(class_name, cost, CLASS_WEIGHTS[class_name])
        self._levels[class_name].put(tenant, cost, self._weights[tenant])
        self._see()

    async def dispatch(self) -> None:
        found = await self._queue.dispatch(POOL, "w", NOW, TTL_MS)
        if not isinstance(found, Dispatched):
            assert found is Nothing.NO_TASK
            assert not any(self._is_eligible(tenant) for tenant, _, _ in self._waiting.values())
            return
        tenant, class_name, cost = self._flying[found.task_id] = self._waiting.pop(found.task_id)
        assert (found.tenant_id, found.class_name) == (tenant, class_name)
        self._top.charge(class_name, cost, CLASS_WEIGHTS[class_name])
        self._levels[class_name].charge(tenant, cost, self._weights[tenant])
        self._see()

    async def finish(self, index: int) -> None:
        if self._flying:
            task_id = list(self._flying)[index % len(self._flying)]
            await self._queue.settle(POOL, task_id, 1, self._flying.pop(task_id)[2], NOW)
            self._see()

    async def cancel(self, index: int) -> None:
        if self._waiting:
            task_id = list(self._waiting)[index % len(self._waiting)]
            del self._waiting[task_id]
            await self._queue.stop(task_row(task_id), NOW)
            self._see()

    def _is_eligible(self, tenant: str) -> bool:
        cap = self._caps[tenant]
        return cap == 0 or sum(one == tenant for one, _, _ in self._flying.values()) < cap

    def _see(self) -> None:
        served = {(name, tenant) for tenant, name, _ in self._waiting.values() if self._is_eligible(tenant)}
        self._top.see({name for name, _ in served})
        for name, level in self._levels.items():
            level.see({tenant for one, tenant in served if one == name})


costs = st.floats(0.5, 100)
step = st.one_of(
    st.tuples(
        st.just("put"), st.sampled_from(TENANTS), st.sampled_from(list(CLASS_WEIGHTS)), st.lists(costs, min_size=2)
    ),
    st.tuples(st.just("dispatch"), st.integers(1, 6)),
    st.tuples(st.just("finish"), st.integers(0, 9)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
)


@in_redis
@given(
    first=st.lists(st.tuples(st.sampled_from(TENANTS), st.sampled_from(list(CLASS_WEIGHTS)), costs), max_size=30),
    steps=st.lists(step, min_size=10, max_size=25),
    weights=st.tuples(*[st.floats(0.25, 8)] * 3),
    caps=st.tuples(*[st.sampled_from([0, 0, 2, 3])] * 3),
)
async def test_siblings_that_can_be_served_stay_within_the_bound(
    redis: Redis,
    first: list[tuple[str, str, float]],
    steps: list[tuple[Any, ...]],
    weights: tuple[float, ...],
    caps: tuple[int, ...],
) -> None:
    """|W_i/w_i - W_j/w_j| <= c_i/w_i + c_j/w_j on both levels, in every window in which both are eligible.

    Whoever comes from idleness or a cap begins a new window, so that this is also the promise of no banked credit.
    """
    await redis.flushall()
    queue = RedisQueue(redis)
    await queue.register(Worker("w", "gpu-worker", POOL, "cpu", 1, 1000, ()), NOW, TTL_MS)
    history = History(queue, weights, caps)
    for tenant, class_name, cost in first:
        await history.put(tenant, class_name, cost)
    for what, *details in steps:
        if what == "put":
            tenant, class_name, line = details
            for cost in line:
                await history.put(tenant, class_name, cost)
        elif what == "dispatch":
            for _ in range(details[0]):
                await history.dispatch()
        else:
            await getattr(history, what)(details[0])


endings = st.lists(
    st.tuples(st.sampled_from(["unclaimed", "drained", "crash", "yield"]), st.integers(0, 9)), max_size=8
)


@in_redis
@given(endings=endings, cost=st.integers(1, 1000).map(float), weight=st.sampled_from([0.5, 1.0, 3.0]))
async def test_all_attempts_together_pay_one_undisturbed_run(
    redis: Redis, endings: list[tuple[str, int]], cost: float, weight: float
) -> None:
    """However often an attempt is lost, drained away or yields: what survives is paid once, what is lost by nobody."""
    await redis.flushall()
    queue = RedisQueue(redis)
    await queue.register(Worker("w", "gpu-worker", POOL, "cpu", 1, 2, ()), NOW, 10**9)
    other = task_row("other", tenant_id="z", cost_s=10.0, created_at_ms=1)
    await queue.enqueue(other, NOW, "")  # keeps the pool busy, so that tags stay
    assert isinstance(await queue.dispatch(POOL, "w", NOW, 10**9), Dispatched)
    row, now_ms, done = task_row("t", cost_s=cost, weight=weight, created_at_ms=2), NOW, 0
    await queue.enqueue(row, now_ms, "")
    for how, num_steps in endings:
        assert isinstance(await queue.dispatch(POOL, "w", now_ms, TTL_MS), Dispatched)
        if how == "unclaimed":
            now_ms += TTL_MS
        elif how == "drained":
            leaving = SlotsOfWorker((), is_draining=True)
            assert "t" in (await queue.heartbeat(POOL, "w", leaving, now_ms, 10**9) or [])
            await queue.heartbeat(POOL, "w", SlotsOfWorker(), now_ms, 10**9)
            await queue.lease(replace(other, attempt=1), "w", now_ms, 10**9)
        else:
            running = replace(row, attempt=row.attempt + 1, claimed_at_ms=now_ms)
            assert await queue.lease(running, "w", now_ms, TTL_MS) == "renewed"
            done = min(done + num_steps, NUM_STEPS - 1)
            row = replace(running, checkpoints=[checkpoint(done).to_dict()] if done else [])
        is_claimed = how in ("crash", "yield")
        assert await queue.enqueue(row, now_ms, "") == ("returned" if is_claimed else "unclaimed")
    assert isinstance(await queue.dispatch(POOL, "w", now_ms, TTL_MS), Dispatched)
    left = cost * (1 - done / NUM_STEPS)
    assert await queue.settle(POOL, "t", row.attempt + 1, left, now_ms)
    view = await queue.view(POOL, now_ms)
    flow = next(one for one in view.classes[1].flows if one.tenant_id == row.tenant_id)
    assert flow.served_s == pytest.approx(cost, abs=0.002 * (len(endings) + 1))
    assert flow.start_tag == pytest.approx(cost / weight)
    assert (view.num_waiting, view.num_in_flight) == (0, 1)


@in_redis
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=6),
    cancel_ms=st.integers(100, 1_999),
    weight=st.sampled_from([0.5, 1.0, 3.0]),
)
async def test_whoever_cancels_before_the_first_heartbeat_gets_no_more_than_its_share(
    redis: Redis, lengths: list[int], cancel_ms: int, weight: float
) -> None:
    """Nobody has said by then that the task has run, and it has had its worker all the same."""
    await redis.flushall()
    queue, now_ms, numbers = RedisQueue(redis), NOW, itertools.count()
    await queue.register(Worker("w", "gpu-worker", POOL, "cpu", 1, 1, ()), NOW, 10**9)
    next_length = itertools.cycle(lengths)

    async def put(tenant: str, cost_s: float) -> None:
        number = next(numbers)
        terms = {"cost_s": cost_s, "created_at_ms": number, "weight": weight if tenant == "cheat" else 1.0}
        await queue.enqueue(task_row(f"{tenant}{number}", tenant_id=tenant, **terms), now_ms, "")

    used_s = {"cheat": 0.0, "honest": 0.0}
    for _ in range(3):
        await put("cheat", 8.0)
        await put("honest", next(next_length))
    for _ in range(60):
        found = await queue.dispatch(POOL, "w", now_ms, TTL_MS)
        assert isinstance(found, Dispatched)
        running = task_row(found.task_id, tenant_id=found.tenant_id, attempt=1, claimed_at_ms=now_ms)
        assert await queue.lease(running, "w", now_ms, TTL_MS) == "renewed"
        if found.tenant_id == "cheat":
            held_s, said_s = cancel_ms / 1000, 0.0
            assert await queue.stop(running, now_ms + cancel_ms) == "stopping"
        else:
            held_s = said_s = (await queue.view(POOL, now_ms)).leases[0].charged_s
        now_ms += round(1000 * held_s)
        used_s[found.tenant_id] += held_s
        await put(found.tenant_id, 8.0 if found.tenant_id == "cheat" else next(next_length))
        assert await queue.settle(POOL, found.task_id, 1, said_s, now_ms)
    assert used_s["cheat"] / weight - used_s["honest"] <= 8.0 / weight + 8.0
