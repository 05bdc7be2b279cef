"""The scripts against a plain model of two-level start-time fair queueing, step by step and number by number."""

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from vitascope_scheduler.adapters.redis_queue import CLASS_WEIGHTS, RedisQueue
from vitascope_scheduler.tasks import TaskRow
from vitascope_scheduler.testing import task_row
from vitascope_scheduler.worker import Dispatched, Nothing, Preempted, Preemption, Worker

POOL, TTL_MS, NOW = "default", 10**9, 1_000_000
TENANTS = "abcd"
SLOTS = {"w1": 1, "w2": 2, "w3": 4}
RULE = Preemption()


@dataclass
class Node:
    """A flow or a class: its finish tag, since which virtual time it stands in line, and what it got and was due."""

    weight: float
    finish: float = 0.0
    floor: float | None = None
    counted_from: float = 0.0
    entitled: float = 0.0

    def start(self, v: float) -> float:
        return max(v if self.floor is None else self.floor, self.finish)


@dataclass
class Level:
    v: float = 0.0
    nodes: dict[str, Node] = field(default_factory=dict)

    def start(self, name: str) -> float:
        return self.nodes[name].start(self.v)

    def due(self, name: str) -> float:
        node = self.nodes[name]
        return node.entitled + (0.0 if node.floor is None else node.weight * (self.v - node.counted_from))

    def seat(self, name: str, is_eligible: bool) -> None:
        node = self.nodes[name]
        if not is_eligible:
            node.entitled, node.floor = self.due(name), None
        elif node.floor is None:
            node.floor = node.counted_from = self.v

    def set_weight(self, name: str, weight: float) -> None:
        node = self.nodes[name]
        if weight != node.weight:
            node.entitled, node.counted_from, node.weight = self.due(name), self.v, weight

    def charge(self, name: str, cost: float) -> tuple[float, float]:
        """Return the start tag and the weight that were charged."""
        node, start = self.nodes[name], self.start(name)
        self.v = max(self.v, start)
        node.finish = start + cost / node.weight
        return start, node.weight

    def rest(self) -> None:
        """Nothing waits and nothing is in flight: all tags are equal again."""
        self.v = 0.0
        for node in self.nodes.values():
            node.finish = 0.0


@dataclass(eq=False)
class ModelTask:
    name: str
    tenant: str
    class_name: str
    cost: float
    arrival: int
    state: str = "waiting"
    since_ms: int = 0
    worker: str = ""
    attempt: int = 0
    charged: float = 0.0
    start: float = 0.0
    weights: tuple[float, float] = (1.0, 1.0)
    is_prepaid: bool = False  # charged in an epoch that is over
    makes_way_for: "ModelTask | None" = None

    @property
    def left(self) -> float:
        """What a yield is expected to leave: everybody is half done."""
        return self.cost / 2


