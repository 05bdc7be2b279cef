"""Who makes way for whom, and what becomes of the slot, on a real Redis."""

import json
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from vitascope_common import keys
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.tasks import TaskRow
from vitascope_scheduler.testing import checkpoint, task_row
from vitascope_scheduler.worker import Dispatched, Preempted, Preemption, SlotsOfWorker, Worker

POOL, TTL_MS, NOW = "default", 10_000_000, 1_000_000
RULE = Preemption()
LATER = NOW + RULE.min_run_ms


class Pool:
    """A pool whose workers have one slot each."""

    def __init__(self, queue: RedisQueue, redis: Redis) -> None:
        self.queue = queue
        self.redis = redis

    async def add_worker(self, worker_id: str, slots: int = 1) -> None:
        await self.queue.register(Worker(worker_id, "gpu-worker", POOL, "cpu", 1, slots, ()), NOW, TTL_MS)

    async def put(self, task_id: str, class_name: str = "realtime", now_ms: int = NOW, **changes: object) -> TaskRow:
        row = task_row(task_id, **{"class_name": class_name, "tenant_id": f"t-{class_name}", **changes})
        assert await self.queue.enqueue(row, now_ms, "") == "queued"
        return row

    async def run(self, task_id: str, worker_id: str = "w1", class_name: str = "batch", **changes: object) -> TaskRow:
        """Bring a task to a worker at NOW; it has done half of its steps."""
        await self.put(task_id, class_name, **{"cost_s": 100.0, "done": 15, "total": 30, **changes})
        found = await self.queue.dispatch(POOL, worker_id, NOW, TTL_MS)
        assert isinstance(found, Dispatched)
        assert found.task_id == task_id
        row = {"cost_s": 100.0, "done": 15, "total": 30, "attempt": 1, "claimed_at_ms": NOW, **changes}
        running = task_row(task_id, **{"class_name": class_name, "tenant_id": f"t-{class_name}", **row})
        assert await self.renew(running, worker_id, NOW) == "renewed"
        return running

    async def renew(self, row: TaskRow, worker_id: str = "w1", now_ms: int = LATER) -> str:
        return await self.queue.lease(row, worker_id, now_ms, TTL_MS)

    async def preempt(self, now_ms: int = LATER) -> Preempted | None:
        return await self.queue.preempt(POOL, RULE, now_ms, TTL_MS)

    async def come_back(self, row: TaskRow, done: int = 15, now_ms: int = LATER) -> Dispatched | str:
        """The worker has reported that it yielded; the checkpoint holds so many steps of 30."""
        left = replace(row, checkpoints=[checkpoint(done).to_dict()])
        return await self.queue.enqueue(left, now_ms, "")

    async def commands(self, worker_id: str = "w1") -> list[dict[str, object]]:
        found = [json.loads(fields["data"]) for _, fields in await self.redis.xrange(keys.inbox(POOL, worker_id))]
        return [one for one in found if one["command"] != "assign"]

    async def states(self) -> dict[str, str]:
        return {lease.task_id: lease.state for lease in (await self.queue.view(POOL, LATER)).leases}


@pytest.fixture
async def pool(queue: RedisQueue, redis: Redis) -> Pool:
    pool = Pool(queue, redis)
    await pool.add_worker("w1")
    return pool


