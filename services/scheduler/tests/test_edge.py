"""What gateways and operators ask, over gRPC: places in the queue, the queues themselves, drains."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from vitascope_common import ids, rpc
from vitascope_common.database import Database
from vitascope_common.executor import Outcome
from vitascope_proto.v1 import scheduler_pb2, scheduler_pb2_grpc
from vitascope_scheduler.adapters.celery_sender import CelerySender
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.api import SERVICE_NAME, SchedulerApi
from vitascope_scheduler.dispatch import Dispatcher, Timing
from vitascope_scheduler.job_manager import JobManager, Report
from vitascope_scheduler.operator import Operator
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.reconciler import Reconciler
from vitascope_scheduler.relay import Relay
from vitascope_scheduler.service import Scheduler
from vitascope_scheduler.testing import TENANT, admit, artifact
from vitascope_scheduler.worker import Worker

COST_S = 10.0
OUTPUT = artifact("mezzanine")


class Edge:
    """The scheduler behind its port, with a clock that moves when a test says so, and the stub of a caller."""

    def __init__(self, database: Database, redis: Redis, broker_url: str) -> None:
        self.database, self.now_ms = database, ids.now_ms()
        self.queue, self.sender = RedisQueue(redis), CelerySender(broker_url)
        manager, reader = JobManager(database, self.clock), Reader(database)
        dispatcher = Dispatcher(manager, reader, self.queue, self.sender, Timing(), self.clock)
        self.relay = Relay(reader, dispatcher, self.queue, self.clock)
        self.reconciler = Reconciler(manager, reader, dispatcher, self.relay)
        self.scheduler = Scheduler(manager, reader, dispatcher, self.relay)
        self.operator = Operator(manager, reader, dispatcher)
        api = SchedulerApi(self.scheduler, self.operator)
        self.server = rpc.RpcServer("127.0.0.1:0", [SERVICE_NAME], api.register_in)
        self.channel = rpc.connect(f"127.0.0.1:{self.server.port}")
        self.stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(self.channel)

    def clock(self) -> int:
        return self.now_ms

    async def jobs(self, num: int) -> list[str]:
        """Admit so many jobs and let them wait."""
        found = []
        for _ in range(num):
            self.now_ms += 1
            found.append(await admit(self.database, cost_s=COST_S, now_ms=self.now_ms))
        await self.relay.tell("event")
        await self.relay.tell("ready")
        return found

    async def worker(self, worker_id: str = "w1", slots: int = 1) -> None:
        await self.scheduler.register(Worker(worker_id, "gpu-worker", "default", "cpu", 1, slots, ("tiny",)))

    async def places(self, *job_ids: str) -> list[tuple[str, int, float]]:
        answer = await self.stub.GetQueuePositions(scheduler_pb2.GetQueuePositionsRequest(job_ids=job_ids))
        return [(one.job_id, one.position, round(one.eta_s, 3)) for one in answer.positions]

    async def pools(self, pool: str = "") -> list[Any]:
        return list((await self.stub.GetQueue(scheduler_pb2.GetQueueRequest(pool=pool))).pools)

    async def drain(self, is_draining: bool = True, worker_id: str = "", pool: str = "default") -> int:
        request = scheduler_pb2.SetDrainRequest(
            pool=pool, worker_id=worker_id, is_draining=is_draining, tenant_id=TENANT
        )
        return int((await self.stub.SetDrain(request)).num_workers)


@pytest.fixture
async def edge(database: Database, redis: Redis, redis_url: str) -> AsyncIterator[Edge]:
    one = Edge(database, redis, redis_url)
    await one.server.start()
    yield one
    await one.channel.close()
    await one.server.drain(0)
    one.sender.close()


async def test_every_waiting_job_learns_its_place_in_the_order_it_was_asked(edge: Edge) -> None:
    first, second, third = await edge.jobs(3)
    await edge.worker()  # and takes the first
    unknown = "video_" + "0" * 32
    assert await edge.places(third, unknown, first, second) == [
        (third, 1, 30.0),
        (unknown, -1, -1.0),
        (first, -1, -1.0),
        (second, 0, 20.0),
    ]
    single = await edge.stub.GetQueuePosition(scheduler_pb2.GetQueuePositionRequest(job_id=third))
    assert (single.position, single.eta_s) == (1, 30.0)


async def test_a_job_that_is_not_there_yet_learns_its_place_and_changes_nothing(edge: Edge) -> None:
    first, second = await edge.jobs(2)
    await edge.worker()  # and takes the first

    async def foreseen(tenant_id: str = TENANT, class_name: str = "standard") -> tuple[int, float]:
        request = scheduler_pb2.ForecastRequest(
            pool="default", tenant_id=tenant_id, class_name=class_name, cost_s=COST_S
        )
        answer = await edge.stub.Forecast(request)
        return answer.position, round(answer.eta_s, 3)

    before = await edge.places(first, second)
    assert await foreseen() == (1, 30.0)
    assert await foreseen(class_name="realtime") == (0, 20.0)
    assert await edge.places(first, second) == before
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await foreseen("nobody")
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


async def test_without_a_worker_there_is_a_place_and_no_time(edge: Edge) -> None:
    first, second = await edge.jobs(2)
    assert await edge.places(first, second) == [(first, 0, -1.0), (second, 1, -1.0)]


async def test_a_line_is_played_through_once_in_two_seconds_and_the_time_goes_on(edge: Edge) -> None:
    first, second, third = await edge.jobs(3)
    await edge.worker()
    assert await edge.places(third) == [(third, 1, 30.0)]
    await edge.scheduler.cancel(second, TENANT)
    edge.now_ms += 1_999
    assert await edge.places(third) == [(third, 1, 28.001)]
    edge.now_ms += 1
    ((_, position, eta_s),) = await edge.places(third)
    assert position == 0
    assert eta_s < 20.0
    assert (await edge.places(first))[0][1] == -1


def measured(direction: str, what: str) -> float:
    labels = {"direction": direction}
    return REGISTRY.get_sample_value(f"vitascope_scheduler_eta_error_seconds_{what}", labels) or 0.0


async def test_the_end_of_a_task_is_compared_with_the_first_time_that_was_told(edge: Edge) -> None:
    first, second = await edge.jobs(2)
    await edge.worker(slots=2)
    task = ids.task_id(second, "generate", 0)
    late, total_s = measured("late", "count"), measured("late", "sum")
    (third,) = await edge.jobs(1)
    await edge.places(first, second, third)  # both run, the third waits: to be done in 20 s
    edge.now_ms += 3_000
    await edge.places(third)  # told again; the first word counts
    assert (await edge.scheduler.claim(task, "w1")).task
    assert (await edge.scheduler.report(Report(task, 1, Outcome.DONE, (OUTPUT,)))).is_accepted
    assert measured("late", "count") == late  # it was never told a time
    waited = ids.task_id(third, "generate", 0)
    assert (await edge.scheduler.claim(waited, "w1")).task
    edge.now_ms += 20_000
    report = Report(waited, 1, Outcome.DONE, (OUTPUT,))
    for _ in range(2):  # a repeated report is measured once
        assert (await edge.scheduler.report(report)).is_accepted
    assert measured("late", "count") == late + 1
    assert measured("late", "sum") - total_s == pytest.approx(3.0, abs=0.01)


async def test_an_operator_sees_who_waits_who_works_and_what_is_charged(edge: Edge) -> None:
    first, *_ = await edge.jobs(3)
    await edge.worker()
    (pool,) = await edge.pools()
    assert (pool.pool, pool.num_waiting, pool.num_in_flight, pool.backlog_s) == ("default", 2, 1, 2 * COST_S)
    assert [one.class_name for one in pool.classes] == ["realtime", "standard", "batch"]
    (flow,) = pool.classes[1].flows
    assert (flow.tenant_id, flow.num_waiting, flow.num_in_flight) == (TENANT, 2, 1)
    assert (flow.served_s, flow.backlog_s) == (COST_S, 2 * COST_S)
    (worker,) = pool.workers
    assert (worker.worker_id, worker.device, worker.num_slots, worker.num_free_slots) == ("w1", "cpu", 1, 0)
    assert list(worker.warm_models) == ["tiny"]
    task = ids.task_id(first, "generate", 0)
    assert list(worker.task_ids) == [task]
    (lease,) = pool.leases
    assert (lease.task_id, lease.worker_id, lease.state, lease.charged_s) == (task, "w1", "handed_over", COST_S)
    assert 0 < lease.expires_in_ms <= 10_000
    await edge.scheduler.claim(task, "w1")
    assert (await edge.pools("default"))[0].leases[0].state == "claimed"
    assert await edge.pools("nowhere") == []


async def test_a_drained_worker_gets_nothing_until_it_is_undone(edge: Edge) -> None:
    await edge.worker("w1")
    await edge.worker("w2")
    assert await edge.drain(worker_id="w1") == 1
    assert await edge.drain(worker_id="w1") == 1  # again changes nothing
    await edge.jobs(2)
    (pool,) = await edge.pools()
    assert {one.worker_id: (one.is_draining, len(one.task_ids)) for one in pool.workers} == {
        "w1": (True, 0),
        "w2": (False, 1),
    }
    assert not pool.is_draining
    assert await edge.drain(False, "w1") == 1
    assert {len(one.task_ids) for one in (await edge.pools())[0].workers} == {1}


async def test_a_drained_pool_is_closed_to_workers_that_come_later_and_outlives_redis(edge: Edge, redis: Redis) -> None:
    assert await edge.drain() == 0  # nobody there yet
    assert [(one.pool, one.is_draining) for one in await edge.pools()] == [("default", True)]
    await edge.jobs(1)
    await edge.worker()
    assert (await edge.pools())[0].num_in_flight == 0
    await redis.flushall()
    await edge.reconciler.reconcile()
    await edge.worker()
    await edge.reconciler.tick()
    (pool,) = await edge.pools()
    assert (pool.is_draining, pool.num_waiting, pool.num_in_flight) == (True, 1, 0)
    assert await edge.drain(False) == 1
    (pool,) = await edge.pools()
    assert (pool.is_draining, pool.num_waiting, pool.num_in_flight) == (False, 0, 1)


async def test_a_drained_worker_gets_nothing_when_it_registers_at_a_redis_that_has_lost_its_drain(
    edge: Edge, redis: Redis
) -> None:
    await edge.worker("w1")
    assert await edge.drain(worker_id="w1") == 1
    await redis.flushall()
    await edge.jobs(1)
    await edge.worker("w1")
    (pool,) = await edge.pools()
    assert (pool.num_waiting, pool.num_in_flight) == (1, 0)
    assert [one.is_draining for one in pool.workers] == [True]


async def test_only_handovers_that_nobody_claimed_are_counted_as_expired(edge: Edge) -> None:
    def num_expired() -> float:
        labels = {"pool": "default"}
        return REGISTRY.get_sample_value("vitascope_scheduler_handovers_expired_total", labels) or 0.0

    before = num_expired()
    (job,) = await edge.jobs(1)
    await edge.worker()
    task = ids.task_id(job, "generate", 0)
    assert (await edge.scheduler.claim(task, "w1")).task
    report = Report(task, 1, Outcome.FAILED, error_code="internal", error_message="once", is_retryable=True)
    assert (await edge.scheduler.report(report)).is_accepted  # it comes back, and is handed over again
    assert num_expired() == before
    assert (await edge.pools())[0].leases[0].state == "handed_over"
    for _ in range(2 * edge.scheduler.timing.lease_ttl_ms // 1_000):  # its worker is silent
        edge.now_ms += 1_000
        await edge.reconciler.tick()
    assert num_expired() == before + 1


@pytest.mark.parametrize(
    ("call", "request_"),
    [
        ("GetQueuePositions", scheduler_pb2.GetQueuePositionsRequest(job_ids=["a"] * 1001)),
        ("GetQueuePositions", scheduler_pb2.GetQueuePositionsRequest(job_ids=["a", "b c"])),
        ("GetQueuePosition", scheduler_pb2.GetQueuePositionRequest(job_id="")),
        ("GetQueue", scheduler_pb2.GetQueueRequest(pool="{other}")),
        ("SetDrain", scheduler_pb2.SetDrainRequest(pool="", tenant_id="t")),
        ("SetDrain", scheduler_pb2.SetDrainRequest(pool="x" * 201, tenant_id="t")),
        ("SetDrain", scheduler_pb2.SetDrainRequest(pool="default", worker_id="a:{b}", tenant_id="t")),
        ("SetDrain", scheduler_pb2.SetDrainRequest(pool="default")),
    ],
)
async def test_names_that_are_none_are_refused(edge: Edge, call: str, request_: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(edge.stub, call)(request_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_thousand_jobs_are_one_question(edge: Edge) -> None:
    (job,) = await edge.jobs(1)
    others = [f"video_{number:032x}" for number in range(999)]
    found = await edge.places(*others, job)
    assert [one[0] for one in found] == [*others, job]
    assert found[-1][1] == 0


@pytest.mark.parametrize(("said", "counted"), [(2, 2), (0, 1), (-3, 1)])
async def test_a_claim_says_how_many_ranks_are_paid(edge: Edge, said: int, counted: int) -> None:
    (job_id,) = await edge.jobs(1)
    task_id = ids.task_id(job_id, "generate", 0)
    request = scheduler_pb2.ClaimRequest(task_id=task_id, worker_id="w1", group_size=said)
    answer = await edge.stub.Claim(request)
    assert (answer.granted, answer.task.group_size) == (True, counted)
