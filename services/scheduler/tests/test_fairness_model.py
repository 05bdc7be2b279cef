"""The scripts against a plain model of two-level start-time fair queueing, and the bound of the theory."""

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from vitascope_scheduler.adapters.redis_queue import CLASS_WEIGHTS, RedisQueue
from vitascope_scheduler.tasks import TaskRow
from vitascope_scheduler.testing import task_row
from vitascope_scheduler.worker import Dispatched, Worker

POOL, TTL_MS, NOW = "default", 10_000, 1_000_000


@dataclass
class Node:
    """A flow or a class: its finish tag, and since which virtual time it stands in line."""

    weight: float
    finish: float = 0.0
    floor: float | None = None

    @property
    def start(self) -> float:
        return max(self.floor or 0.0, self.finish)


@dataclass
class Level:
    v: float = 0.0
    nodes: dict[str, Node] = field(default_factory=dict)

    def seat(self, name: str, is_eligible: bool) -> None:
        node = self.nodes[name]
        if not is_eligible:
            node.floor = None
        elif node.floor is None:
            node.floor = self.v

    def charge(self, name: str, cost: float) -> float:
        node = self.nodes[name]
        self.v = max(self.v, node.start)
        node.finish = node.start + cost / node.weight
        return node.weight

    def rest(self) -> None:
        """Nothing waits and nothing is in flight: v = max F."""
        self.v = max([self.v, *(node.finish for node in self.nodes.values())])


@dataclass
class ModelTask:
    name: str
    tenant: str
    class_name: str
    cost: float
    arrival: int
    weights: tuple[float, float] = (1.0, 1.0)
    attempt: int = 0
    is_prepaid: bool = False  # charged in an epoch that is over


class Model:
    """What DESIGN says, written down without Redis."""

    def __init__(self, weights: dict[str, float], caps: dict[str, int]) -> None:
        self.caps = caps
        self.top = Level(nodes={name: Node(weight) for name, weight in CLASS_WEIGHTS.items()})
        self.levels = {
            name: Level(nodes={tenant: Node(weight) for tenant, weight in weights.items()}) for name in CLASS_WEIGHTS
        }
        self.waiting: list[ModelTask] = []
        self.flying: list[ModelTask] = []

    def _line(self, class_name: str, tenant: str) -> list[ModelTask]:
        found = [task for task in self.waiting if (task.class_name, task.tenant) == (class_name, tenant)]
        return sorted(found, key=lambda task: task.arrival)

    def _eligible(self, class_name: str) -> list[str]:
        def is_below_cap(tenant: str) -> bool:
            cap = self.caps[tenant]
            return cap == 0 or sum(task.tenant == tenant for task in self.flying) < cap

        return [t for t in self.caps if is_below_cap(t) and self._line(class_name, t)]

    def refresh(self) -> None:
        for name, level in self.levels.items():
            eligible = self._eligible(name)
            for tenant in level.nodes:
                level.seat(tenant, tenant in eligible)
            self.top.seat(name, bool(eligible))
            if not any(task.class_name == name for task in self.waiting + self.flying):
                level.rest()
        if not self.waiting and not self.flying:
            self.top.rest()

    def put(self, task: ModelTask) -> None:
        self.waiting.append(task)
        self.refresh()

    def heads(self, class_name: str) -> list[tuple[float, int, str]]:
        nodes = self.levels[class_name].nodes
        return sorted((nodes[t].start, self._line(class_name, t)[0].arrival, t) for t in self._eligible(class_name))

    def dispatch(self) -> ModelTask | None:
        classes = [
            (self.top.nodes[name].start, *self.heads(name)[0][1:2], name) for name in CLASS_WEIGHTS if self.heads(name)
        ]
        if not classes:
            return None
        class_name = min(classes)[2]
        tenant = self.heads(class_name)[0][2]
        task = self._line(class_name, tenant)[0]
        task.weights = (self.levels[class_name].charge(tenant, task.cost), self.top.charge(class_name, task.cost))
        self.waiting.remove(task)
        self.flying.append(task)
        self.refresh()
        return task

    def _land(self, task: ModelTask, actual: float) -> None:
        if not task.is_prepaid:
            back = task.cost - actual
            self.levels[task.class_name].nodes[task.tenant].finish -= back / task.weights[0]
            self.top.nodes[task.class_name].finish -= back / task.weights[1]
        self.flying.remove(task)

    def settle(self, task: ModelTask, actual: float) -> None:
        self._land(task, actual)
        self.refresh()

    def adopt(self, task: ModelTask) -> None:
        """A heartbeat tells of a task that the queue has forgotten."""
        task.is_prepaid = True
        self.flying.append(task)
        self.refresh()

    def put_back(self, task: ModelTask) -> None:
        """Nothing of it has survived: nothing is paid, all of it is charged by the next dispatch."""
        self._land(task, 0.0)
        task.attempt += 1
        task.is_prepaid = False
        self.put(task)

    def cancel(self, task: ModelTask) -> None:
        self.waiting.remove(task)
        self.refresh()


