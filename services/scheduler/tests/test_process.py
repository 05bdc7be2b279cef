"""The scheduler as a process, driven over gRPC by the executor client that the other services use."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import sqlalchemy as sa
from redis import Redis

from vitascope_common import ids, keys, redis_clients, tables
from vitascope_common.database import Database
from vitascope_common.errors import InternalError
from vitascope_common.executor import Action, Executor, HeldTask, Outcome, WorkerIdentity
from vitascope_common.jobs import Progress
from vitascope_proto.v1 import scheduler_pb2, scheduler_pb2_grpc
from vitascope_scheduler.testing import TENANT, SchedulerProcess, admit, artifact, checkpoint

T = TypeVar("T")
DEADLINE_S = 20.0


def wait_for(condition: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if (found := condition()) is not None and found is not False:
                return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


@pytest.fixture
def scheduler(database: Database, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[SchedulerProcess]:
    with contextlib.closing(SchedulerProcess(database_url, redis_url, tmp_path)) as process:
        process.start()
        yield process


@pytest.fixture
def broker(redis: object, redis_url: str) -> Iterator[Redis]:
    with contextlib.closing(redis_clients.connect(redis_url)) as client:
        yield client


class Worker:
    """A gpu-worker without a model: it reads its inbox and claims."""

    def __init__(self, scheduler: SchedulerProcess, broker: Redis) -> None:
        self.identity = WorkerIdentity(ids.new_worker_id("gpu-worker"), "gpu-worker", "default")
        self.executor = Executor(scheduler.address, self.identity)
        self.executor.start()
        self._broker, self._seen = broker, "0"

    def next_claim(self) -> HeldTask:
        return wait_for(self._try)

    def _try(self) -> HeldTask | None:
        entries: Any = self._broker.xrange(keys.inbox("default", self.identity.worker_id), min=f"({self._seen}")
        for self._seen, fields in entries:
            command = json.loads(fields["data"])
            if command["command"] == "assign" and (held := self.executor.claim(command["tasks"][0]["task_id"])):
                return held
        return None


@pytest.fixture
def new_worker(scheduler: SchedulerProcess, broker: Redis) -> Iterator[Callable[[], Worker]]:
    workers: list[Worker] = []

    def make() -> Worker:
        workers.append(Worker(scheduler, broker))
        return workers[-1]

    yield make
    for worker in workers:
        worker.executor.close()


def stub(scheduler: SchedulerProcess) -> Any:
    return scheduler_pb2_grpc.SchedulerServiceStub(grpc.insecure_channel(scheduler.address))


def postprocess(scheduler: SchedulerProcess, broker: Redis) -> None:
    """Do what Celery's worker does with the next message."""
    raw: Any = wait_for(lambda: broker.rpop("postproc"))
    headers = json.loads(raw)["headers"]
    executor = Executor(scheduler.address, WorkerIdentity("p1", "postproc", "postproc", num_slots=0))
    executor.start()
    held = executor.claim(str(headers["argsrepr"]).strip("[]'"))
    assert held is not None
    assert [one.role for one in held.task.inputs] == ["mezzanine"]
    assert executor.report(held, Outcome.DONE, outputs=[artifact("manifest")])
    executor.close()


async def job_of(database: Database, job_id: str) -> sa.Row[Any]:
    async with database.read() as connection:
        return (await connection.execute(sa.select(tables.jobs).where(tables.jobs.c.job_id == job_id))).one()


def event_types(broker: Redis, job_id: str) -> list[str]:
    return [fields["type"] for _, fields in broker.xrange(keys.events(job_id))]


async def test_one_job_from_admission_to_publication(
    scheduler: SchedulerProcess, database: Database, broker: Redis, new_worker: Callable[[], Worker]
) -> None:
    worker = new_worker()
    job_id = await admit(database)
    stub(scheduler).Submit(scheduler_pb2.SubmitRequest(job_id=job_id))
    held = worker.next_claim()
    assert (held.task.job_id, held.task.attempt) == (job_id, 1)
    held.progress, held.used_s, held.checkpoint = Progress(10, 30, "step", "denoising"), 1.0, checkpoint(10)
    worker.executor.poke()
    wait_for(lambda: "checkpoint" in event_types(broker, job_id))
    assert (await job_of(database, job_id)).phase == "denoising"
    assert worker.executor.report(held, Outcome.DONE, outputs=[artifact("mezzanine")])
    postprocess(scheduler, broker)
    expected = ["queued", "started", "checkpoint", "postprocessing", "completed"]
    wait_for(lambda: event_types(broker, job_id) == expected)
    job = await job_of(database, job_id)
    assert (job.state, job.manifest_key) == ("completed", artifact("manifest").key)
    text = scheduler.metrics()
    assert 'vitascope_scheduler_claims_total{answer="granted"} 2.0' in text
    assert 'vitascope_scheduler_queue_depth{pool="default"} 0.0' in text
    begun = time.monotonic()
    assert scheduler.kill(signal.SIGTERM) == 0
    assert time.monotonic() - begun < 8  # `vitascope up` kills what takes longer