class Model:
    """What DESIGN says, written down without Redis."""

    def __init__(self, weights: dict[str, float], caps: dict[str, int]) -> None:
        self.caps = caps
        self.weights = weights
        self.top = Level(nodes={name: Node(weight) for name, weight in CLASS_WEIGHTS.items()})
        self.levels = {name: Level(nodes={t: Node(w) for t, w in weights.items()}) for name in CLASS_WEIGHTS}
        self.waiting: list[ModelTask] = []
        self.flying: list[ModelTask] = []
        self.drained: set[str] = set()
        self.served: Counter[tuple[str, str]] = Counter()
        self.now_ms = NOW

    def line(self, class_name: str, tenant: str) -> list[ModelTask]:
        found = [task for task in self.waiting if (task.class_name, task.tenant) == (class_name, tenant)]
        return sorted(found, key=lambda task: task.arrival)

    def is_below_cap(self, tenant: str) -> bool:
        cap = self.caps[tenant]
        return cap == 0 or sum(task.tenant == tenant for task in self.flying) < cap

    def num_free(self, worker: str) -> int:
        return 0 if worker in self.drained else SLOTS[worker] - sum(task.worker == worker for task in self.flying)

    def refresh(self) -> None:
        for name, level in self.levels.items():
            eligible = {t for t in TENANTS if self.is_below_cap(t) and self.line(name, t)}
            for tenant in level.nodes:
                level.seat(tenant, tenant in eligible)
            self.top.seat(name, bool(eligible))
            if not any(task.class_name == name for task in self.waiting + self.flying):
                level.rest()
        if not self.waiting and not self.flying:
            self.top.rest()

    def put(self, task: ModelTask) -> None:
        task.state, task.since_ms, task.worker = "waiting", self.now_ms, ""
        self.waiting.append(task)
        self.refresh()

    def heads(self, class_name: str) -> list[tuple[float, int, str]]:
        level = self.levels[class_name]
        seated = [tenant for tenant, node in level.nodes.items() if node.floor is not None]
        return sorted((level.start(t), self.line(class_name, t)[0].arrival, t) for t in seated)

    def pick(self) -> ModelTask | None:
        classes = [(self.top.start(name), self.heads(name)[0][1], name) for name in CLASS_WEIGHTS if self.heads(name)]
        if not classes:
            return None
        class_name = min(classes)[2]
        return self.line(class_name, self.heads(class_name)[0][2])[0]

    def dispatch(self, worker: str) -> "ModelTask | Nothing":
        if self.num_free(worker) <= 0:
            return Nothing.NO_SLOT
        task = self.pick()
        if task is None:
            return Nothing.NO_TASK
        self.hand_over(task, worker)
        return task

    def hand_over(self, task: ModelTask, worker: str) -> None:
        task.start, weight = self.levels[task.class_name].charge(task.tenant, task.cost)
        _, class_weight = self.top.charge(task.class_name, task.cost)
        task.weights, task.charged, task.is_prepaid = (weight, class_weight), task.cost, False
        task.state, task.since_ms, task.worker = "handed_over", self.now_ms, worker
        self.served[task.class_name, task.tenant] += round(1000 * task.cost)
        self._unmark_victim_of(task)
        self.waiting.remove(task)
        self.flying.append(task)
        self.refresh()

    def _unmark_victim_of(self, task: ModelTask) -> None:
        for other in self.flying:
            if other.makes_way_for is task:
                other.makes_way_for, other.state = None, "claimed"

    def _land(self, task: ModelTask, back: float) -> None:
        if not task.is_prepaid:
            self.levels[task.class_name].nodes[task.tenant].finish -= back / task.weights[0]
            self.top.nodes[task.class_name].finish -= back / task.weights[1]
            self.served[task.class_name, task.tenant] -= round(1000 * back)
        self.flying.remove(task)

    def _pass_on(self, task: ModelTask, worker: str) -> ModelTask | None:
        """The slot of a task that was asked to make way."""
        heir, task.makes_way_for = task.makes_way_for, None
        if heir is None or self.num_free(worker) <= 0:
            return None
        heir = heir if self.is_below_cap(heir.tenant) else self.pick()
        if heir is not None:
            self.hand_over(heir, worker)
        return heir

    def settle(self, task: ModelTask, actual: float) -> ModelTask | None:
        self._land(task, task.charged - actual)
        self.refresh()
        return self._pass_on(task, task.worker)

    def adopt(self, task: ModelTask, worker: str) -> None:
        """A heartbeat tells of a task that the queue has forgotten."""
        task.is_prepaid, task.state, task.worker, task.since_ms = True, "claimed", worker, self.now_ms
        self.flying.append(task)
        self.refresh()

    def put_back(self, task: ModelTask, left: float) -> ModelTask | None:
        """What survives is paid, what is left is charged by the next dispatch."""
        worker = task.worker
        self._land(task, min(task.charged, left))
        task.attempt += 1
        task.cost = left
        self.put(task)
        return self._pass_on(task, worker)

    def return_unclaimed(self, task: ModelTask) -> None:
        self._land(task, task.charged)
        self.put(task)

    def cancel(self, task: ModelTask) -> None:
        self._unmark_victim_of(task)
        self.waiting.remove(task)
        self.refresh()

    def set_flow(self, tenant: str, weight: float, cap: int) -> None:
        self.weights[tenant], self.caps[tenant] = weight, cap
        for level in self.levels.values():
            level.set_weight(tenant, weight)
        self.refresh()

    def victim(self) -> ModelTask | None:
        able = [
            task
            for task in self.flying
            if (task.class_name, task.state) == ("batch", "claimed")
            and self.now_ms - task.since_ms >= RULE.min_run_ms
            and self.num_free(task.worker) == 0
            and task.worker not in self.drained
        ]
        return max(able, key=lambda task: (0.0 if task.is_prepaid else task.start, task.arrival), default=None)

    def patient_start_after(self, victim: ModelTask) -> float:
        batch = self.top.nodes["batch"]
        back = 0.0 if victim.is_prepaid else min(victim.charged, victim.left) / victim.weights[1]
        return max(self.top.v if batch.floor is None else batch.floor, batch.finish - back)

    def check_preemption(self, found: Preempted | None) -> None:
        """Agree with what the queue has decided, or raise; ties may be decided against a yield."""
        head, victim = self.pick(), self.victim()
        is_marked = any(task.makes_way_for is not None for task in self.flying)
        is_idle = any(self.num_free(worker) > 0 for worker in SLOTS)
        is_due = (
            head is not None
            and head.class_name == "realtime"
            and self.now_ms - head.since_ms >= RULE.wait_ms
            and victim is not None
            and not is_idle
            and not is_marked
        )
        if found is None:
            assert not (is_due and victim and self.top.start("realtime") < self.patient_start_after(victim))
            return
        heir = next(task for task in self.waiting if task.name == found.beneficiary_id)
        assert victim is not None
        assert (victim.name, victim.worker) == (found.task_id, found.worker_id)
        assert not is_idle
        assert heir.class_name == "realtime"
        assert self.now_ms - heir.since_ms >= RULE.wait_ms
        assert all(task.makes_way_for is not heir for task in self.flying)
        if not is_marked:
            assert heir is head
            assert self.top.start("realtime") <= self.patient_start_after(victim)
        victim.makes_way_for, victim.state = heir, "yielding"


