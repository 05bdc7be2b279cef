"""Redis forgets, restarts without its last second, or fails over to a replica that never heard it: no job is lost.

The scheduler's own parts run here over SQLite with short periods, simulated workers claim, beat and report, and while
a hundred jobs run and wait the blow falls. Some wait that Redis will never have heard of, some are done that it takes
for running. In the end each has completed, in one attempt, and no queue holds anything.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from vitascope_common import ids, keys, redis_clients, tables
from vitascope_common.database import Database, migrate
from vitascope_common.errors import UnavailableError
from vitascope_common.executor import Action, Outcome
from vitascope_common.testing import RedisServer, debian_redis, redis_cluster, redis_sentinel
from vitascope_gpu_worker.adapters.inbox import InboxReader
from vitascope_gpu_worker.consumer import Assignment
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.dispatch import Dispatcher, Timing
from vitascope_scheduler.job_manager import JobManager, Report, TaskStatus
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.reconciler import Reconciler
from vitascope_scheduler.relay import Relay
from vitascope_scheduler.service import Beat, Scheduler
from vitascope_scheduler.testing import add_tenant, admit, artifact
from vitascope_scheduler.worker import Worker

T = TypeVar("T")
NUM_EARLY, NUM_LATE = 70, 30  # jobs; the late ones come in the time that is lost
NUM_JOBS = NUM_EARLY + NUM_LATE
NUM_WORKERS, NUM_SLOTS = 5, 4
NUM_RUNNING = NUM_WORKERS * NUM_SLOTS
TIMING = Timing(lease_ttl_ms=5_000, heartbeat_ms=1_000, tick_ms=300)
PATIENCE_S = 60.0


async def answered(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call until it is answered, as executors do: a busy SQLite may refuse it."""
    while True:
        try:
            return await call()
        except UnavailableError:
            await asyncio.sleep(0.05)


