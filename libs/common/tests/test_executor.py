"""The executor's side of the four calls, against a scheduler that answers as a test says."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from vitascope_common import wire
from vitascope_common.executor import Executor, HeldTask, Outcome, WorkerIdentity
from vitascope_common.jobs import FinishParams, Task
from vitascope_proto.v1 import scheduler_pb2, scheduler_pb2_grpc

TASK = Task("j.finish.0", "j", "t", "generate", "finish", 0, "postproc", "postproc", 1,
            FinishParams("m", "", 1, 1, 1, 1))  # fmt: skip
DEADLINE_S = 10.0


class Scheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Grants every claim; fails every report with `status` until that is None."""

    def __init__(self) -> None:
        self.status: grpc.StatusCode | None = None
        self.num_claims = 0
        self.num_ranks = 0
        self.num_reports = 0
        self.beats = threading.Semaphore(0)
        self.may_answer = threading.Event()
        self.may_answer.set()

    def Register(self, request, context):
        return scheduler_pb2.RegisterResponse(lease_ttl_ms=10_000, heartbeat_ms=60_000)

    def Claim(self, request, context):
        self.num_claims += 1
        self.num_ranks = request.group_size
        self.may_answer.wait(DEADLINE_S)
        return scheduler_pb2.ClaimResponse(granted=True, task=wire.task_to_proto(TASK), heartbeat_ms=20)

    def Heartbeat(self, request, context):
        self.beats.release()
        return scheduler_pb2.HeartbeatResponse()

    def Report(self, request, context):
        self.num_reports += 1
        if self.status is not None:
            context.abort(self.status, "as told")
        return scheduler_pb2.ReportResponse(accepted=True, state="done")


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def address(scheduler: Scheduler) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(scheduler, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def executor(address: str) -> Iterator[Executor]:
    executor = Executor(address, WorkerIdentity("p1", "postproc", "postproc", num_slots=0))
    yield executor
    executor.close()


def claimed(executor: Executor) -> HeldTask:
    held = executor.claim(TASK.task_id)
    assert held is not None
    return held


def test_what_is_held_is_not_claimed_again(scheduler: Scheduler, executor: Executor) -> None:
    held = claimed(executor)
    assert executor.claim(TASK.task_id) is None
    assert scheduler.num_claims == 1
    executor.release(held)
    assert executor.claim(TASK.task_id) is not None


def test_two_threads_never_get_the_same_attempt(scheduler: Scheduler, executor: Executor) -> None:
    scheduler.may_answer.clear()
    with ThreadPoolExecutor(4) as pool:
        claims = [pool.submit(executor.claim, TASK.task_id) for _ in range(4)]
        deadline = time.monotonic() + DEADLINE_S
        while sum(claim.done() for claim in claims) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        scheduler.may_answer.set()
        found = [claim.result() for claim in claims]
    assert sum(held is not None for held in found) == 1
    assert scheduler.num_claims == 1


def test_a_claim_says_how_many_ranks_will_work(scheduler: Scheduler, address: str) -> None:
    pair = Executor(address, WorkerIdentity("w1", "gpu-worker", "default", group_size=2))
    claimed(pair)
    pair.close()
    assert scheduler.num_ranks == 2


def test_a_claim_says_how_often_to_beat(scheduler: Scheduler, executor: Executor) -> None:
    executor.start()
    claimed(executor)
    begun = time.monotonic()
    for _ in range(5):
        assert scheduler.beats.acquire(timeout=DEADLINE_S)
    assert time.monotonic() - begun < 4  # the default is a beat in 2 s


def test_a_scheduler_that_keeps_failing_leaves_the_task_to_its_lease(
    scheduler: Scheduler, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitascope_common.executor.REPORT_INTERNAL_S", 0.2)
    scheduler.status = grpc.StatusCode.INTERNAL
    assert not executor.report(claimed(executor), Outcome.DONE)
    assert scheduler.num_reports > 1
    assert executor.claim(TASK.task_id) is not None  # nothing is held any more


def test_a_scheduler_that_is_away_is_waited_for(
    scheduler: Scheduler, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitascope_common.executor.REPORT_INTERNAL_S", 0.0)
    scheduler.status = grpc.StatusCode.UNAVAILABLE
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(executor.report, claimed(executor), Outcome.DONE)
        deadline = time.monotonic() + DEADLINE_S
        while scheduler.num_reports < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        scheduler.status = None
        assert answer.result(DEADLINE_S)


def test_closing_twice_is_closing_once(scheduler: Scheduler, executor: Executor) -> None:
    executor.start()
    held = claimed(executor)
    executor.is_draining = True
    executor.close()
    executor.close()
    assert not executor.report(held, Outcome.DONE)  # closed: the lease decides
    assert scheduler.num_reports == 0
