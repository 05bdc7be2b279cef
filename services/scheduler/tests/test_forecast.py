"""The line played through against what the queue really does."""

import heapq
import itertools
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from vitascope_scheduler.adapters import redis_queue
from vitascope_scheduler.adapters.redis_queue import CLASS_WEIGHTS, RedisQueue
from vitascope_scheduler.forecast import (
    MAX_DISPATCHES,
    NO_TIME_S,
    Line,
    RunningTask,
    WaitingClass,
    WaitingFlow,
    WaitingTask,
    forecast,
    with_one_more,
)
from vitascope_scheduler.positions import Positions
from vitascope_scheduler.testing import task_row
from vitascope_scheduler.worker import Dispatched, Worker

POOL, TTL_MS, NOW = "default", 10**9, 1_000_000
TENANTS = "abcd"

put = st.tuples(
    st.sampled_from(TENANTS),
    st.sampled_from(list(CLASS_WEIGHTS)),
    st.integers(1, 64).map(float),
    st.sampled_from([0, 0, 0, -1, 1]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    before=st.lists(st.tuples(put, st.integers(1, 64).map(float)), max_size=15),
    puts=st.lists(put, min_size=10, max_size=50),
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 4.0])] * 4),
    caps=st.tuples(*[st.sampled_from([0, 1, 1, 2])] * 4),
    num_slots=st.integers(1, 6),
    num_running=st.integers(0, 5),
)
@example(  # who comes back from its cap has earned nothing meanwhile
    before=[],
    puts=[(tenant, "standard", cost, 0) for _ in range(12) for tenant, cost in (("a", 10.0), ("b", 4.0), ("c", 3.0))],
    weights=(1.0,) * 4,
    caps=(1, 0, 0, 0),
    num_slots=6,
    num_running=0,
)
async def test_the_forecast_is_what_happens_when_nothing_new_arrives(
    redis: Redis,
    before: list[tuple[tuple[str, str, float, int], float]],
    puts: list[tuple[str, str, float, int]],
    weights: tuple[float, ...],
    caps: tuple[int, ...],
    num_slots: int,
    num_running: int,
) -> None:
    await redis.flushall()
    queue, numbers, cost_of = RedisQueue(redis), itertools.count(), dict[str, float]()
    await queue.register(Worker("w", "gpu-worker", POOL, "cpu", 1, num_slots, ()), NOW, TTL_MS)

    async def enqueue(tenant: str, class_name: str, cost: float, priority: int) -> None:
        index, number = TENANTS.index(tenant), next(numbers)
        terms = {"weight": weights[index], "cap": caps[index], "priority": priority, "created_at_ms": number}
        row = task_row(f"t{number}", tenant_id=tenant, class_name=class_name, cost_s=cost, **terms)
        cost_of[row.task_id] = cost
        await queue.enqueue(row, NOW, "")

    async def dispatch() -> Dispatched | None:
        found = await queue.dispatch(POOL, "w", NOW, TTL_MS)
        return found if isinstance(found, Dispatched) else None

    cost_of["long"] = 500.0  # in flight all the time, so that tags stay
    await queue.enqueue(task_row("long", tenant_id="z", class_name="batch", cost_s=500.0), NOW, "")
    assert await dispatch()
    if num_slots > 1:
        for one, actual in before:
            await enqueue(*one)
            if found := await dispatch():
                await queue.settle(POOL, found.task_id, 1, actual, NOW)
    for one in puts:
        await enqueue(*one)
    ends = [(500.0, "z", "long")]
    for _ in range(num_running):
        if found := await dispatch():
            heapq.heappush(ends, (cost_of[found.task_id], found.tenant_id, found.task_id))

    foreseen = forecast(await queue.line(POOL, NOW, 1000))

    happened, now_s = dict[str, tuple[int, float]](), 0.0
    while True:
        if found := await dispatch():
            end_s = now_s + cost_of[found.task_id]
            happened[found.task_id] = (len(happened), end_s)
            heapq.heappush(ends, (end_s, found.tenant_id, found.task_id))
        elif ends:
            now_s, _, task_id = heapq.heappop(ends)
            await queue.settle(POOL, task_id, 1, cost_of[task_id], NOW)
        else:
            break
    assert {task_id: (one.position, one.eta_s) for task_id, one in foreseen.items()} == happened


