"""What operators see of a pool; that every number is right is the business of test_fairness_model."""

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from vitascope_scheduler.adapters import redis_queue
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.testing import task_row
from vitascope_scheduler.view import ClassView, LeaseView, PoolView, WorkerView
from vitascope_scheduler.worker import Dispatched, SlotsOfWorker, Worker

POOL, TTL_MS, NOW = "default", 10_000, 1_000_000


async def add_worker(queue: RedisQueue, slots: int = 2, worker_id: str = "w1") -> None:
    await queue.register(Worker(worker_id, "gpu-worker", POOL, "H100", 4, slots, ("vita-mini-6",)), NOW, TTL_MS)


async def serve(queue: RedisQueue, num: int) -> None:
    for _ in range(num):
        found = await queue.dispatch(POOL, "w1", NOW, TTL_MS)
        assert isinstance(found, Dispatched)
        await queue.settle(POOL, found.task_id, 1, 10.0, NOW)


async def test_a_pool_that_nobody_knows_is_empty(queue: RedisQueue) -> None:
    assert await queue.view(POOL, NOW) == PoolView(
        POOL,
        is_draining=False,
        num_waiting=0,
        num_in_flight=0,
        backlog_s=0.0,
        virtual_time=0.0,
        classes=tuple(
            ClassView(name, weight, 0.0, 0.0, 0, 0, 0.0, 0.0, 0.0, ())
            for name, weight in redis_queue.CLASS_WEIGHTS.items()
        ),
        workers=(),
        leases=(),
    )


async def test_workers_and_leases_are_shown(queue: RedisQueue) -> None:
    await add_worker(queue)
    row = task_row("t0", tenant_id="a")
    await queue.enqueue(row, NOW, "")
    await queue.dispatch(POOL, "w1", NOW, TTL_MS)
    (lease,) = (await queue.view(POOL, NOW + 1)).leases
    assert lease == LeaseView("t0", "a", "standard", "w1", "handed_over", TTL_MS - 1, 10.0, 1)
    await queue.lease(replace(row, attempt=1), "w1", NOW + 2, TTL_MS)
    view = await queue.view(POOL, NOW + 3)
    assert view.leases == (LeaseView("t0", "a", "standard", "w1", "claimed", TTL_MS - 1, 10.0, 1),)
    assert view.workers == (WorkerView("w1", "H100", 4, 2, 1, ("vita-mini-6",), TTL_MS - 3, False, ("t0",)),)
    await queue.heartbeat(POOL, "w1", SlotsOfWorker(("t0",), is_draining=True), NOW + 3, TTL_MS)
    (worker,) = (await queue.view(POOL, NOW + 3)).workers
    assert (worker.is_draining, worker.num_free_slots) == (True, 0)
    assert (await queue.view(POOL, NOW + 3 + TTL_MS)).workers == ()


async def test_shares_are_what_weights_entitle_to(queue: RedisQueue) -> None:
    await add_worker(queue)
    for i in range(40):
        await queue.enqueue(task_row(f"a{i}", tenant_id="a", weight=3.0), NOW, "")
        await queue.enqueue(task_row(f"b{i}", tenant_id="b", weight=1.0), NOW, "")
    await serve(queue, 40)
    flows = {flow.tenant_id: flow for flow in (await queue.view(POOL, NOW)).classes[1].flows}
    assert [flows[name].served_s for name in "ab"] == [300.0, 100.0]
    for name in "ab":
        assert flows[name].entitled_s == pytest.approx(flows[name].served_s, abs=10.001)  # one task


async def test_what_ran_without_a_word_of_its_lease_is_paid_all_the_same(queue: RedisQueue) -> None:
    row = task_row("t0", tenant_id="a")
    await queue.enqueue(row, NOW, "")
    await queue.enqueue(replace(row, attempt=1, checkpoints=[{"done": 9, "unit": "step"}]), NOW, "")  # 9 of 30 steps
    assert (await queue.view(POOL, NOW)).classes[1].flows[0].served_s == pytest.approx(3.0)
    await queue.settle(POOL, "t0", 3, 7.0, NOW)
    assert (await queue.view(POOL, NOW)).classes[1].flows[0].served_s == pytest.approx(10.0)


async def test_who_comes_late_is_entitled_to_nothing_before(queue: RedisQueue) -> None:
    await add_worker(queue)
    for i in range(40):
        await queue.enqueue(task_row(f"a{i}", tenant_id="a"), NOW, "")
    await serve(queue, 20)
    await queue.enqueue(task_row("b0", tenant_id="b"), NOW, "")
    flows = {flow.tenant_id: flow for flow in (await queue.view(POOL, NOW)).classes[1].flows}
    assert (flows["b"].entitled_s, flows["a"].entitled_s) == (0.0, pytest.approx(190.0))


async def test_what_was_served_outlives_an_idle_pool_and_not_an_epoch(queue: RedisQueue, redis: Redis) -> None:
    await add_worker(queue)
    await queue.enqueue(task_row("t0", tenant_id="a"), NOW, "")
    await serve(queue, 1)
    standard = (await queue.view(POOL, NOW)).classes[1]
    assert (standard.num_waiting, standard.served_s, [flow.served_s for flow in standard.flows]) == (0, 10.0, [10.0])
    await redis.flushall()
    assert (await queue.view(POOL, NOW)).classes[1].flows == ()


async def test_flows_workers_and_leases_are_cut_off_and_sums_are_not(
    queue: RedisQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_queue, "MAX_VIEWED", 3)
    for i in range(5):
        await add_worker(queue, 1, f"w{i}")
    for i in range(5):
        for j in range(i + 2):
            await queue.enqueue(task_row(f"t{i}-{j}", tenant_id=f"tenant-{i}"), NOW, "")
    for i in range(5):
        await queue.dispatch(POOL, f"w{i}", NOW, TTL_MS)
    view = await queue.view(POOL, NOW)
    assert (len(view.workers), len(view.leases), view.num_waiting, view.num_in_flight) == (3, 3, 15, 5)
    standard = view.classes[1]
    assert [flow.tenant_id for flow in standard.flows] == ["tenant-4", "tenant-3", "tenant-2"]  # the most that waits
    assert (standard.backlog_s, standard.served_s, standard.num_in_flight) == (150.0, 50.0, 5)
    assert sum(flow.num_in_flight for flow in standard.flows) == 3