class TestWho:
    async def test_a_batch_task_makes_way_for_a_realtime_one(self, pool: Pool) -> None:
        running = await pool.run("b0")
        await pool.put("r0")
        assert await pool.preempt() == Preempted("b0", "w1", "r0")
        assert await pool.commands() == [{"command": "yield", "task_id": "b0", "attempt": 1}]
        assert await pool.renew(running) == "yield"  # heartbeats repeat it
        assert await pool.states() == {"b0": "yielding"}
        assert await pool.preempt() is None  # one open yield per waiting task
        assert await pool.commands() == [{"command": "yield", "task_id": "b0", "attempt": 1}]

    async def test_not_before_it_has_waited(self, pool: Pool) -> None:
        await pool.run("b0")
        await pool.put("r0", now_ms=LATER)
        assert await pool.preempt(LATER + RULE.wait_ms - 1) is None
        assert await pool.preempt(LATER + RULE.wait_ms) is not None

    async def test_what_comes_back_waits_anew_though_it_keeps_its_arrival(self, pool: Pool) -> None:
        await pool.add_worker("w2")
        await pool.run("b0")
        first = await pool.run("r0", "w2", "realtime")
        await pool.queue.set_drains(POOL, ["w2"], LATER)
        assert await pool.queue.enqueue(first, LATER, "") == "returned"
        assert await pool.preempt(LATER + RULE.wait_ms - 1) is None
        assert await pool.preempt(LATER + RULE.wait_ms) == Preempted("b0", "w1", "r0")

    async def test_not_while_a_slot_is_idle(self, pool: Pool) -> None:
        await pool.run("b0")
        await pool.put("r0")
        await pool.add_worker("w2")
        assert await pool.preempt() is None

    async def test_a_drained_or_silent_worker_is_no_idle_slot(self, pool: Pool) -> None:
        await pool.run("b0")
        await pool.put("r0")
        await pool.queue.register(Worker("silent", "gpu-worker", POOL, "cpu", 1, 1, ()), NOW, 10)
        await pool.add_worker("w2")
        await pool.queue.set_drains(POOL, ["w2"], LATER)
        assert await pool.preempt() == Preempted("b0", "w1", "r0")

    async def test_not_before_the_victim_has_run(self, pool: Pool) -> None:
        await pool.run("b0")
        await pool.put("r0")
        assert await pool.preempt(LATER - 1) is None
        assert await pool.preempt(LATER) is not None

    @pytest.mark.parametrize("num_yields", [2, 3])
    async def test_nobody_is_asked_a_fourth_time_in_an_hour_of_running(self, pool: Pool, num_yields: int) -> None:
        yielded = [100.0 * i for i in range(num_yields)]
        await pool.run("b0", ran_s=500.0, yielded_at_s=yielded)
        await pool.put("r0")
        assert (await pool.preempt() is None) == (num_yields == RULE.max_yields)

    async def test_yields_of_hours_ago_are_forgotten(self, pool: Pool) -> None:
        await pool.run("b0", ran_s=10_000.0, yielded_at_s=[1.0, 2.0, 3.0])
        await pool.put("r0")
        assert await pool.preempt() is not None

    @pytest.mark.parametrize("class_name", ["standard", "realtime"])
    async def test_only_batch_makes_way(self, pool: Pool, class_name: str) -> None:
        await pool.run("b0", class_name=class_name)
        await pool.put("r0")
        assert await pool.preempt() is None

    async def test_only_what_can_yield_makes_way(self, pool: Pool) -> None:
        await pool.run("b0", yieldable=False)
        await pool.put("r0")
        assert await pool.preempt() is None

    @pytest.mark.parametrize("class_name", ["standard", "batch"])
    async def test_only_for_realtime(self, pool: Pool, class_name: str) -> None:
        await pool.run("b0")
        await pool.put("r0", class_name)
        assert await pool.preempt() is None

    async def test_not_when_somebody_else_is_next(self, pool: Pool) -> None:
        await pool.add_worker("w2")
        await pool.run("b0")
        await pool.run("r0", "w2", "realtime", cost_s=80.0)  # realtime is ahead of its share
        await pool.put("r1")
        await pool.put("s0", "standard")
        assert await pool.preempt() is None
        await pool.queue.settle(POOL, "s0", 1, 0.0, NOW)
        assert await pool.preempt() == Preempted("b0", "w1", "r1")

    async def test_not_when_the_victim_would_be_next_itself(self, pool: Pool) -> None:
        """It has done nothing yet: back in line it has the tag of the other, and came first."""
        await pool.run("b0", done=0)
        await pool.put("r0")
        assert await pool.preempt() is None

    async def test_the_victim_is_the_one_with_the_largest_start_tag(self, pool: Pool) -> None:
        for worker_id in ("w2", "w3"):
            await pool.add_worker(worker_id)
        await pool.run("b0", "w1", tenant_id="a")
        await pool.run("b2", "w3", tenant_id="b")
        await pool.run("b1", "w2", tenant_id="a")  # starts where b0 ends
        await pool.put("r0")
        assert await pool.preempt() == Preempted("b1", "w2", "r0")

    async def test_every_waiting_task_gets_a_victim_of_its_own(self, pool: Pool) -> None:
        await pool.add_worker("w2")
        await pool.run("b0", "w1", done=27)
        await pool.run("b1", "w2", done=27)
        for name in ("r0", "r1", "r2"):
            await pool.put(name)
        found = [await pool.preempt() for _ in range(3)]
        assert found == [Preempted("b1", "w2", "r0"), Preempted("b0", "w1", "r1"), None]

    async def test_what_all_victims_get_back_counts_together(self, pool: Pool) -> None:
        """Two halves of 100 s are more than the share that batch is behind realtime after the first."""
        await pool.add_worker("w2")
        await pool.run("b0", "w1")
        await pool.run("b1", "w2")
        for name in ("r0", "r1"):
            await pool.put(name)
        assert [await pool.preempt() for _ in range(2)] == [Preempted("b1", "w2", "r0"), None]

    async def test_a_cap_counts_those_that_will_be_running(self, pool: Pool) -> None:
        await pool.add_worker("w2")
        await pool.run("b0", "w1")
        await pool.run("b1", "w2")
        await pool.put("r0", cap=1)
        await pool.put("r1", cap=1)
        assert await pool.preempt() is not None
        assert await pool.preempt() is None

    async def test_a_task_whose_tenant_is_capped_has_no_victim(self, pool: Pool) -> None:
        await pool.run("b0", tenant_id="a", cap=1)
        await pool.put("r0", tenant_id="a", cap=1)
        assert await pool.preempt() is None

    async def test_a_victim_that_redis_has_lost_holds_up_nobody(self, pool: Pool) -> None:
        await pool.add_worker("w2")
        await pool.run("b0", "w1", tenant_id="a", done=27)
        await pool.run("b1", "w2", tenant_id="a", done=27)
        await pool.put("r0")
        assert await pool.preempt() == Preempted("b1", "w2", "r0")
        await pool.redis.delete(keys.queued_task(POOL, "b1"))
        assert await pool.preempt() == Preempted("b0", "w1", "r0")