class Postproc:
    """Celery's place: takes the second stage of each job and finishes it at once."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[str] = asyncio.Queue()

    async def send(self, task_id: str, pool: str, traceparent: str) -> None:
        self.sent.put_nowait(task_id)

    async def run(self, scheduler: Scheduler) -> None:
        while True:
            task_id = await self.sent.get()
            claim = await answered(partial(scheduler.claim, task_id, "p1"))
            if claim.task is not None:
                manifest = artifact("manifest", "manifest")
                report = Report(task_id, claim.task.attempt, Outcome.DONE, (manifest,), used_s=0.1)
                await answered(partial(scheduler.report, report))


class SimulatedWorker:
    """Registers, reads its inbox with the worker's own reader, and says what a worker says.

    It computes on a task until one of `permits` to finish is free.
    """

    def __init__(self, url: str, scheduler: Scheduler, name: str, permits: asyncio.Semaphore) -> None:
        self._scheduler = scheduler
        self._permits = permits
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._held: dict[str, int] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._redis = redis_clients.connect(url, is_blocking=True)
        self._inbox = InboxReader(self._redis, "default", name, self._assigned, lambda command: None)
        self._inbox.start()

    def close(self) -> None:
        self._inbox.stop()

    async def run(self) -> None:
        """Beat for ever."""
        must_register = True
        while True:
            with contextlib.suppress(UnavailableError):
                if must_register:
                    worker = Worker(self._name, "gpu-worker", "default", "cpu", 1, NUM_SLOTS, ())
                    await self._scheduler.register(worker)
                statuses = tuple(TaskStatus(task_id, attempt, used_s=0.1) for task_id, attempt in self._held.items())
                answer = await self._scheduler.heartbeat(Beat(self._name, "gpu-worker", "default", (), statuses))
                must_register = answer.must_register
                for status, action in answer.actions:
                    assert action in (Action.RUN, Action.STALE), action
                    if action is Action.STALE and self._held.get(status.task_id) == status.attempt:
                        self._running[status.task_id].cancel()
            await asyncio.sleep(TIMING.heartbeat_ms / 1000)

    def _assigned(self, assignment: Assignment) -> None:
        self._loop.call_soon_threadsafe(self._begin, assignment.task_id)

    def _begin(self, task_id: str) -> None:
        if task_id not in self._running:  # an inbox may be read again from its start
            self._running[task_id] = self._loop.create_task(self._compute(task_id))

    async def _compute(self, task_id: str) -> None:
        try:
            claim = await answered(partial(self._scheduler.claim, task_id, self._name))
            if claim.task is None:
                return
            self._held[task_id] = claim.task.attempt
            await self._permits.acquire()
            outputs = (artifact("mezzanine"),)
            report = Report(task_id, claim.task.attempt, Outcome.DONE, outputs, used_s=0.1)
            await answered(partial(self._scheduler.report, report))
        finally:
            self._held.pop(task_id, None)
            self._running.pop(task_id, None)


class System:
    """The scheduler, its workers and their jobs."""

    def __init__(self, database: Database, url: str) -> None:
        self.database = database
        self.jobs: list[str] = []
        self.permits = asyncio.Semaphore(0)
        self.redis = redis_clients.connect_async(url)
        self.queue, self.manager, self.reader = RedisQueue(self.redis), JobManager(database), Reader(database)
        self.postproc = Postproc()
        dispatcher = Dispatcher(self.manager, self.reader, self.queue, self.postproc, TIMING)
        relay = Relay(self.reader, dispatcher, self.queue)
        reconciler = Reconciler(self.manager, self.reader, dispatcher, relay)
        self.scheduler = Scheduler(self.manager, self.reader, dispatcher, relay)
        self.workers = [SimulatedWorker(url, self.scheduler, f"w{index}", self.permits) for index in range(NUM_WORKERS)]
        duties: list[Coroutine[Any, Any, None]] = [relay.run("event"), relay.run("ready"), reconciler.run()]
        duties += [self.postproc.run(self.scheduler), *(worker.run() for worker in self.workers)]
        self._duties = {asyncio.create_task(duty) for duty in duties}

    async def close(self) -> None:
        for worker in self.workers:
            worker.close()
        failed = [duty for duty in self._duties if duty.done()]
        while self._duties:  # again, as a library may lose a cancel
            for duty in self._duties:
                duty.cancel()
            _, self._duties = await asyncio.wait(self._duties, timeout=0.2)
        await self.redis.aclose()
        for duty in failed:
            duty.result()

    async def count(self, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
        async with self.database.read() as connection:
            counted = await connection.execute(sa.select(sa.func.count()).select_from(table).where(*conditions))
            return int(counted.scalar_one())

    async def admit(self, num_jobs: int) -> None:
        """Admit jobs; return once Redis has been given them all."""
        for _ in range(num_jobs):
            self.jobs.append(await admit(self.database))
        async with asyncio.timeout(PATIENCE_S):
            while await self.count(tables.outbox, tables.outbox.c.topic == "ready"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def finish(self, num_tasks: int) -> None:
        """Let so many tasks of the first stage come to their end, and slots be taken again."""
        tasks = tables.tasks.c
        is_generate = tasks.stage == "generate"
        expected = await self.count(tables.tasks, is_generate, tasks.state == "done") + num_tasks
        for _ in range(num_tasks):
            self.permits.release()
        async with asyncio.timeout(PATIENCE_S):
            while await self.count(tables.tasks, is_generate, tasks.state == "done") < expected:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            while await self.count(tables.tasks, is_generate, tasks.state == "leased") < NUM_RUNNING:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def wait_completed(self) -> None:
        """Return once all jobs have completed."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.count(tables.jobs, tables.jobs.c.state == "completed") < NUM_JOBS:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def check_all_done_once(self) -> None:
        """Check SQL, and wait until nothing is left in Redis either."""
        async with self.database.read() as connection:
            columns = tables.ledger.c.task_id, tables.ledger.c.outcome
            ledger = [(row.task_id, row.outcome) for row in await connection.execute(sa.select(*columns))]
            attempts = Counter((await connection.execute(sa.select(tables.tasks.c.attempt))).scalars())
        assert Counter(outcome for _, outcome in ledger) == {"done": 2 * NUM_JOBS}
        assert len({task_id for task_id, _ in ledger}) == 2 * NUM_JOBS
        assert attempts == {1: 2 * NUM_JOBS}  # what ran went on running, and nothing ran twice
        async with asyncio.timeout(PATIENCE_S):
            while await self._left_in_redis() or await self.count(tables.outbox):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def check_events(self) -> None:
        """No state event is told twice."""
        for job_id in self.jobs:
            history: Any = await self.redis.xrange(keys.events(job_id))
            told = Counter(fields["type"] for _, fields in history)
            assert all(told[name] <= 1 for name in ("queued", "started", "postprocessing", "completed")), told

    async def _left_in_redis(self) -> bool:
        try:
            for pool in ("default", "postproc"):
                leases = await self.queue.expired_leases(pool, ids.now_ms() + 3600_000, 1)
                if await self.queue.depth(pool) != (0, 0) or leases:
                    return True
            return len(await self.queue.idle_workers("default", ids.now_ms())) < NUM_WORKERS
        except UnavailableError:  # a connection of before the blow
            return True


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'vitascope.db'}"
    await asyncio.to_thread(migrate, url)
    database = Database(url)
    await add_tenant(database)
    yield database
    await database.close()


@contextlib.asynccontextmanager
async def busy(database: Database, url: str) -> AsyncIterator[System]:
    """Run jobs until some are done, twenty run, most wait; the blow falls inside; then all must come to their end."""
    system = System(database, url)
    try:
        await system.admit(NUM_EARLY)
        await system.finish(10)
        epoch = await system.queue.epoch("default")
        yield system
        for _ in range(NUM_JOBS):
            system.permits.release()
        await system.wait_completed()
        await system.check_all_done_once()
        await system.check_events()
        assert await system.queue.epoch("default") != epoch
    finally:
        await system.close()


async def lose(system: System) -> None:
    """Let pass what will be lost: jobs come, others end, the next begin."""
    await system.admit(NUM_LATE)
    await system.finish(10)