class Pair:
    """The model and the queue, side by side: every call goes to both and must be answered alike."""

    def __init__(self, queue: RedisQueue, model: Model) -> None:
        self.queue, self.model = queue, model
        self.arrivals = itertools.count()

    def new(self, tenant: str, class_name: str, cost: float) -> ModelTask:
        number = next(self.arrivals)
        return ModelTask(f"t{number}", tenant, class_name, cost, number)

    def row(self, task: ModelTask, attempt: int) -> TaskRow:
        row = task_row(task.name, tenant_id=task.tenant, class_name=task.class_name, cost_s=task.cost, attempt=attempt)
        terms = {"weight": self.model.weights[task.tenant], "cap": self.model.caps[task.tenant]}
        return replace(row, **terms, created_at_ms=task.arrival, claimed_at_ms=task.since_ms, done=1, total=2)

    def of_state(self, *states: str) -> list[ModelTask]:
        return [task for task in self.model.flying if task.state in states]

    async def put(self, tenant: str, class_name: str, costs: list[float]) -> None:
        for cost in costs:
            task = self.new(tenant, class_name, cost)
            self.model.put(task)
            assert await self.queue.enqueue(self.row(task, 0), self.model.now_ms, "") == "queued"

    async def dispatch(self, worker: str) -> ModelTask | None:
        found = await self.queue.dispatch(POOL, worker, self.model.now_ms, TTL_MS)
        expected = self.model.dispatch(worker)
        if isinstance(expected, Nothing):
            assert found is expected
            return None
        assert isinstance(found, Dispatched)
        assert (found.task_id, found.worker_id) == (expected.name, worker)
        return expected

    async def claim(self, task: ModelTask) -> None:
        task.state, task.since_ms = "claimed", self.model.now_ms
        row = self.row(task, task.attempt + 1)
        is_drained = task.worker in self.model.drained
        answer = await self.queue.lease(row, task.worker, self.model.now_ms, TTL_MS)
        assert answer == ("yield" if is_drained else "renewed")

    async def settle(self, task: ModelTask, actual: float) -> None:
        found = await self.queue.settle(POOL, task.name, task.attempt + 1, actual, self.model.now_ms)
        self._same(found, self.model.settle(task, actual), True)

    async def put_back(self, task: ModelTask, share: float) -> None:
        """It comes back after an attempt; so much of it is left, more than before when a checkpoint cannot be read."""
        left = max(1.0, float(round(task.cost * share)))
        row = replace(self.row(task, task.attempt + 1), cost_s=left)
        found = await self.queue.enqueue(row, self.model.now_ms, "")
        self._same(found, self.model.put_back(task, left), "returned")

    async def drain(self, workers: frozenset[str]) -> None:
        fresh = workers - self.model.drained
        self.model.drained = set(workers)
        expected = {task.name: task for task in self.of_state("handed_over") if task.worker in fresh}
        let_go = await self.queue.set_drains(POOL, workers, self.model.now_ms)
        assert sorted(let_go) == sorted(expected)
        for name in let_go:
            row = self.row(expected[name], expected[name].attempt)
            assert await self.queue.enqueue(row, self.model.now_ms, "") == "unclaimed"
            self.model.return_unclaimed(expected[name])

    async def preempt(self) -> None:
        while True:
            found = await self.queue.preempt(POOL, RULE, self.model.now_ms, TTL_MS)
            self.model.check_preemption(found)
            if found is None:
                return

    def _same(self, found: object, expected: ModelTask | None, otherwise: object) -> None:
        if expected is None:
            assert found == otherwise
        else:
            assert isinstance(found, Dispatched)
            assert (found.task_id, found.worker_id) == (expected.name, expected.worker)

    async def check(self) -> None:
        """Compare every number that operators see."""
        model, view = self.model, await self.queue.view(POOL, self.model.now_ms)
        assert (view.num_waiting, view.num_in_flight) == (len(model.waiting), len(model.flying))
        assert view.backlog_s == sum(task.cost for task in model.waiting) == await self.queue.backlog_s(POOL)
        assert view.virtual_time == model.top.v
        assert {one.task_id: (one.state, one.worker_id) for one in view.leases} == {
            task.name: (self._shown_state(task), task.worker) for task in model.flying
        }
        assert {one.worker_id: one.num_free_slots for one in view.workers} == {
            worker: max(0, model.num_free(worker)) for worker in SLOTS
        }
        for one in view.classes:
            level, name = model.levels[one.class_name], one.class_name
            waiting = [task for task in model.waiting if task.class_name == name]
            flying = [task for task in model.flying if task.class_name == name]
            assert (one.num_waiting, one.num_in_flight) == (len(waiting), len(flying))
            assert (one.virtual_time, one.start_tag) == (level.v, model.top.start(name))
            assert one.backlog_s == sum(task.cost for task in waiting)
            assert one.served_s == sum(flow.served_s for flow in one.flows)
            assert one.entitled_s == pytest.approx(model.top.due(name))
            flows = {flow.tenant_id: flow for flow in one.flows}
            assert {task.tenant for task in waiting + flying} <= flows.keys()
            for tenant, flow in flows.items():
                line = model.line(name, tenant)
                assert flow.num_waiting == len(line)
                assert flow.num_in_flight == sum(task.tenant == tenant for task in flying)
                assert flow.backlog_s == sum(task.cost for task in line)
                assert round(1000 * flow.served_s) == model.served[name, tenant]
                if line:
                    assert (flow.weight, flow.cap) == (model.weights[tenant], model.caps[tenant])
                    assert flow.start_tag == level.start(tenant)
                    assert flow.entitled_s == pytest.approx(level.due(tenant))

    def _shown_state(self, task: ModelTask) -> str:
        return "yielding" if task.state == "claimed" and task.worker in self.model.drained else task.state


