"""A kind of job that only this test knows runs end to end: the gateway's admission, the scheduler's process, gRPC.

Three stages on two pools: numbers are split into six parts, each part is squared, the squares are added up.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest

from vitascope_common import ids, keys, redis_clients, tables
from vitascope_common.database import Database
from vitascope_common.errors import VitascopeError
from vitascope_common.executor import Executor, HeldTask, Outcome, WorkerIdentity
from vitascope_common.jobs import Artifact, JsonParams, Kind, Stage
from vitascope_common.objectstore_folder import FolderStore
from vitascope_common.registry import Registry
from vitascope_common.testing import redis_server
from vitascope_gateway import admission
from vitascope_gateway.adapters.sql import SqlStore
from vitascope_proto.v1 import scheduler_pb2, scheduler_pb2_grpc
from vitascope_scheduler.testing import TENANT, SchedulerProcess, Sql

SQUARES = Kind(
    "squares",
    (
        Stage("split", executor="splitter", pool="left", needs=None, yieldable=False, unit="number"),
        Stage("work", executor="squarer", pool="right", needs="split", yieldable=True, unit="number", num_shards=6),
        Stage("join", executor="splitter", pool="left", needs="work", yieldable=False, unit="number", publishes=True),
    ),
)
NUMBERS = list(range(60))
WAIT_S = 60.0


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


async def wait_for(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not await condition():
        assert time.monotonic() < deadline, f"waited {WAIT_S:.0f} s for {what}"
        await asyncio.sleep(0.02)


class Worker:
    """An executor of one pool in threads of its own: takes what its inbox says, works, reports."""

    def __init__(self, address: str, redis_url: str, pool: str, store: FolderStore, dies_at: str = "") -> None:
        executor = "splitter" if pool == "left" else "squarer"
        self.identity = WorkerIdentity(ids.new_worker_id(executor), executor, pool)
        self.executor = Executor(address, self.identity)
        self.store, self.dies_at = store, dies_at
        self.gate = threading.Event()  # while it is clear, work on a part takes for ever
        self.gate.set()
        self.is_dead = threading.Event()
        self.held: HeldTask | None = None
        self._redis_url = redis_url
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.identity.worker_id)

    def start(self) -> None:
        self.executor.start()
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self.executor.give_up()
        self._thread.join(WAIT_S)
        self.executor.close()

    def _run(self) -> None:
        inbox, seen = keys.inbox(self.identity.pool, self.identity.worker_id), "0"
        with contextlib.closing(redis_clients.connect(self._redis_url)) as redis:
            while not self._is_over.is_set() and not self.is_dead.is_set():
                entries: Any = redis.xread({inbox: seen}, count=1, block=20)
                for _, found in entries:
                    for entry_id, fields in found:
                        seen = entry_id
                        self._obey(json.loads(fields["data"]))

    def _obey(self, command: Mapping[str, Any]) -> None:
        for assigned in command.get("tasks", []):
            with contextlib.suppress(VitascopeError):  # it expires like any lease
                self.held = self.executor.claim(assigned["task_id"])
                if self.held is not None:
                    self._do(self.held)

    def _do(self, held: HeldTask) -> None:
        if held.task.stage == self.dies_at:
            self.is_dead.set()
            self.executor.give_up()  # no heartbeat and no report any more
            return
        while not self.gate.wait(0.01):
            if held.is_over:
                self.executor.report(held, Outcome.CANCELLED)
                return
            if self._is_over.is_set():
                return
        held.used_s = 0.5
        self.executor.report(held, Outcome.DONE, outputs=WORK[held.task.stage](held, self.store))


def _put(held: HeldTask, store: FolderStore, name: str, value: Any, role: str = "numbers") -> Artifact:
    data = json.dumps(value).encode()
    key = held.task.work_key(f"{name}.json")
    store.put_bytes(key, data, "application/json")
    return Artifact(name, role, "application/json", key, sha256(data).hexdigest(), len(data))


def _split(held: HeldTask, store: FolderStore) -> list[Artifact]:
    assert isinstance(held.task.params, JsonParams)
    numbers = held.task.params.values["numbers"]
    return [_put(held, store, f"part-{shard}", numbers[shard::6]) for shard in range(6)]


def _square(held: HeldTask, store: FolderStore) -> list[Artifact]:
    numbers = json.loads(store.get_bytes(held.task.inputs[held.task.shard].key))
    return [_put(held, store, "squares", [number**2 for number in numbers])]


def _join(held: HeldTask, store: FolderStore) -> list[Artifact]:
    squares = [number for one in held.task.inputs for number in json.loads(store.get_bytes(one.key))]
    return [_put(held, store, "sum", sum(squares), role="manifest")]


WORK: Mapping[str, Callable[[HeldTask, FolderStore], list[Artifact]]] = {
    "split": _split,
    "work": _square,
    "join": _join,
}


class Room:
    """A scheduler process and its executors."""

    def __init__(self, database: Database, database_url: str, redis_url: str, folder: Path) -> None:
        self.database, self.look = database, Sql(database)
        self.store = FolderStore(folder / "objects")
        self.redis_url = redis_url
        self.process = SchedulerProcess(database_url, redis_url, folder)
        self.process.environment["VITASCOPE_SCHEDULER_LEASE_TTL_MS"] = "5000"  # one attempt each, on a busy machine too
        self.workers: list[Worker] = []
        self._card = Registry(Path(__file__).parents[2] / "models").cards()[0]

    def worker(self, pool: str, dies_at: str = "", *, is_open: bool = True) -> Worker:
        worker = Worker(self.process.address, self.redis_url, pool, self.store, dies_at)
        if not is_open:
            worker.gate.clear()
        self.workers.append(worker)
        worker.start()
        return worker

    async def admit(self) -> str:
        job = admission.NewJob(
            job_id=ids.new_job_id(),
            tenant_id=TENANT,
            kind=SQUARES,
            card=self._card,
            prompt="",
            params={
                "split": JsonParams({"numbers": NUMBERS}),
                "work": JsonParams({}),
                "join": JsonParams({}),
            },
            costs_s={"work": 0.5},
            safety={},
            labels={},
            traceparent="",
            created_at_ms=ids.now_ms(),
        )
        await admission.admit(self.database, job)
        return job.job_id

    async def end_of(self, job_id: str, state: str) -> dict[str, Any]:
        async def is_over() -> bool:
            return bool((await self.look.job(job_id))["finished_at_ms"])

        await wait_for(f"the end of {job_id}", is_over)
        job = await self.look.job(job_id)
        assert (job["state"], job["error_code"]) == (state, "cancelled" if state == "cancelled" else None)
        return job

    async def events(self, job_id: str, last: str) -> list[str]:
        redis = redis_clients.connect_async(self.redis_url)
        found: list[str] = []

        async def is_told() -> bool:
            found[:] = [fields["type"] for _, fields in await redis.xrange(keys.events(job_id))]
            return found[-1:] == [last]

        await wait_for(f"the event {last}", is_told)
        await redis.aclose()
        return found


@pytest.fixture
def room(database: Database, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Room]:
    with contextlib.closing(redis_clients.connect(redis_url)) as redis:
        redis.flushall()
    room = Room(database, database_url, redis_url, tmp_path)
    with contextlib.closing(room.process):
        room.process.start()
        yield room
        for worker in room.workers:
            worker.close()


async def check_sum(room: Room, job_id: str, job: Mapping[str, Any]) -> None:
    total = json.loads(room.store.get_bytes(job["manifest_key"]))
    assert total == sum(number**2 for number in NUMBERS)
    rows = await room.look.rows(tables.tasks, job_id=job_id)
    assert [row["state"] for row in rows] == ["done"] * 8
    ledger = await room.look.rows(tables.ledger, job_id=job_id, outcome="done")
    assert sorted(row["task_id"] for row in ledger) == sorted(row["task_id"] for row in rows)


async def test_it_runs_from_admission_to_publication(room: Room) -> None:
    for pool in ("left", "right", "right"):
        room.worker(pool)
    job_id = await room.admit()
    job = await room.end_of(job_id, "completed")
    await check_sum(room, job_id, job)
    assert await room.events(job_id, "completed") == ["queued", "started", "completed"]
    record = await SqlStore(room.database).job(TENANT, job_id)
    assert record is not None
    assert record.state == "completed"
    (ratio,) = await room.look.rows(tables.cost_ratios)
    assert (ratio["pool"], ratio["num_runs"]) == ("right", 6)  # only what has an estimate teaches
    assert ratio["ratio"] == pytest.approx(1.0)


async def test_an_executor_that_dies_costs_one_attempt_of_one_shard(room: Room) -> None:
    room.worker("left")
    victim = room.worker("right", dies_at="work")
    job_id = await room.admit()
    assert await asyncio.to_thread(victim.is_dead.wait, WAIT_S)
    assert victim.held is not None
    room.worker("right")
    job = await room.end_of(job_id, "completed")
    await check_sum(room, job_id, job)
    lost = victim.held.task.task_id
    assert [outcome for _, outcome, _ in await room.look.ledger(lost)] == ["lost", "done"]
    assert (await room.look.task(lost)).attempt == 2
    others = await room.look.rows(tables.tasks, job_id=job_id, attempt=1)
    assert len(others) == 7
    assert await room.events(job_id, "completed") == ["queued", "started", "queued", "resumed", "completed"]


async def test_a_cancelled_job_ends_on_both_pools_and_makes_place_for_the_next(room: Room) -> None:
    room.worker("left")
    workers = [room.worker("right", is_open=False) for _ in range(2)]
    job_id = await room.admit()

    async def both_work() -> bool:
        return (await room.look.shards(job_id, "work")).count("leased") == 2

    await wait_for("two shards to run", both_work)
    assert await room.look.shards(job_id, "work") == ["leased"] * 2 + ["ready"] * 4
    with grpc.insecure_channel(room.process.address) as channel:
        stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        stub.Cancel(scheduler_pb2.CancelRequest(job_id=job_id, tenant_id=TENANT))
    await room.end_of(job_id, "cancelled")
    assert set(await room.look.shards(job_id, "work")) == {"cancelled"}
    assert await room.events(job_id, "cancelled") == ["queued", "started", "cancelled"]

    async def both_stopped() -> bool:
        return all(worker.held is not None and worker.held.is_over for worker in workers)

    await wait_for("both executors to stop", both_stopped)
    for worker in workers:
        worker.gate.set()
    following = await room.admit()
    await check_sum(room, following, await room.end_of(following, "completed"))