class TestSlot:
    async def test_the_beneficiary_gets_it_in_the_same_step(self, pool: Pool) -> None:
        running = await pool.run("b0")
        await pool.put("r0")
        await pool.preempt()
        found = await pool.come_back(running)
        assert isinstance(found, Dispatched)
        assert (found.task_id, found.worker_id) == ("r0", "w1")
        assert await pool.states() == {"r0": "handed_over"}
        assert await pool.queue.depth(POOL) == (1, 1)
        assert await pool.come_back(running) == "known"

    async def test_all_attempts_together_pay_one_undisturbed_run(self, pool: Pool) -> None:
        running = await pool.run("b0")
        await pool.put("r0")
        await pool.preempt()
        await pool.come_back(running, done=18)
        batch = (await pool.queue.view(POOL, LATER)).classes[2]
        assert batch.served_s == pytest.approx(60.0)  # 18 of 30 steps of 100 s survive
        await pool.queue.settle(POOL, "r0", 1, 10.0, LATER)
        again = await pool.queue.dispatch(POOL, "w1", LATER, TTL_MS)
        assert isinstance(again, Dispatched)
        await pool.queue.settle(POOL, "b0", 2, 40.0, LATER)
        assert (await pool.queue.view(POOL, LATER)).classes[2].served_s == pytest.approx(100.0)

    async def test_a_victim_that_finishes_first_leaves_its_slot_too(self, pool: Pool) -> None:
        await pool.run("b0")
        await pool.put("r0")
        await pool.preempt()
        await pool.put("s0", "standard")
        found = await pool.queue.settle(POOL, "b0", 2, 100.0, LATER)
        assert isinstance(found, Dispatched)
        assert found.task_id == "r0"

    async def test_without_the_beneficiary_the_victim_runs_on(self, pool: Pool) -> None:
        running = await pool.run("b0")
        waiting = await pool.put("r0")
        await pool.preempt()
        assert await pool.queue.stop(waiting, LATER) == "gone"
        assert [one["command"] for one in await pool.commands()] == ["yield", "run"]
        assert (await pool.commands())[-1] == {"command": "run", "task_id": "b0", "attempt": 1}
        assert await pool.renew(running) == "renewed"
        assert await pool.states() == {"b0": "claimed"}

    async def test_without_the_beneficiary_a_drained_victim_yields_all_the_same(self, pool: Pool) -> None:
        running = await pool.run("b0")
        waiting = await pool.put("r0")
        await pool.preempt()
        await pool.queue.set_drains(POOL, ["w1"], LATER)
        assert await pool.queue.stop(waiting, LATER) == "gone"
        assert [one["command"] for one in await pool.commands()] == ["yield"]
        assert await pool.renew(running) == "yield"

    async def test_a_victim_that_made_way_is_not_told_to_run(self, pool: Pool) -> None:
        running = await pool.run("b0")
        await pool.put("r0")
        await pool.preempt()
        assert isinstance(await pool.come_back(running), Dispatched)
        assert [one["command"] for one in await pool.commands()] == ["yield"]

    async def test_a_beneficiary_whose_victim_is_lost_can_leave(self, pool: Pool) -> None:
        await pool.run("b0")
        waiting = await pool.put("r0")
        await pool.preempt()
        await pool.redis.delete(keys.queued_task(POOL, "b0"))
        assert await pool.queue.stop(waiting, LATER) == "gone"
        assert [one["command"] for one in await pool.commands()] == ["yield"]

    async def test_a_yield_that_has_happened_all_the_same_gives_the_slot_to_the_next(self, pool: Pool) -> None:
        running = await pool.run("b0")
        waiting = await pool.put("r0")
        await pool.put("s0", "standard")
        await pool.preempt()
        await pool.queue.stop(waiting, LATER)
        assert await pool.come_back(running) == "returned"
        found = await pool.queue.dispatch(POOL, "w1", LATER, TTL_MS)
        assert isinstance(found, Dispatched)
        assert found.task_id == "s0"

    async def test_a_beneficiary_that_found_another_slot_needs_none(self, pool: Pool) -> None:
        running = await pool.run("b0")
        await pool.put("r0")
        await pool.preempt()
        await pool.add_worker("w2")
        assert isinstance(await pool.queue.dispatch(POOL, "w2", LATER, TTL_MS), Dispatched)
        assert await pool.renew(running) == "renewed"

    async def test_a_beneficiary_that_is_capped_meanwhile_is_passed_over(self, pool: Pool) -> None:
        await pool.add_worker("w2")
        running = await pool.run("b0")
        await pool.run("s0", "w2", "standard", tenant_id="a")
        await pool.put("r0", tenant_id="a")
        await pool.put("s1", "standard", tenant_id="b")
        assert await pool.preempt() is not None
        await pool.queue.set_flow(POOL, "a", 1.0, 1, LATER)
        found = await pool.come_back(running)
        assert isinstance(found, Dispatched)
        assert found.task_id == "s1"

    async def test_a_worker_that_is_drained_meanwhile_gets_nobody(self, pool: Pool) -> None:
        running = await pool.run("b0")
        await pool.put("r0")
        await pool.preempt()
        await pool.queue.set_drains(POOL, ["w1"], LATER)
        assert await pool.come_back(running) == "returned"
        assert await pool.states() == {}

    async def test_the_beneficiary_of_a_lost_victim_gets_another_one(self, pool: Pool) -> None:
        await pool.add_worker("w2")
        await pool.run("b0", "w1", tenant_id="a")
        lost = await pool.run("b1", "w2", tenant_id="a")
        await pool.put("r0")
        assert await pool.preempt() == Preempted("b1", "w2", "r0")
        await pool.queue.set_drains(POOL, ["w2"], LATER)
        assert await pool.come_back(lost, done=18) == "returned"
        assert await pool.preempt() == Preempted("b0", "w1", "r0")

    async def test_a_victim_that_is_cancelled_leaves_its_slot_to_the_beneficiary(self, pool: Pool) -> None:
        running = await pool.run("b0")
        await pool.put("r0")
        await pool.preempt()
        assert await pool.queue.stop(running, LATER) == "stopping"
        assert await pool.renew(running) == "renewed"  # a late one: SQL says stop
        assert await pool.states() == {"b0": "stopping"}
        found = await pool.queue.settle(POOL, "b0", 2, 50.0, LATER)
        assert isinstance(found, Dispatched)
        assert found.task_id == "r0"

    async def test_a_new_attempt_somewhere_else_owes_nothing(self, pool: Pool) -> None:
        await pool.add_worker("w2", slots=2)
        await pool.run("b1", "w2", tenant_id="z", class_name="standard")
        await pool.run("b2", "w2", tenant_id="y", class_name="standard")
        running = await pool.run("b0")
        await pool.put("r0")
        assert await pool.preempt() == Preempted("b0", "w1", "r0")
        assert await pool.renew(replace(running, attempt=2), "w2") == "renewed"
        assert (await pool.states())["b0"] == "claimed"