tenants = st.sampled_from(TENANTS)
classes = st.sampled_from(list(CLASS_WEIGHTS))
workers = st.sampled_from(sorted(SLOTS))
seconds = st.integers(1, 64).map(float)  # with weights that are powers of two, tags are exact and ties are ties
powers = st.sampled_from([0.5, 1.0, 2.0, 4.0])
caps = st.sampled_from([0, 1, 2])
index = st.integers(0, 7)
step = st.one_of(
    st.tuples(st.just("put"), tenants, classes, st.lists(seconds, min_size=1, max_size=6)),
    st.tuples(st.just("serve"), st.integers(1, 8), seconds),
    st.tuples(st.just("fill")),
    st.tuples(st.just("dispatch"), workers),
    st.tuples(st.just("claim"), st.integers(1, 7)),
    st.tuples(st.just("settle"), index, seconds),
    st.tuples(st.just("cancel"), index),
    st.tuples(st.just("adopt"), tenants, classes, seconds, workers),
    st.tuples(st.just("put back"), index, st.floats(0, 1.5)),
    st.tuples(st.just("flow"), tenants, powers, caps),
    st.tuples(st.just("wait"), st.sampled_from([500, 1_000, 30_000])),
    st.tuples(st.just("preempt")),
    st.tuples(st.just("drain"), st.frozensets(workers, max_size=2)),
)
urgent_step = st.one_of(
    st.tuples(st.just("put"), tenants, st.just("realtime"), st.lists(seconds, min_size=1, max_size=3)),
    st.tuples(st.just("put"), tenants, classes, st.lists(seconds, min_size=1, max_size=2)),
    st.just(("wait", 1_000)),
    st.just(("preempt",)),
    st.tuples(st.just("obey"), st.floats(0, 1.5)),
    st.tuples(st.just("put back"), index, st.floats(0, 1.5)),
    st.tuples(st.just("settle"), index, seconds),
    st.tuples(st.just("cancel"), index),
    st.tuples(st.just("dispatch"), workers),
    st.tuples(st.just("flow"), tenants, powers, caps),
    st.tuples(st.just("drain"), st.frozensets(workers, max_size=1)),
)
in_redis = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