@contextlib.contextmanager
def server_in(folder: Path, executable: Path | None = None) -> Iterator[RedisServer]:
    server = RedisServer(folder, executable=executable)
    try:
        server.start()
        yield server
    finally:
        server.kill()


async def test_flushall(database: Database, tmp_path: Path) -> None:
    with server_in(tmp_path / "redis") as server:
        async with busy(database, server.url) as system:
            await lose(system)
            await system.redis.flushall()


@pytest.mark.parametrize("executable", [pytest.param(lambda: None, id="6.2"), pytest.param(debian_redis, id="7.0")])
async def test_a_restart_without_the_last_second(
    database: Database, tmp_path: Path, executable: Callable[[], Path | None]
) -> None:
    """What was written after the copy was never synced: the machine went down with it."""
    with server_in(tmp_path / "redis", executable()) as server:
        async with busy(database, server.url) as system:
            server.copy_data(tmp_path / "copy")
            await lose(system)
            server.kill()
            server.restore_data(tmp_path / "copy")
            server.start()


async def test_sentinel_fails_over_to_a_replica_without_the_last_second(database: Database, tmp_path: Path) -> None:
    with redis_sentinel(tmp_path / "redis", executable=debian_redis()) as servers:
        async with busy(database, servers.url) as system:
            await asyncio.to_thread(servers.hold_back_replica)
            await lose(system)
            await asyncio.to_thread(servers.fail_over)


async def test_a_cluster_fails_over_to_a_replica_without_the_last_second(database: Database, tmp_path: Path) -> None:
    with redis_cluster(tmp_path / "redis", executable=debian_redis(), with_replicas=True) as servers:
        async with busy(database, servers.url) as system:
            pool = keys.epoch("default")
            await asyncio.to_thread(servers.shard(pool).hold_back_replica)
            await lose(system)
            await asyncio.to_thread(servers.fail_over, pool)


class Clock:
    """Time that moves when a test says so."""

    def __init__(self) -> None:
        self.now_ms = ids.now_ms()

    def __call__(self) -> int:
        return self.now_ms


class Slow:
    """One task that runs for longer than a lease, and a reaper that trusts what it sees; nothing moves by itself."""

    def __init__(self, database: Database, url: str) -> None:
        self.clock, self.redis, self.reader = Clock(), redis_clients.connect_async(url), Reader(database)
        self.queue = RedisQueue(self.redis)
        manager = JobManager(database, self.clock)
        dispatcher = Dispatcher(manager, self.reader, self.queue, Postproc(), TIMING, self.clock)
        self.relay = Relay(self.reader, dispatcher, self.queue, self.clock)
        self.reconciler = Reconciler(manager, self.reader, dispatcher, self.relay)
        self.scheduler = Scheduler(manager, self.reader, dispatcher, self.relay)
        self.task_id = ""

    async def begin(self, database: Database) -> None:
        self.task_id = ids.task_id(await admit(database), "generate", 0)
        await self.scheduler.register(Worker("w1", "gpu-worker", "default", "cpu", 1, 1, ()))
        assert await self.relay.tell("ready")
        assert (await self.scheduler.claim(self.task_id, "w1")).task

    async def go_on(self) -> None:
        for _ in range(3 * TIMING.lease_ttl_ms // TIMING.heartbeat_ms):
            self.clock.now_ms += TIMING.heartbeat_ms
            beat = Beat("w1", "gpu-worker", "default", (), (TaskStatus(self.task_id, 1),))
            assert [action for _, action in (await self.scheduler.heartbeat(beat)).actions] == [Action.RUN]
            await self.reconciler.reconcile()
            await self.reconciler.tick()

    async def is_undisturbed(self) -> bool:
        row = (await self.reader.tasks([self.task_id]))[self.task_id]
        return row.is_leased and row.num_failures == 0


async def test_leases_that_come_back_expired_are_left_to_the_heartbeats(database: Database, tmp_path: Path) -> None:
    """The restart falls between two looks at the epoch, and others have met the dead connections before."""
    with server_in(tmp_path / "redis") as server:
        slow = Slow(database, server.url)
        await slow.begin(database)
        server.copy_data(tmp_path / "copy")
        await slow.go_on()
        server.kill()
        server.restore_data(tmp_path / "copy")
        server.start()
        await slow.redis.connection_pool.disconnect()
        await slow.reconciler.tick()
        assert await slow.is_undisturbed()
        await slow.go_on()
        assert await slow.is_undisturbed()
        await slow.redis.aclose()


async def test_leases_that_vanish_while_they_are_looked_at_are_left_to_the_heartbeats(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server_in(tmp_path / "redis") as server:
        slow = Slow(database, server.url)
        await slow.begin(database)
        await slow.go_on()
        look = slow.queue.without_lease

        async def look_after_a_wipe(pool: str, task_ids: Sequence[str]) -> list[str]:
            await slow.redis.flushall()
            return await look(pool, task_ids)

        with monkeypatch.context() as patch:
            patch.setattr(slow.queue, "without_lease", look_after_a_wipe)
            await slow.reconciler.reconcile()
        assert await slow.is_undisturbed()
        await slow.go_on()
        assert await slow.is_undisturbed()
        await slow.redis.aclose()