class TestDrain:
    async def test_a_drained_worker_gets_nothing_and_yields(self, pool: Pool) -> None:
        running = await pool.run("b0")
        fixed = await self._second(pool)
        assert await pool.queue.set_drains(POOL, ["w1", "w2"], LATER) == []
        assert await pool.commands("w1") == [{"command": "yield", "task_id": "b0", "attempt": 1}]
        assert await pool.commands("w2") == []
        assert await pool.renew(running) == "yield"
        assert await pool.renew(fixed, "w2") == "renewed"  # it cannot yield and runs to its end
        assert await pool.states() == {"b0": "yielding", "s0": "claimed"}
        assert await pool.come_back(running) == "returned"
        assert not isinstance(await pool.queue.dispatch(POOL, "w1", LATER, TTL_MS), Dispatched)
        assert await pool.queue.idle_workers(POOL, LATER) == []

    async def _second(self, pool: Pool) -> TaskRow:
        await pool.add_worker("w2")
        return await pool.run("s0", "w2", "standard", yieldable=False)

    async def test_a_handover_that_is_not_claimed_goes_back(self, pool: Pool) -> None:
        row = await pool.put("t0")
        await pool.queue.dispatch(POOL, "w1", NOW, TTL_MS)
        assert await pool.queue.set_drains(POOL, ["w1"], LATER) == ["t0"]
        assert await pool.queue.expired_leases(POOL, LATER, 10) == ["t0"]  # found by the reaper if nobody else
        assert await pool.queue.enqueue(row, LATER, "") == "unclaimed"
        view = await pool.queue.view(POOL, LATER)
        assert (view.num_waiting, view.num_in_flight, view.classes[0].served_s) == (1, 0, 0.0)

    async def test_it_is_said_once(self, pool: Pool) -> None:
        await pool.run("b0")
        for _ in range(3):
            await pool.queue.set_drains(POOL, ["w1"], LATER)
        assert len(await pool.commands()) == 1

    async def test_the_end_of_a_drain_counts_at_once(self, pool: Pool) -> None:
        running = await pool.run("b0")
        await pool.queue.set_drains(POOL, ["w1"], LATER)
        await pool.put("r0")
        await pool.queue.set_drains(POOL, [], LATER)
        assert await pool.renew(running) == "renewed"
        await pool.queue.settle(POOL, "b0", 2, 1.0, LATER)
        assert isinstance(await pool.queue.dispatch(POOL, "w1", LATER, TTL_MS), Dispatched)

    async def test_a_whole_pool_is_drained_with_those_that_come_later(self, pool: Pool) -> None:
        await pool.queue.set_drains(POOL, [""], LATER)
        await pool.add_worker("w2")
        await pool.put("t0")
        for worker_id in ("w1", "w2"):
            assert not isinstance(await pool.queue.dispatch(POOL, worker_id, LATER, TTL_MS), Dispatched)
        view = await pool.queue.view(POOL, LATER)
        assert view.is_draining
        assert [one.is_draining for one in view.workers] == [True, True]

    async def test_a_heartbeat_does_not_end_it(self, pool: Pool) -> None:
        await pool.put("t0")
        await pool.queue.set_drains(POOL, ["w1"], LATER)
        await pool.queue.heartbeat(POOL, "w1", SlotsOfWorker(), LATER, TTL_MS)
        await pool.add_worker("w1")
        assert not isinstance(await pool.queue.dispatch(POOL, "w1", LATER, TTL_MS), Dispatched)