async def take_step(pair: Pair, what: str, details: list[Any]) -> None:
    """Do one thing to both."""
    model = pair.model
    if what == "put":
        await pair.put(*details)
    elif what == "adopt":
        *terms, worker = details
        task = pair.new(*terms)
        model.adopt(task, worker)
        assert await pair.queue.lease(pair.row(task, 1), worker, model.now_ms, TTL_MS) == "created"
    elif what == "put back" and (able := pair.of_state("claimed", "yielding")):
        await pair.put_back(able[details[0] % len(able)], details[1])
    elif what == "obey":
        for task in pair.of_state("yielding"):
            if task in model.flying:
                await pair.put_back(task, details[0])
    elif what == "dispatch":
        await pair.dispatch(details[0])
    elif what == "fill":
        for worker in SLOTS:
            while await pair.dispatch(worker):
                pass
        assert not (any(model.num_free(worker) > 0 for worker in SLOTS) and model.pick())  # work conservation
    elif what == "serve":
        for _ in range(details[0]):
            if task := await pair.dispatch("w3"):
                await pair.settle(task, details[1])
    elif what == "claim":
        for task in pair.of_state("handed_over")[: details[0]]:
            await pair.claim(task)
    elif what == "settle" and model.flying:
        await pair.settle(model.flying[details[0] % len(model.flying)], details[1])
    elif what == "cancel" and model.waiting:
        task = model.waiting[details[0] % len(model.waiting)]
        assert await pair.queue.stop(task_row(task.name), model.now_ms) == "gone"
        model.cancel(task)
    elif what == "flow":
        await pair.queue.set_flow(POOL, *details, model.now_ms)
        model.set_flow(*details)
    elif what == "wait":
        model.now_ms += details[0]
    elif what == "preempt":
        await pair.preempt()
    elif what == "drain":
        await pair.drain(details[0])


async def new_pair(redis: Redis, weights: tuple[float, ...], caps: tuple[int, ...]) -> Pair:
    await redis.flushall()
    queue = RedisQueue(redis)
    for name, num_slots in SLOTS.items():
        await queue.register(Worker(name, "gpu-worker", POOL, "cpu", 1, num_slots, ()), NOW, TTL_MS)
    return Pair(queue, Model(dict(zip(TENANTS, weights, strict=True)), dict(zip(TENANTS, caps, strict=True))))


@in_redis
@given(
    steps=st.lists(step, min_size=10, max_size=30),
    weights=st.tuples(*[powers] * 4),
    caps=st.tuples(*[caps] * 4),
)
async def test_redis_agrees_with_the_model(
    redis: Redis, steps: list[tuple[Any, ...]], weights: tuple[float, ...], caps: tuple[int, ...]
) -> None:
    pair = await new_pair(redis, weights, caps)
    for what, *details in steps:
        await take_step(pair, what, details)
        await pair.check()


@in_redis
@given(
    costs=st.lists(st.sampled_from([100.0, 200.0, 400.0, 1000.0]), min_size=7, max_size=7),
    steps=st.lists(urgent_step, min_size=8, max_size=20),
    weights=st.tuples(*[powers] * 4),
)
async def test_redis_agrees_with_the_model_while_batch_makes_way(
    redis: Redis, costs: list[float], steps: list[tuple[Any, ...]], weights: tuple[float, ...]
) -> None:
    """All slots are taken by batch tasks that have run long enough; then urgent ones come."""
    pair = await new_pair(redis, weights, (0, 0, 0, 0))
    for tenant, cost in zip(itertools.cycle(TENANTS), costs, strict=False):
        await pair.put(tenant, "batch", [cost])
    opening = [
        ("fill",),
        ("claim", 7),
        ("wait", 30_000),
        ("put", "a", "realtime", [1.0]),
        ("wait", 1_000),
        ("preempt",),
    ]
    for what, *details in [*opening, *steps]:
        await take_step(pair, what, details)
        await pair.check()