async def test_a_dead_worker_costs_a_lease_and_nothing_else(
    scheduler: SchedulerProcess, database: Database, broker: Redis, new_worker: Callable[[], Worker]
) -> None:
    job_id = await admit(database)
    victim = new_worker()
    held = victim.next_claim()
    held.checkpoint = checkpoint(10)
    victim.executor.poke()
    wait_for(lambda: "checkpoint" in event_types(broker, job_id))
    victim.executor.close()  # no heartbeat any more
    again = new_worker().next_claim()
    assert (again.task.attempt, again.task.checkpoints[0].done) == (2, 10)
    zombie = Executor(scheduler.address, victim.identity)
    assert not zombie.report(held, Outcome.DONE, outputs=[artifact("mezzanine")])
    zombie.close()


async def test_kill_and_a_wiped_redis_in_the_middle(
    scheduler: SchedulerProcess, database: Database, broker: Redis, new_worker: Callable[[], Worker]
) -> None:
    worker = new_worker()
    running, waiting = await admit(database), await admit(database)
    held = worker.next_claim()
    scheduler.kill()
    broker.flushall()
    scheduler.start()
    held.used_s = 2.0
    assert worker.executor.report(held, Outcome.DONE, outputs=[artifact("mezzanine")])
    assert held.task.attempt == 1
    assert held.action is Action.RUN
    following = worker.next_claim()
    assert {held.task.job_id, following.task.job_id} == {running, waiting}
    postprocess(scheduler, broker)
    wait_for(lambda: event_types(broker, held.task.job_id)[-1:] == ["completed"])


async def test_cancel_stops_the_worker(
    scheduler: SchedulerProcess, database: Database, broker: Redis, new_worker: Callable[[], Worker]
) -> None:
    worker = new_worker()
    job_id = await admit(database)
    held = worker.next_claim()
    client = stub(scheduler)
    with pytest.raises(grpc.RpcError) as caught:
        client.Cancel(scheduler_pb2.CancelRequest(job_id=job_id, tenant_id="somebody else"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    for _ in range(2):
        answer = client.Cancel(scheduler_pb2.CancelRequest(job_id=job_id, tenant_id=TENANT))
        assert answer.state == "cancelled"
    wait_for(lambda: held.action is Action.STOP)
    assert worker.executor.report(held, Outcome.CANCELLED)
    following = await admit(database)
    assert worker.next_claim().task.job_id == following
    client.Delete(scheduler_pb2.DeleteRequest(job_id=job_id, tenant_id=TENANT))
    assert (await job_of(database, job_id)).deleted_at_ms


async def test_a_poison_job_fails_with_its_last_error(
    scheduler: SchedulerProcess, database: Database, broker: Redis, new_worker: Callable[[], Worker]
) -> None:
    worker = new_worker()
    job_id = await admit(database)
    for _ in range(3):
        held = worker.next_claim()
        assert worker.executor.report(held, Outcome.FAILED, error=InternalError("no memory"), is_retryable=True)
    job = await job_of(database, job_id)
    assert (job.state, job.error_code) == ("failed", "poison")
    assert "no memory" in job.error_message


async def test_bad_requests_say_what_is_wrong(scheduler: SchedulerProcess) -> None:
    client = stub(scheduler)
    bad = [
        (client.Register, scheduler_pb2.RegisterRequest(worker_id="w", executor="gpu-worker", pool="{x}", num_slots=1)),
        (client.Register, scheduler_pb2.RegisterRequest(worker_id="w", executor="gpu-worker", pool="x", num_slots=0)),
        (client.Claim, scheduler_pb2.ClaimRequest(task_id="", worker_id="w")),
        (client.Report, scheduler_pb2.ReportRequest(task_id="t", worker_id="w", attempt=1)),
    ]
    for method, request in bad:
        with pytest.raises(grpc.RpcError) as caught:
            method(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert client.Claim(scheduler_pb2.ClaimRequest(task_id="x.generate.0", worker_id="w")).reason == "unknown"
    nan = scheduler_pb2.ReportRequest(
        task_id="x", worker_id="w", attempt=2**62, outcome=1, used_s=float("nan"), meters={"x": float("inf")}
    )
    assert not client.Report(nan).accepted
    position = client.GetQueuePosition(scheduler_pb2.GetQueuePositionRequest(job_id=ids.new_job_id()))
    assert (position.position, position.eta_s) == (-1, -1)


def test_a_misspelt_variable_stops_the_start_up() -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "VITASCOPE_REDIS_ULR": "x"}
    done = subprocess.run(
        [sys.executable, "-m", "vitascope_scheduler"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "VITASCOPE_REDIS_ULR" in done.stderr
    assert "Traceback" not in done.stderr