def line_of(*flows: WaitingFlow, num_slots: int = 1, num_free: int = 1, running: tuple[RunningTask, ...] = ()) -> Line:
    return Line(num_slots, num_free, 1, 0.0, (WaitingClass("standard", 4.0, 0.0, 0.0, flows),), running)


def flow_of(name: str, *costs: float, cap: int = 0, num_more: int = 0, more_s: float = 0.0) -> WaitingFlow:
    tasks = tuple(WaitingTask(f"{name}{i}", f"{i}{name}", cost) for i, cost in enumerate(costs))
    return WaitingFlow(name, 1.0, cap, 0.0, tasks, num_more, more_s)


def test_those_that_are_not_named_are_counted_all_the_same() -> None:
    found = forecast(line_of(flow_of("a", 10.0, num_more=4, more_s=40.0), flow_of("b", 10.0, 10.0, 10.0)))
    assert {name: one.position for name, one in found.items()} == {"a0": 0, "b0": 1, "b1": 3, "b2": 5}


def test_without_a_worker_there_is_an_order_and_no_time() -> None:
    found = forecast(line_of(flow_of("a", 10.0, 10.0), num_slots=0, num_free=0))
    assert [(one.position, one.eta_s) for one in found.values()] == [(0, NO_TIME_S), (1, NO_TIME_S)]


def test_a_slot_of_a_drained_worker_is_not_waited_for() -> None:
    running = (RunningTask("z", 1.0, frees_slot=False), RunningTask("z", 30.0))
    found = forecast(line_of(flow_of("a", 10.0), num_free=0, running=running))
    assert found["a0"].eta_s == pytest.approx(40.0)


def test_what_nothing_lets_run_has_no_place() -> None:
    running = tuple(RunningTask("a", 1.0, frees_slot=False) for _ in range(2))
    assert forecast(line_of(flow_of("a", 10.0), num_free=0, running=running)) == {}


def test_a_group_of_devices_is_as_much_faster() -> None:
    line = line_of(flow_of("a", 80.0))
    fast = Line(line.num_slots, line.num_free, 8, line.virtual_time, line.classes, line.running)
    assert forecast(fast)["a0"].eta_s == pytest.approx(10.0)


async def test_a_long_line_is_cut_where_it_is_longest(queue: RedisQueue) -> None:
    for i in range(30):
        await queue.enqueue(task_row(f"a{i}", tenant_id="a", created_at_ms=i), NOW, "")
    for i in range(3):
        await queue.enqueue(task_row(f"b{i}", tenant_id="b", created_at_ms=i), NOW, "")
    line = await queue.line(POOL, NOW, 10)
    flows = {flow.tenant_id: flow for one in line.classes for flow in one.flows}
    assert {name: (len(flow.tasks), flow.num_more, flow.more_s) for name, flow in flows.items()} == {
        "a": (7, 23, 230.0),
        "b": (3, 0, 0.0),
    }


async def test_jobs_are_counted_before_a_job_and_not_their_tasks(queue: RedisQueue) -> None:
    for i, task_id in enumerate(("a.generate.0", "a.generate.1", "b.generate.0", "a.generate.2", "c.generate.0")):
        await queue.enqueue(task_row(task_id, tenant_id="t", created_at_ms=i), NOW, "")
    places = await Positions(queue, lambda: NOW).of([POOL], ["a", "b", "c", "d"])
    assert [one.position for one in places] == [0, 1, 2, -1]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    puts=st.lists(put.map(lambda one: (*one[:3], 0)), max_size=25),
    new=put,
    num_running=st.integers(0, 3),
    limit=st.sampled_from([1, 5, 100]),
)
async def test_what_is_foreseen_is_what_its_place_is_once_it_is_there(
    redis: Redis,
    puts: list[tuple[str, str, float, int]],
    new: tuple[str, str, float, int],
    num_running: int,
    limit: int,
) -> None:
    await redis.flushall()
    queue = RedisQueue(redis)
    await queue.register(Worker("w", "gpu-worker", POOL, "cpu", 1, num_running + 1, ()), NOW, TTL_MS)
    for i, (tenant, class_name, cost_s, _) in enumerate(puts):
        # Tasks of a flow that are not named count as alike.
        terms = {"tenant_id": tenant, "class_name": class_name, "cost_s": 4.0 if limit < 100 else cost_s}
        await queue.enqueue(task_row(f"old{i}.generate.0", created_at_ms=i, **terms), NOW, "")
    for _ in range(num_running):
        await queue.dispatch(POOL, "w", NOW, TTL_MS)
    tenant, class_name, cost_s, _ = new
    line = await queue.line(POOL, NOW, limit)
    task = WaitingTask("new.generate.0", "9", cost_s)
    found = forecast(with_one_more(line, class_name, tenant, (1.0, 0), task))["new.generate.0"]
    row = task_row("new.generate.0", created_at_ms=99, tenant_id=tenant, class_name=class_name, cost_s=cost_s)
    await queue.enqueue(row, NOW, "")
    then = forecast(await queue.line(POOL, NOW, 100))["new.generate.0"]
    assert (found.position, found.eta_s) == (then.position, pytest.approx(then.eta_s))