tenants = st.sampled_from(["a", "b", "c", "d"])
classes = st.sampled_from(list(CLASS_WEIGHTS))
seconds = st.integers(1, 64).map(float)  # with weights that are powers of two, tags are exact and ties are ties
step = st.one_of(
    st.tuples(st.just("put"), tenants, classes, st.lists(seconds, min_size=1, max_size=6)),
    st.tuples(st.just("serve"), st.integers(1, 8), seconds),
    st.tuples(st.just("dispatch"), st.integers(1, 3)),
    st.tuples(st.just("settle"), st.integers(0, 7), seconds),
    st.tuples(st.just("cancel"), st.integers(0, 7)),
    st.tuples(st.just("adopt"), tenants, classes, seconds),
    st.tuples(st.just("put back"), st.integers(0, 7)),
)
steps = st.lists(step, min_size=15, max_size=30)
in_redis = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@in_redis
@given(
    steps=steps,
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 4.0])] * 4),
    caps=st.tuples(*[st.sampled_from([0, 1, 2])] * 4),
)
async def test_redis_agrees_with_the_model(
    redis: Redis, steps: list[tuple[Any, ...]], weights: tuple[float, ...], caps: tuple[int, ...]
) -> None:
    await redis.flushall()
    queue = RedisQueue(redis)
    await queue.register(Worker("w", "gpu-worker", POOL, "cpu", 1, 1000, ()), NOW, TTL_MS)
    weight_of, cap_of = dict(zip("abcd", weights, strict=True)), dict(zip("abcd", caps, strict=True))
    model = Model(weight_of, cap_of)
    arrivals = itertools.count()

    def new(tenant: str, class_name: str, cost: float) -> ModelTask:
        number = next(arrivals)
        return ModelTask(f"t{number}", tenant, class_name, cost, number)

    def row_of(task: ModelTask, attempt: int) -> TaskRow:
        row = task_row(task.name, tenant_id=task.tenant, class_name=task.class_name, cost_s=task.cost, attempt=attempt)
        return replace(row, weight=weight_of[task.tenant], cap=cap_of[task.tenant], created_at_ms=task.arrival)

    async def put(task: ModelTask) -> None:
        model.put(task)
        assert await queue.enqueue(row_of(task, 0), NOW, "") == "queued"

    async def dispatch() -> ModelTask | None:
        found, expected = await queue.dispatch(POOL, "w", NOW, TTL_MS), model.dispatch()
        assert (found.task_id if isinstance(found, Dispatched) else None) == (expected and expected.name)
        return expected

    async def settle(task: ModelTask, actual: float) -> None:
        assert await queue.settle(POOL, task.name, task.attempt + 1, actual, NOW)
        model.settle(task, actual)

    for what, *details in steps:
        if what == "put":
            tenant, class_name, costs = details
            for cost in costs:
                await put(new(tenant, class_name, cost))
        elif what == "adopt":
            task = new(*details)
            assert await queue.lease(row_of(task, 1), "w", NOW, TTL_MS) == "created"
            model.adopt(task)
        elif what == "put back" and model.flying:
            task = model.flying[details[0] % len(model.flying)]
            assert await queue.enqueue(row_of(task, task.attempt + 1), NOW, "") == "returned"
            model.put_back(task)
        elif what == "dispatch":
            for _ in range(details[0]):
                await dispatch()
        elif what == "serve":
            for _ in range(details[0]):
                if task := await dispatch():
                    await settle(task, details[1])
        elif what == "settle" and model.flying:
            await settle(model.flying[details[0] % len(model.flying)], details[1])
        elif what == "cancel" and model.waiting:
            task = model.waiting[details[0] % len(model.waiting)]
            assert await queue.stop(task_row(task.name), NOW) == "gone"
            model.cancel(task)
        assert await queue.depth(POOL) == (len(model.waiting), len(model.flying))


@in_redis
@given(
    costs=st.tuples(*[st.lists(st.floats(0.5, 100), min_size=12, max_size=12)] * 3),
    weights=st.tuples(*[st.floats(0.25, 8)] * 3),
)
async def test_the_bound_holds_while_all_are_backlogged(
    redis: Redis, costs: tuple[list[float], ...], weights: tuple[float, ...]
) -> None:
    """|W_i/w_i - W_j/w_j| <= c_i/w_i + c_j/w_j on cost charged at dispatch, over every prefix."""
    await redis.flushall()
    queue = RedisQueue(redis)
    await queue.register(Worker("w", "gpu-worker", POOL, "cpu", 1, 1000, ()), NOW, TTL_MS)
    names = "abc"
    for i in range(12):
        for name, weight, line in zip(names, weights, costs, strict=True):
            row = task_row(f"{name}{i}", tenant_id=name, weight=weight, cost_s=line[i], created_at_ms=i)
            await queue.enqueue(row, NOW, "")
    left = {name: list(line) for name, line in zip(names, costs, strict=True)}
    weight_of = dict(zip(names, weights, strict=True))
    served = dict.fromkeys(names, 0.0)
    most = {name: max(line) / weight_of[name] for name, line in left.items()}
    while all(left.values()):
        found = await queue.dispatch(POOL, "w", NOW, TTL_MS)
        assert isinstance(found, Dispatched)
        served[found.tenant_id] += left[found.tenant_id].pop(0) / weight_of[found.tenant_id]
        for one in names:
            for other in names:
                assert abs(served[one] - served[other]) <= most[one] + most[other] + 1e-6
