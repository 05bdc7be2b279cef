"""The scripts of the fair queue on a real Redis."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from vitascope_common import keys
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.tasks import TaskRow
from vitascope_scheduler.testing import checkpoint, task_row
from vitascope_scheduler.worker import Dispatched, Nothing, SlotsOfWorker, Worker

POOL, TTL_MS, NOW = "default", 10_000, 1_000_000


def worker(worker_id: str = "w1", slots: int = 1) -> Worker:
    return Worker(worker_id, "gpu-worker", POOL, "cpu", 1, slots, ())


async def put(queue: RedisQueue, task_id: str, tenant: str = "a", **changes: object) -> TaskRow:
    row = task_row(task_id, tenant_id=tenant, **changes)
    assert await queue.enqueue(row, NOW, "") == "queued"
    return row


async def take(queue: RedisQueue, worker_id: str = "w1", now_ms: int = NOW) -> str | None:
    found = await queue.dispatch(POOL, worker_id, now_ms, TTL_MS)
    return found.task_id if isinstance(found, Dispatched) else None


async def serve_one(queue: RedisQueue, actual_s: float | None = None) -> tuple[str, str]:
    """Dispatch one task, finish it, and return its tenant and id."""
    found = await queue.dispatch(POOL, "w1", NOW, TTL_MS)
    assert isinstance(found, Dispatched)
    await queue.settle(POOL, found.task_id, 1, 10.0 if actual_s is None else actual_s, NOW)
    return found.tenant_id, found.task_id


async def is_forgotten(redis: Redis) -> bool:
    known = {str(key) for key in await redis.keys("*")}
    lasting = ("worker:", "workers:", "inbox:", "idle:", "served:")
    left = {key for key in known if not key.startswith(lasting)}
    return all([key.startswith("task:") and await redis.hexists(key, "ended") for key in left])


@pytest.fixture
async def slot(queue: RedisQueue) -> None:
    await queue.register(worker(), NOW, TTL_MS)


@pytest.mark.usefixtures("slot")
class TestShares:
    async def test_cost_is_shared_by_weight(self, queue: RedisQueue) -> None:
        costs, weights = {"a": 30.0, "b": 5.0, "c": 60.0}, {"a": 1.0, "b": 2.0, "c": 4.0}
        for tenant, cost_s in costs.items():
            for i in range(int(4000 / cost_s)):
                await put(queue, f"{tenant}{i}", tenant, cost_s=cost_s, weight=weights[tenant])
        served: Counter[str] = Counter()
        while sum(served.values()) < 5000:
            found = await queue.dispatch(POOL, "w1", NOW, TTL_MS)
            assert isinstance(found, Dispatched)
            served[found.tenant_id] += int(costs[found.tenant_id])
            await queue.settle(POOL, found.task_id, 1, costs[found.tenant_id], NOW)
        for one in costs:
            for other in costs:
                gap = abs(served[one] / weights[one] - served[other] / weights[other])
                assert gap <= costs[one] / weights[one] + costs[other] / weights[other]

    async def test_classes_share_by_weight(self, queue: RedisQueue) -> None:
        for name in ("realtime", "standard", "batch"):
            for i in range(40):
                await put(queue, f"{name}{i}", f"t-{name}", class_name=name)
        served = Counter([(await serve_one(queue))[0] for _ in range(39)])
        assert abs(served["t-realtime"] - 24) <= 1
        assert abs(served["t-standard"] - 12) <= 1
        assert abs(served["t-batch"] - 3) <= 1

    async def test_real_use_decides_in_the_end(self, queue: RedisQueue) -> None:
        for i in range(60):
            await put(queue, f"a{i}", "a")
            await put(queue, f"b{i}", "b")
        used = Counter({"a": 0.0, "b": 0.0})
        for _ in range(60):
            found = await queue.dispatch(POOL, "w1", NOW, TTL_MS)
            assert isinstance(found, Dispatched)
            actual_s = 40.0 if found.tenant_id == "a" else 10.0
            used[found.tenant_id] += actual_s
            await queue.settle(POOL, found.task_id, 1, actual_s, NOW)
        assert abs(used["a"] - used["b"]) <= 50

    async def test_an_idle_tenant_earns_no_credit(self, queue: RedisQueue) -> None:
        for i in range(30):
            await put(queue, f"a{i}", "a")
        for _ in range(20):
            await serve_one(queue)
        for i in range(10):
            await put(queue, f"b{i}", "b")
        order = [(await serve_one(queue))[0] for _ in range(10)]
        assert Counter(order) == {"a": 5, "b": 5}

    async def test_an_idle_class_earns_no_credit(self, queue: RedisQueue) -> None:
        for i in range(60):
            await put(queue, f"a{i}", "a")
        for _ in range(20):
            await serve_one(queue)
        for i in range(10):
            await put(queue, f"b{i}", "b", class_name="batch")
        served = Counter([(await serve_one(queue))[0] for _ in range(20)])
        assert abs(served["b"] - 4) <= 1

    async def test_a_newcomer_is_next_after_a_flood(self, queue: RedisQueue) -> None:
        for i in range(300):
            await put(queue, f"a{i}", "a")
        await serve_one(queue)
        await put(queue, "b0", "b")
        assert "b0" in [(await serve_one(queue))[1] for _ in range(2)]

    async def test_a_waiting_backlog_feels_a_new_weight_at_once(self, queue: RedisQueue) -> None:
        for i in range(40):
            await put(queue, f"a{i}", "a")
            await put(queue, f"b{i}", "b")
        for _ in range(4):
            await serve_one(queue)
        await queue.set_flow(POOL, "b", 3.0, 0, NOW)
        served = Counter([(await serve_one(queue))[0] for _ in range(20)])
        assert abs(served["b"] - 15) <= 1

    async def test_tags_keep_every_bit(self, queue: RedisQueue, redis: Redis) -> None:
        await put(queue, "a0", "a", cost_s=1 / 3, weight=0.7)
        await put(queue, "a1", "a", cost_s=1 / 3, weight=0.7)
        assert await take(queue) == "a0"
        assert await _finish_tag(redis, "a") == (1 / 3) / 0.7


@pytest.mark.usefixtures("slot")
class TestOrder:
    async def test_ties_go_by_arrival_never_by_name(self, queue: RedisQueue) -> None:
        names = list("hgfedcba")
        for name in names:
            await put(queue, f"task-{name}", f"tenant-{name}")
        assert [(await serve_one(queue))[1] for _ in names] == [f"task-{name}" for name in names]

    async def test_a_flow_goes_by_priority_then_by_acceptance(self, queue: RedisQueue) -> None:
        await put(queue, "late", created_at_ms=300)
        await put(queue, "early", created_at_ms=100)
        await put(queue, "urgent", created_at_ms=400, priority=-1)
        assert [(await serve_one(queue))[1] for _ in range(3)] == ["urgent", "early", "late"]

    async def test_what_comes_back_keeps_its_place(self, queue: RedisQueue) -> None:
        first = await put(queue, "first")
        await put(queue, "second")
        assert await take(queue) == "first"
        assert await queue.enqueue(replace(first, attempt=1), NOW, "") == "returned"
        assert await take(queue) == "first"


class TestSlots:
    async def test_a_slot_is_spent_once(self, queue: RedisQueue, redis: Redis) -> None:
        await queue.register(worker(slots=2), NOW, TTL_MS)
        for i in range(3):
            await put(queue, f"t{i}")
        assert [await take(queue) for _ in range(3)] == ["t0", "t1", None]
        inbox = [json.loads(fields["data"]) for _, fields in await redis.xrange(keys.inbox(POOL, "w1"))]
        assert [entry["tasks"][0]["task_id"] for entry in inbox] == ["t0", "t1"]
        assert await queue.idle_workers(POOL, NOW) == []

    async def test_a_heartbeat_that_races_an_assign_does_not_free_the_slot(self, queue: RedisQueue) -> None:
        await queue.register(worker(), NOW, TTL_MS)
        await put(queue, "t0")
        await put(queue, "t1")
        assert await take(queue) == "t0"
        assert (
            await queue.heartbeat(POOL, "w1", SlotsOfWorker(), NOW + 1, TTL_MS) == []
        )  # it has not read its inbox yet
        assert await queue.dispatch(POOL, "w1", NOW + 1, TTL_MS) is Nothing.NO_SLOT

    async def test_work_that_redis_forgot_still_takes_its_slot(self, queue: RedisQueue) -> None:
        await queue.register(worker(), NOW, TTL_MS)
        await put(queue, "t1")
        assert await queue.heartbeat(POOL, "w1", SlotsOfWorker(("stray",)), NOW, TTL_MS) == []
        assert await take(queue) is None
        await queue.heartbeat(POOL, "w1", SlotsOfWorker(), NOW, TTL_MS)
        assert await take(queue) == "t1"

    async def test_an_unknown_worker_must_register(self, queue: RedisQueue) -> None:
        assert await queue.heartbeat(POOL, "w1", SlotsOfWorker(), NOW, TTL_MS) is None
        await put(queue, "t1")
        assert await queue.dispatch(POOL, "w1", NOW, TTL_MS) is Nothing.NO_SLOT

    async def test_a_worker_that_fell_silent_gets_nothing(self, queue: RedisQueue) -> None:
        await queue.register(worker(), NOW, TTL_MS)
        await put(queue, "t1")
        assert await queue.dispatch(POOL, "w1", NOW + TTL_MS, TTL_MS) is Nothing.NO_SLOT
        assert await queue.idle_workers(POOL, NOW + TTL_MS) == []

    async def test_a_draining_worker_gets_nothing_more(self, queue: RedisQueue) -> None:
        await queue.register(worker(slots=2), NOW, TTL_MS)
        claimed, handed = await put(queue, "t0"), await put(queue, "t1")
        await put(queue, "t2")
        assert [await take(queue), await take(queue)] == ["t0", "t1"]
        await queue.lease(replace(claimed, attempt=1), "w1", NOW, TTL_MS)
        leaving = SlotsOfWorker(("t0",), is_draining=True)
        assert await queue.heartbeat(POOL, "w1", leaving, NOW, TTL_MS) == ["t1"]
        assert await queue.enqueue(handed, NOW, "") == "unclaimed"
        assert await queue.settle(POOL, "t0", 1, 5.0, NOW)
        assert await take(queue) is None
        await queue.register(worker("w2"), NOW, TTL_MS)
        assert await take(queue, "w2") == "t1"

    async def test_registering_again_does_not_forget_what_is_held(self, queue: RedisQueue) -> None:
        await queue.register(worker(), NOW, TTL_MS)
        await put(queue, "t0")
        await put(queue, "t1")
        assert await take(queue) == "t0"
        await queue.register(worker(), NOW, TTL_MS)
        assert await take(queue) is None

    async def test_an_empty_pool_says_so(self, queue: RedisQueue) -> None:
        await queue.register(worker(), NOW, TTL_MS)
        assert await queue.dispatch(POOL, "w1", NOW, TTL_MS) is Nothing.NO_TASK


class TestCaps:
    async def test_a_capped_tenant_blocks_nobody(self, queue: RedisQueue) -> None:
        await queue.register(worker(slots=10), NOW, TTL_MS)
        for i in range(5):
            await put(queue, f"a{i}", "a", cap=2)
        for i in range(3):
            await put(queue, f"b{i}", "b", created_at_ms=1_800_000_000_000)
        got = [await take(queue) for _ in range(6)]
        assert sorted(filter(None, got)) == ["a0", "a1", "b0", "b1", "b2"]
        await queue.settle(POOL, "a0", 1, 10.0, NOW)
        assert await take(queue) == "a2"

    async def test_a_cap_holds_over_all_classes(self, queue: RedisQueue) -> None:
        await queue.register(worker(slots=10), NOW, TTL_MS)
        await put(queue, "a0", "a", cap=1, class_name="standard")
        await put(queue, "a1", "a", cap=1, class_name="batch")
        assert await take(queue) is not None
        assert await take(queue) is None

    async def test_a_lifted_cap_lets_the_backlog_go(self, queue: RedisQueue) -> None:
        await queue.register(worker(slots=10), NOW, TTL_MS)
        await put(queue, "a0", cap=1)
        await put(queue, "a1", cap=1)
        assert [await take(queue), await take(queue)] == ["a0", None]
        await queue.set_flow(POOL, "a", 1.0, 0, NOW)
        assert await take(queue) == "a1"


class TestRepeats:
    async def test_enqueue_is_idempotent(self, queue: RedisQueue) -> None:
        await queue.register(worker(slots=9), NOW, TTL_MS)
        row = await put(queue, "t0")
        assert await queue.enqueue(row, NOW, "") == "known"
        assert await take(queue) == "t0"
        assert await queue.enqueue(row, NOW, "") == "known"  # handed out: a late message must not double it
        assert await queue.lease(replace(row, attempt=1), "w1", NOW, TTL_MS) == "renewed"
        assert await queue.enqueue(row, NOW, "") == "known"  # claimed
        assert await take(queue) is None

    async def test_a_task_that_comes_back_in_another_class_leaves_nothing_in_the_old_one(
        self, queue: RedisQueue
    ) -> None:
        await queue.register(worker(slots=9), NOW, TTL_MS)
        row = await put(queue, "t0", class_name="realtime")
        assert await queue.enqueue(replace(row, attempt=1, class_name="batch"), NOW, "") == "returned"
        assert [await take(queue), await take(queue)] == ["t0", None]
        view = await queue.view(POOL, NOW)
        assert [one.num_in_flight for one in view.classes] == [0, 0, 1]

    async def test_old_news_is_ignored(self, queue: RedisQueue) -> None:
        await queue.register(worker(slots=9), NOW, TTL_MS)
        row = await put(queue, "t0", attempt=2)
        assert await queue.enqueue(replace(row, attempt=1), NOW, "") == "known"
        assert await queue.lease(replace(row, attempt=2), "w9", NOW, TTL_MS) == "stale"
        assert not await queue.settle(POOL, "t0", 2, 5.0, NOW)
        assert await take(queue) == "t0"

    async def test_settle_is_idempotent_and_leaves_nothing(self, queue: RedisQueue, redis: Redis) -> None:
        await queue.register(worker(), NOW, TTL_MS)
        await put(queue, "t0")
        await take(queue)
        assert await queue.settle(POOL, "t0", 1, 12.0, NOW)
        assert not await queue.settle(POOL, "t0", 1, 12.0, NOW)
        assert await is_forgotten(redis)
        assert await queue.idle_workers(POOL, NOW) == ["w1"]

    async def test_a_task_that_waits_can_be_settled_away(self, queue: RedisQueue, redis: Redis) -> None:
        await put(queue, "t0")
        assert await queue.settle(POOL, "t0", 1, 0.0, NOW)
        assert await is_forgotten(redis)

    async def test_what_was_read_before_the_end_does_not_wait_again(self, queue: RedisQueue) -> None:
        await queue.register(worker(), NOW, TTL_MS)
        row = await put(queue, "t0")
        await take(queue)
        assert await queue.lease(replace(row, attempt=1), "w1", NOW, TTL_MS) == "renewed"
        assert await queue.settle(POOL, "t0", 1, 5.0, NOW)
        assert await queue.enqueue(row, NOW, "") == "known"  # by a replica that has read the task as ready before
        assert await take(queue) is None
        assert await queue.unknown(POOL, ["t0"]) == ["t0"]
        assert await queue.enqueue(replace(row, attempt=1), NOW, "") == "queued"  # a later attempt is no old news

    async def test_what_was_read_before_a_cancel_does_not_wait_again(self, queue: RedisQueue) -> None:
        row = await put(queue, "t0")
        assert await queue.stop(row, NOW) == "gone"
        assert await queue.enqueue(row, NOW, "") == "known"
        assert await queue.depth(POOL) == (0, 0)

    @pytest.mark.parametrize("how", ["enqueue", "lease"])
    async def test_what_lives_again_does_not_expire(self, queue: RedisQueue, redis: Redis, how: str) -> None:
        row = await put(queue, "t0")
        assert await queue.settle(POOL, "t0", 1, 0.0, NOW)
        key = keys.queued_task(POOL, "t0")
        assert 0 < await redis.pttl(key) <= 60_000
        later = replace(row, attempt=1)
        if how == "enqueue":
            assert await queue.enqueue(later, NOW, "") == "queued"
        else:
            assert await queue.lease(later, "w1", NOW, TTL_MS) == "created"
        assert await redis.pttl(key) == -1
        assert not await redis.hexists(key, "ended")

    @pytest.mark.parametrize("how", ["enqueue", "settle"])
    async def test_a_lease_of_a_task_that_is_lost_ends(self, queue: RedisQueue, redis: Redis, how: str) -> None:
        await queue.register(worker(), NOW, TTL_MS)
        row = await put(queue, "t0")
        await take(queue)
        await redis.delete(keys.queued_task(POOL, "t0"))
        if how == "enqueue":
            assert await queue.enqueue(row, NOW, "") == "queued"
        else:
            assert not await queue.settle(POOL, "t0", 1, 0.0, NOW)
        assert await queue.expired_leases(POOL, NOW + TTL_MS, 10) == []

    async def test_a_lost_task_gives_its_slot_back(self, queue: RedisQueue, redis: Redis) -> None:
        await queue.register(worker(), NOW, TTL_MS)
        await put(queue, "t0")
        await put(queue, "t1")
        await take(queue)
        await redis.delete(keys.queued_task(POOL, "t0"))
        assert await queue.heartbeat(POOL, "w1", SlotsOfWorker(("t0",)), NOW, TTL_MS) == []
        assert await take(queue) is None  # it runs there
        assert await queue.heartbeat(POOL, "w1", SlotsOfWorker(), NOW, TTL_MS) == []
        assert await take(queue) == "t1"


class TestLeases:
    async def test_a_handover_that_nobody_claimed_costs_nothing(self, queue: RedisQueue) -> None:
        await queue.register(worker("dead"), NOW, TTL_MS)
        row = await put(queue, "a0", "a")
        assert await take(queue, "dead") == "a0"
        assert await queue.expired_leases(POOL, NOW + TTL_MS - 1, 10) == []
        assert await queue.expired_leases(POOL, NOW + TTL_MS, 10) == ["a0"]
        later = NOW + TTL_MS
        await queue.register(worker("w1"), later, TTL_MS)
        assert await queue.enqueue(row, later, "") == "unclaimed"
        for i in range(4):
            await queue.enqueue(task_row(f"b{i}", tenant_id="b"), later, "")
        order = []
        for _ in range(3):
            task_id = await take(queue, "w1", later)
            assert task_id
            order.append(task_id)
            await queue.settle(POOL, task_id, 1, 10.0, later)
        assert order[:2] == ["a0", "b0"]  # as if the first hand-over had never been

    async def test_what_survives_is_paid_once(self, queue: RedisQueue, redis: Redis) -> None:
        await queue.register(worker(slots=2), NOW, TTL_MS)
        row = await put(queue, "a0", "a", cost_s=30.0)
        await put(queue, "z0", "z")  # keeps the pool busy, so that tags stay
        assert await take(queue) == "a0"
        assert await _finish_tag(redis, "a") == 30.0
        lost = replace(row, attempt=1, checkpoints=[checkpoint(20).to_dict()])  # 20 of 30 steps survive
        assert await queue.enqueue(lost, NOW, "") == "returned"
        assert await _finish_tag(redis, "a") == pytest.approx(20.0)
        await queue.enqueue(task_row("a1", tenant_id="a"), NOW, "")
        taken = {await take(queue), await take(queue)}
        assert "z0" in taken
        await queue.settle(POOL, "z0", 1, 10.0, NOW)
        assert "a0" in taken | {await take(queue)}
        assert await _finish_tag(redis, "a") >= 30.0 - 1e-9

    async def test_a_claim_takes_the_task_out_of_the_line(self, queue: RedisQueue) -> None:
        await queue.register(worker(slots=2), NOW, TTL_MS)
        row = await put(queue, "t0")
        assert await queue.lease(replace(row, attempt=1), "w1", NOW, TTL_MS) == "taken"
        assert await take(queue) is None
        assert await queue.settle(POOL, "t0", 2, 1.0, NOW)

    async def test_after_a_wipe_heartbeats_make_leases_again(self, queue: RedisQueue, redis: Redis) -> None:
        await redis.flushall()
        await queue.register(worker(), NOW, TTL_MS)
        row = task_row("t0", attempt=1, tenant_id="a", cap=1)
        assert await queue.lease(row, "w1", NOW, TTL_MS) == "created"
        assert await queue.lease(row, "w1", NOW, TTL_MS) == "renewed"
        assert await queue.without_lease(POOL, ["t0", "t9"]) == ["t9"]
        assert await queue.depth(POOL) == (0, 1)
        await queue.register(worker("w2"), NOW, TTL_MS)
        await put(queue, "t1", "a", cap=1)
        assert await take(queue, "w2") is None  # the cap counts it
        assert await queue.settle(POOL, "t0", 2, 1.0, NOW)
        assert await take(queue, "w2") == "t1"

    async def test_a_lease_made_again_moves_no_tag(self, queue: RedisQueue, redis: Redis) -> None:
        """It was charged in the epoch before the wipe, or is settled already and a late heartbeat makes it again."""
        await queue.register(worker(slots=9), NOW, TTL_MS)
        await put(queue, "z0", "z")  # keeps the pool busy, so that tags stay
        held = task_row("a0", attempt=1, tenant_id="a", checkpoints=[checkpoint(27).to_dict()])
        assert await queue.lease(held, "w1", NOW, TTL_MS) == "created"
        assert await queue.settle(POOL, "a0", 2, 10.0, NOW)
        assert await _finish_tag(redis, "a") == 0.0
        assert await queue.lease(held, "w1", NOW, TTL_MS) == "created"
        assert await queue.enqueue(held, NOW, "") == "returned"  # its attempt is lost: no credit either
        assert await _finish_tag(redis, "a") == 0.0
        taken = {await take(queue), await take(queue)}
        assert taken == {"a0", "z0"}
        assert await _finish_tag(redis, "a") == pytest.approx(1.0)  # what is left, now that it was dispatched
        assert await queue.settle(POOL, "a0", 2, 3.0, NOW)
        assert await _finish_tag(redis, "a") == pytest.approx(3.0)

    async def test_the_true_holder_frees_the_slot_of_the_wrong_one(self, queue: RedisQueue) -> None:
        await queue.register(worker("w2"), NOW, TTL_MS)
        row = await put(queue, "t0")
        await put(queue, "t1")
        assert await take(queue, "w2") == "t0"
        assert await queue.lease(replace(row, attempt=1), "w1", NOW, TTL_MS) == "renewed"
        assert await take(queue, "w2") == "t1"


class TestCancel:
    async def test_a_waiting_task_just_leaves(self, queue: RedisQueue, redis: Redis) -> None:
        row = await put(queue, "t0")
        assert await queue.stop(row, NOW) == "gone"
        assert await queue.stop(row, NOW) == "unknown"
        assert await is_forgotten(redis)

    async def test_a_running_one_keeps_its_slot_until_the_worker_lets_go(self, queue: RedisQueue, redis: Redis) -> None:
        await queue.register(worker(), NOW, TTL_MS)
        row = await put(queue, "t0")
        await put(queue, "t1")
        await take(queue)
        held = replace(row, attempt=1)
        await queue.lease(held, "w1", NOW, TTL_MS)
        assert await queue.stop(held, NOW) == "stopping"
        commands = [json.loads(fields["data"]) for _, fields in await redis.xrange(keys.inbox(POOL, "w1"))]
        assert commands[-1] == {"command": "stop", "task_id": "t0", "attempt": 1}
        later = NOW + TTL_MS - 1
        assert await queue.heartbeat(POOL, "w1", SlotsOfWorker(("t0",)), later, TTL_MS) == []
        assert await queue.expired_leases(POOL, NOW + TTL_MS, 10) == []  # it still runs: its slot stays taken
        assert await take(queue, now_ms=later) is None
        assert await queue.heartbeat(POOL, "w1", SlotsOfWorker(), later, TTL_MS) == ["t0"]
        await queue.settle(POOL, "t0", 2, 3.0, later)
        assert await take(queue, now_ms=later) == "t1"

    @pytest.mark.parametrize(
        ("is_claimed", "held_ms", "said_s", "paid_s"),
        [(True, 1_900, 0.0, 7.6), (True, 1_900, 8.0, 8.0), (True, 60_000, 0.0, 10.0), (False, 1_900, 0.0, 0.0)],
    )
    async def test_a_stopped_task_pays_for_its_slot(
        self, queue: RedisQueue, is_claimed: bool, held_ms: int, said_s: float, paid_s: float
    ) -> None:
        await queue.register(Worker("w1", "gpu-worker", POOL, "cpu", 4, 1, ()), NOW, TTL_MS)
        row = await put(queue, "t0")
        await take(queue)
        if is_claimed:
            row = replace(row, attempt=1, claimed_at_ms=NOW)
            assert await queue.lease(row, "w1", NOW, TTL_MS) == "renewed"
        assert await queue.stop(row, NOW + held_ms) == "stopping"
        await queue.heartbeat(POOL, "w1", SlotsOfWorker(), NOW + held_ms, TTL_MS)
        assert await queue.settle(POOL, "t0", 2, said_s, NOW + held_ms)
        assert (await queue.view(POOL, NOW + held_ms)).classes[1].served_s == paid_s


async def test_an_epoch_ends_with_a_wipe(queue: RedisQueue, redis: Redis) -> None:
    before = await queue.epoch(POOL)
    assert await queue.epoch(POOL) == before
    await redis.flushall()
    assert await queue.epoch(POOL) != before


async def test_one_replica_leads(queue: RedisQueue) -> None:
    assert await queue.lead("relay", "one", 60_000)
    assert await queue.lead("relay", "one", 60_000)
    assert not await queue.lead("relay", "two", 60_000)


async def _finish_tag(redis: Redis, tenant: str) -> float:
    return float(await redis.hget(keys.flows(POOL, "standard"), f"F:{tenant}") or 0)