def test_whoever_stands_behind_an_endless_line_has_no_place() -> None:
    line = line_of(flow_of("a", num_more=10**9, more_s=1e9))
    task = WaitingTask("new", "9", 1.0)
    assert "new" not in forecast(with_one_more(line, line.classes[0].name, "a", (1.0, 0), task))


def test_ten_thousand_capped_tenants_are_no_burden() -> None:
    flows = [flow_of(f"tenant-{i}-", 10.0, 10.0, cap=1) for i in range(10_000)]
    began_s = time.process_time()
    found = forecast(line_of(*flows, num_slots=50, num_free=50))
    assert time.process_time() - began_s < 5.0  # it takes 0.4 s; a look at every flow at each dispatch takes 12 s
    assert found["tenant-0-0"].eta_s == 10.0
    assert sorted(one.position for one in found.values()) == list(range(MAX_DISPATCHES))


def test_an_endless_line_is_not_played_to_its_end() -> None:
    found = forecast(line_of(flow_of("a", num_more=10**9, more_s=1e9), flow_of("b", *[10**8] * 2)))
    assert found.keys() == {"b0"}


async def test_what_comes_behind_many_flows_is_one_lump(queue: RedisQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_queue, "MAX_FLOWS", 6)
    for class_name, num in (("realtime", 1), ("standard", 5), ("batch", 8)):
        for i in range(num):
            for j in range(2):
                terms = {"class_name": class_name, "created_at_ms": 10 * i + j, "cost_s": 10.0 + i}
                await queue.enqueue(task_row(f"{class_name}{i}-{j}", tenant_id=f"t{i}-{class_name}", **terms), NOW, "")
    line = await queue.line(POOL, NOW, 100)
    realtime, standard, batch = line.classes
    assert [one.tenant_id for one in realtime.flows] == ["t0-realtime"]
    assert [one.tenant_id for one in standard.flows] == ["t0-standard", "t1-standard", "t2-standard", ""]
    assert standard.flows[-1] == WaitingFlow("", 2.0, 0, 0.0, (), num_more=4, more_s=54.0)
    assert [one.tenant_id for one in batch.flows] == ["t0-batch", "t1-batch", ""]
    assert batch.flows[-1] == WaitingFlow("", 6.0, 0, 0.0, (), num_more=12, more_s=174.0)
    found = forecast(line)
    assert len(found) == 2 * 6
    assert max(one.position for one in found.values()) > 2 * 6  # the others are not forgotten


async def test_flows_that_may_run_come_before_those_at_their_cap(
    queue: RedisQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_queue, "MAX_FLOWS", 3)
    await queue.register(Worker("w", "gpu-worker", POOL, "cpu", 1, 1, ()), NOW, TTL_MS)
    for i in range(2):
        await queue.enqueue(task_row(f"a{i}", tenant_id="a", cap=1, cost_s=1.0, created_at_ms=i), NOW, "")
    assert isinstance(await queue.dispatch(POOL, "w", NOW, TTL_MS), Dispatched)
    for i in range(4):
        await queue.enqueue(task_row(f"b{i}", tenant_id=f"b{i}", created_at_ms=i), NOW, "")
    (standard,) = (one for one in (await queue.line(POOL, NOW, 100)).classes if one.name == "standard")
    assert [one.tenant_id for one in standard.flows] == ["b0", "b1", "b2", ""]
