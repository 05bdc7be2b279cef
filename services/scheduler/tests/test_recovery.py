"""Relay, reaper and reconciler on a real Redis and a real database, with Redis wiped in the middle."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from vitascope_common import ids, keys, redis_clients, tables
from vitascope_common.database import Database
from vitascope_common.errors import UnavailableError
from vitascope_common.events import Event, EventType
from vitascope_common.executor import Action, Outcome
from vitascope_common.jobs import Kind, Progress, Stage
from vitascope_common.testing import free_port
from vitascope_scheduler import reconciler
from vitascope_scheduler.adapters.celery_sender import TASK_NAME, CelerySender
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.dispatch import Dispatcher, Timing
from vitascope_scheduler.job_manager import JobManager, Report, TaskStatus
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.reconciler import Reconciler
from vitascope_scheduler.relay import Relay
from vitascope_scheduler.service import Beat, Scheduler
from vitascope_scheduler.tasks import TaskRow
from vitascope_scheduler.testing import NUM_STEPS, TENANT, admit, artifact, checkpoint
from vitascope_scheduler.worker import Worker

TTL_MS = 10_000
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Clock:
    """Time that moves when a test says so."""

    def __init__(self) -> None:
        self.now_ms = ids.now_ms()

    def __call__(self) -> int:
        return self.now_ms


class Room:
    """The scheduler without its edge and without its loops."""

    def __init__(self, database: Database, redis: Redis, broker_url: str) -> None:
        self.database, self.redis, self.clock = database, redis, Clock()
        self.queue = RedisQueue(redis)
        self.manager, self.reader = JobManager(database, self.clock), Reader(database)
        self.sender = CelerySender(broker_url)
        timing = Timing(lease_ttl_ms=TTL_MS)
        self.dispatcher = Dispatcher(self.manager, self.reader, self.queue, self.sender, timing, self.clock)
        self.relay = Relay(self.reader, self.dispatcher, self.queue, self.clock)
        self.reconciler = Reconciler(self.manager, self.reader, self.dispatcher, self.relay)
        self.scheduler = Scheduler(self.manager, self.reader, self.dispatcher, self.relay)

    async def worker(self, worker_id: str = "w1", slots: int = 1) -> None:
        await self.scheduler.register(Worker(worker_id, "gpu-worker", "default", "cpu", 1, slots, ()))

    async def beat(self, *tasks: TaskStatus, worker_id: str = "w1") -> list[Action]:
        answer = await self.scheduler.heartbeat(Beat(worker_id, "gpu-worker", "default", (), tasks))
        if answer.must_register:
            await self.worker(worker_id)
        return [action for _, action in answer.actions]

    async def tell(self) -> None:
        assert await self.relay.tell("event")
        assert await self.relay.tell("ready")

    async def inbox(self, worker_id: str = "w1") -> list[str]:
        entries = await self.redis.xrange(keys.inbox("default", worker_id))
        commands = [json.loads(fields["data"]) for _, fields in entries]
        return [task["task_id"] for one in commands if one["command"] == "assign" for task in one["tasks"]]

    async def events(self, job_id: str) -> list[str]:
        return [fields["type"] for _, fields in await self.redis.xrange(keys.events(job_id))]

    async def task(self, task_id: str) -> TaskRow:
        return (await self.reader.tasks([task_id]))[task_id]

    async def num_outbox(self) -> int:
        async with self.database.read() as connection:
            count = sa.select(sa.func.count()).select_from(tables.outbox)
            return int((await connection.execute(count)).scalar_one())

    async def messages(self) -> list[dict[str, Any]]:
        return [json.loads(message) for message in await self.redis.lrange("postproc", 0, -1)]


@pytest.fixture
async def room(database: Database, redis: Redis, redis_url: str) -> AsyncIterator[Room]:
    room = Room(database, redis, redis_url)
    yield room
    room.sender.close()


@pytest.fixture
async def first(room: Room) -> str:
    return ids.task_id(await admit(room.database, traceparent=TRACEPARENT), "generate", 0)


async def finish_first(room: Room, first: str) -> str:
    """Bring the job to its second stage; return that task."""
    assert (await room.scheduler.claim(first, "w1")).task
    assert (await room.scheduler.report(Report(first, 1, Outcome.DONE, (artifact("mezzanine"),)))).is_accepted
    return first.replace("generate", "finish")


class TestRelay:
    async def test_it_tells_in_order_and_once(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        assert await room.inbox() == [first]
        assert await room.num_outbox() == 0
        row = await room.task(first)
        assert row.epoch == await room.queue.epoch("default")
        last = await finish_first(room, first)
        await room.tell()
        assert await room.events(ids.job_id_of(first)) == ["queued", "started", "postprocessing"]
        (message,) = await room.messages()
        assert message["headers"]["task"] == TASK_NAME
        assert message["headers"]["traceparent"][:35] == TRACEPARENT[:35]
        assert (await room.task(last)).epoch

    async def test_inbox_entries_carry_the_trace(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        ((_, fields),) = await room.redis.xrange(keys.inbox("default", "w1"))
        (task,) = json.loads(fields["data"])["tasks"]
        assert task["traceparent"][:35] == TRACEPARENT[:35]

    async def test_a_death_before_the_rows_are_deleted_tells_twice_and_changes_nothing(
        self, room: Room, first: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await room.worker(slots=5)

        async def die(_: object) -> None:
            raise RuntimeError("killed here")

        for topic in ("event", "ready"):
            with monkeypatch.context() as patch:
                patch.setattr(room.reader, "forget", die)
                with pytest.raises(RuntimeError):
                    await room.relay.tell(topic)
        await room.tell()
        assert await room.inbox() == [first]
        assert await room.events(ids.job_id_of(first)) == ["queued"]

    async def test_a_broker_that_is_away_holds_up_nobody_else(
        self, database: Database, redis: Redis, redis_url: str
    ) -> None:
        room = Room(database, redis, f"redis://127.0.0.1:{free_port()}/0")
        first = ids.task_id(await admit(database), "generate", 0)
        await room.worker(slots=2)
        await room.tell()
        await finish_first(room, first)
        other = ids.task_id(await admit(database), "generate", 0)
        assert not await room.relay.tell("ready")
        assert await room.relay.tell("event")
        assert other in await room.inbox()
        assert await room.num_outbox() == 1
        await room.reconciler.reconcile()  # neither does it stop the reconciler
        await redis.delete(keys.scheduler_leader("relay.ready"))  # another replica takes over, and its broker is there
        healthy = Room(database, redis, redis_url)
        assert await healthy.relay.tell("ready")
        assert len(await room.messages()) == 1

    async def test_redis_away_keeps_every_row(self, database: Database) -> None:
        redis = redis_clients.connect_async(f"redis://127.0.0.1:{free_port()}/0")
        room = Room(database, redis, f"redis://127.0.0.1:{free_port()}/0")
        await admit(database)
        for topic in ("event", "ready"):
            with pytest.raises(UnavailableError):
                await room.relay.tell(topic)
        assert await room.num_outbox() == 2
        await redis.aclose()

    async def test_an_unreadable_row_does_not_block_the_others(self, room: Room, first: str) -> None:
        async with room.database.transaction() as connection:
            values = {"tenant_id": TENANT, "job_id": "video_0", "topic": "event", "payload": {"type": "?"}}
            await connection.execute(sa.insert(tables.outbox).values(**values, created_at_ms=1))
        await admit(room.database)
        await room.tell()
        assert await room.num_outbox() == 0

    async def test_a_claim_that_overtakes_the_relay_leaves_no_ghost(self, room: Room, first: str) -> None:
        stale = await room.task(first)
        await finish_first(room, first)
        await room.dispatcher.hand_out(stale, "some epoch")
        assert await room.queue.depth("default") == (0, 0)


class TestReaper:
    async def test_nothing_is_reaped_right_after_a_start(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        await room.scheduler.claim(first, "w1")
        room.clock.now_ms += TTL_MS + 1  # slept: no heartbeat could come through
        await room.reconciler.tick()
        assert (await room.task(first)).is_leased

    async def test_a_lost_lease_goes_back_and_is_handed_out_again(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        await room.scheduler.claim(first, "w1")
        assert await room.beat(TaskStatus(first, 1, used_s=3.0, checkpoint=checkpoint(10))) == [Action.RUN]
        for _ in range(12):
            room.clock.now_ms += 1_000
            await room.reconciler.tick()
        row = await room.task(first)
        assert (row.state, row.attempt, row.num_failures) == ("ready", 1, 1)
        assert await room.queue.depth("default") == (1, 0)
        await room.worker("w2")
        assert await room.inbox("w2") == [first]
        claim = await room.scheduler.claim(first, "w2")
        assert claim.task is not None
        assert (claim.task.attempt, claim.task.checkpoints[0].done) == (2, 10)
        assert await room.beat(TaskStatus(first, 1)) == [Action.STALE]
        await room.tell()
        events = await room.events(ids.job_id_of(first))
        assert events == ["queued", "started", "checkpoint", "queued", "resumed"]

    async def test_nothing_is_reaped_when_sql_was_away_between_two_pools(
        self, room: Room, first: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await room.worker()
        await room.tell()
        for _ in range(11):  # trusted
            room.clock.now_ms += 1_000
            await room.reconciler.tick()
        await room.beat()
        assert (await room.scheduler.claim(first, "w1")).task
        room.dispatcher.pools.add("another")
        expired_leases = room.queue.expired_leases

        async def hang(pool: str, now_ms: int, limit: int) -> list[str]:
            found = await expired_leases(pool, now_ms, limit)
            if pool == "another":
                room.clock.now_ms += TTL_MS + 1
            return found

        monkeypatch.setattr(room.queue, "expired_leases", hang)
        await room.reconciler.tick()
        assert (await room.task(first)).is_leased

    async def test_a_dead_worker_is_found_soon_after_the_clock_went_back(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        assert (await room.scheduler.claim(first, "w1")).task
        assert await room.beat(TaskStatus(first, 1)) == [Action.RUN]
        await room.reconciler.tick()
        room.clock.now_ms -= 3_600_000
        for _ in range(5 * TTL_MS // 1_000):
            room.clock.now_ms += 1_000
            await room.reconciler.tick()
        assert not (await room.task(first)).is_leased

    async def test_no_lease_is_lost_when_the_clock_went_back(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        assert (await room.scheduler.claim(first, "w1")).task
        await room.reconciler.tick()
        room.clock.now_ms -= 3_600_000
        for _ in range(5 * TTL_MS // 1_000):
            room.clock.now_ms += 1_000
            await room.reconciler.tick()
            assert await room.beat(TaskStatus(first, 1)) == [Action.RUN]
        assert (await room.task(first)).attempt == 1

    async def test_heartbeats_keep_a_lease(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        await room.scheduler.claim(first, "w1")
        for _ in range(30):
            room.clock.now_ms += 1_000
            assert await room.beat(TaskStatus(first, 1)) == [Action.RUN]
            await room.reconciler.tick()
        assert (await room.task(first)).is_leased

    async def test_a_handover_to_a_dead_worker_is_no_failure(self, room: Room, first: str) -> None:
        await room.worker("dead")
        await room.tell()
        assert await room.inbox("dead") == [first]
        for _ in range(11):
            room.clock.now_ms += 1_000
            await room.reconciler.tick()
        await room.worker("w2")
        assert await room.inbox("w2") == [first]
        row = await room.task(first)
        assert (row.state, row.attempt, row.num_failures) == ("ready", 0, 0)

    async def test_what_a_dead_scheduler_did_not_settle_is_settled(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        await room.scheduler.claim(first, "w1")
        report = Report(first, 1, Outcome.DONE, (artifact("mezzanine"),))
        assert (await room.manager.report(report)).is_accepted  # committed, and then it died
        for _ in range(12):
            room.clock.now_ms += 1_000
            await room.beat()
            await room.reconciler.tick()
        assert await room.queue.depth("default") == (0, 0)
        assert await room.queue.idle_workers("default", room.clock()) == ["w1"]

    async def test_a_lost_postproc_task_is_sent_again(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        last = await finish_first(room, first)
        await room.tell()
        assert (await room.scheduler.claim(last, "p1")).task
        assert await room.queue.without_lease("postproc", [last]) == []
        await room.scheduler.heartbeat(Beat("p1", "postproc", "postproc", (), (TaskStatus(last, 1),)))
        for _ in range(12):
            room.clock.now_ms += 1_000
            await room.reconciler.tick()
        assert (await room.task(last)).num_failures == 1
        await room.tell()
        assert len(await room.messages()) == 2
        assert await room.queue.without_lease("postproc", [last]) == [last]

    async def test_a_message_that_the_broker_lost_is_sent_again(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        await finish_first(room, first)
        await room.tell()
        await room.redis.delete("postproc")
        await room.reconciler.reconcile()
        assert await room.messages() == []
        room.clock.now_ms += 60_001
        await room.reconciler.reconcile()
        assert len(await room.messages()) == 1


class TestWipe:
    async def test_everything_is_rebuilt_from_sql(self, room: Room, first: str) -> None:
        waiting = [ids.task_id(await admit(room.database), "generate", 0) for _ in range(3)]
        await room.worker()
        await room.tell()
        assert (await room.scheduler.claim(first, "w1")).task
        await room.reconciler.reconcile()
        await room.redis.flushall()

        assert await room.beat(TaskStatus(first, 1)) == [Action.RUN]
        await room.reconciler.reconcile()
        await room.reconciler.tick()
        assert await room.queue.depth("default") == (3, 1)
        for _ in range(12):
            room.clock.now_ms += 1_000
            assert await room.beat(TaskStatus(first, 1)) == [Action.RUN]
            await room.reconciler.reconcile()
            await room.reconciler.tick()
        row = await room.task(first)
        assert (row.is_leased, row.attempt, row.num_failures) == (True, 1, 0)
        for expected in waiting:
            held = (await room.inbox())[-1] if await room.inbox() else first
            await room.scheduler.report(Report(held, 1, Outcome.DONE, (artifact("mezzanine"),)))
            assert (await room.inbox())[-1] == expected
            assert (await room.scheduler.claim(expected, "w1")).task

    async def test_a_worker_that_died_with_redis_loses_its_task(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        await room.scheduler.claim(first, "w1")
        await room.reconciler.reconcile()
        await room.redis.flushall()
        for second in range(14):
            await room.reconciler.reconcile()
            await room.reconciler.tick()
            assert (await room.task(first)).is_leased or second >= TTL_MS / 1000
            room.clock.now_ms += 1_000
        assert (await room.task(first)).state == "ready"
        assert await room.queue.depth("default") == (1, 0)

    async def test_a_wipe_during_a_handover_hands_out_again(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        assert await room.inbox() == [first]
        await room.redis.flushall()
        await room.beat()
        await room.reconciler.reconcile()
        await room.reconciler.tick()
        assert await room.inbox() == [first]


class Crew:
    """Four workers with ten slots each that work as commands come, one second a round."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.held: dict[str, dict[str, int]] = {f"w{number}": {} for number in range(4)}

    async def register(self, worker_id: str) -> None:
        await self.room.scheduler.register(Worker(worker_id, "gpu-worker", "default", "cpu", 1, 10, ()))

    async def round(self, num_reports: int) -> None:
        """Take what is assigned, report the first of what each holds, beat; then the scheduler looks around."""
        for worker_id, held in self.held.items():
            for task_id in dict.fromkeys(await self.room.inbox(worker_id)):
                if task_id not in held:
                    claim = await self.room.scheduler.claim(task_id, worker_id)
                    if claim.task is not None:
                        held[task_id] = claim.task.attempt
            for task_id in list(held)[:num_reports]:
                report = Report(task_id, held.pop(task_id), Outcome.DONE, (artifact("mezzanine"),), used_s=1.0)
                assert (await self.room.scheduler.report(report)).is_accepted
            statuses = tuple(TaskStatus(task_id, attempt) for task_id, attempt in held.items())
            answer = await self.room.scheduler.heartbeat(Beat(worker_id, "gpu-worker", "default", (), statuses))
            assert {action for _, action in answer.actions} <= {Action.RUN}
            if answer.must_register:
                await self.register(worker_id)
        await self.room.reconciler.reconcile()
        await self.room.reconciler.tick()
        self.room.clock.now_ms += 1_000


async def test_wipes_under_a_hundred_jobs_lose_nothing_and_repeat_nothing(room: Room) -> None:
    jobs = [await admit(room.database) for _ in range(100)]
    tasks = [ids.task_id(job_id, "generate", 0) for job_id in jobs]
    crew = Crew(room)
    for worker_id in crew.held:
        await crew.register(worker_id)
    await room.tell()
    await crew.round(0)
    assert sum(map(len, crew.held.values())) == 40
    await room.redis.flushall()
    await crew.round(0)
    assert await room.queue.depth("default") == (60, 40)
    for number in range(40):
        if number in (1, 3):
            await room.redis.flushall()
        await crew.round(5)
        if not any(crew.held.values()) and not await room.reader.pools() & {"default"}:
            break
    rows = await room.reader.tasks(tasks)
    assert {(row.state, row.attempt, row.num_failures) for row in rows.values()} == {("done", 1, 0)}
    async with room.database.read() as connection:
        ledger = (await connection.execute(sa.select(tables.ledger.c.task_id, tables.ledger.c.outcome))).all()
    assert sorted(map(tuple, ledger)) == sorted((task_id, "done") for task_id in tasks)
    assert await room.queue.depth("default") == (0, 0)


async def test_a_heartbeat_that_its_report_overtook_charges_nothing(room: Room, first: str) -> None:
    await room.worker(slots=2)
    await room.tell()
    await room.scheduler.claim(first, "w1")
    other = ids.task_id(await admit(room.database), "generate", 0)  # keeps the pool busy, so that tags stay
    await room.tell()
    late = await room.task(first)
    await room.scheduler.report(Report(first, 1, Outcome.DONE, (artifact("mezzanine"),), used_s=4.0))
    flow = keys.flows("default", "standard")
    before = await room.redis.hget(flow, f"F:{TENANT}")
    assert float(before or 0) == 14.0  # 4 s used and the 10 s that the other is charged
    assert await room.queue.lease(late, "w1", room.clock(), TTL_MS) == "created"
    await room.dispatcher.agree(first)
    assert await room.redis.hget(flow, f"F:{TENANT}") == before
    assert await room.queue.depth("default") == (0, 1)
    assert await room.inbox() == [first, other]


async def test_a_redis_that_hangs_holds_up_no_call(database: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, nobody reads
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        redis = redis_clients.connect_async(url)
        room = Room(database, redis, url)
        jobs = [await admit(database) for _ in range(4)]
        claimed, running, done, cancelled = (ids.task_id(job_id, "generate", 0) for job_id in jobs)
        for task_id in (running, done):
            assert (await room.manager.claim(task_id, "w1")).task
        beat = Beat("w1", "gpu-worker", "default", (), (TaskStatus(running, 1, checkpoint=checkpoint(10)),))
        begun = time.monotonic()
        claim, answer, ended, state = await asyncio.gather(
            room.scheduler.claim(claimed, "w1"),
            room.scheduler.heartbeat(beat),
            room.scheduler.report(Report(done, 1, Outcome.FAILED)),
            room.scheduler.cancel(ids.job_id_of(cancelled), TENANT),
        )
        with pytest.raises(UnavailableError):
            await room.worker()
        assert time.monotonic() - begun < 4.0  # half a caller's patience for each of the two rounds
        assert claim.task is not None
        assert answer.actions[0][1] is Action.RUN
        assert (ended.is_accepted, state) == (True, "cancelled")
        assert (await room.task(running)).newest_done == 10
        room.sender.close()
        await redis.aclose()


async def test_what_a_leaving_worker_yields_goes_to_another_at_once(room: Room, first: str) -> None:
    await room.worker()
    await room.tell()
    await room.scheduler.claim(first, "w1")
    await room.worker("w2")
    leaving = Beat("w1", "gpu-worker", "default", (), (TaskStatus(first, 1),), is_draining=True)
    assert not (await room.scheduler.heartbeat(leaving)).must_register
    yielded = Report(first, 1, Outcome.YIELDED, checkpoint=checkpoint(7))
    assert (await room.scheduler.report(yielded)).state == "ready"
    assert await room.inbox("w2") == [first]
    claim = await room.scheduler.claim(first, "w2")
    assert claim.task is not None
    assert [one.done for one in claim.task.checkpoints] == [7]


async def test_what_a_leaving_worker_was_just_handed_goes_to_another_at_once(room: Room, first: str) -> None:
    await room.worker()
    await room.tell()
    assert await room.inbox() == [first]
    await room.worker("w2")
    await room.scheduler.heartbeat(Beat("w1", "gpu-worker", "default", is_draining=True))
    assert await room.inbox("w2") == [first]
    assert (await room.task(first)).num_failures == 0


class TestCancel:
    async def test_a_cancelled_task_frees_its_slot_when_the_worker_lets_go(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        await room.scheduler.claim(first, "w1")
        other = ids.task_id(await admit(room.database), "generate", 0)
        await room.tell()
        assert await room.scheduler.cancel(ids.job_id_of(first), TENANT) == "cancelled"
        assert await room.beat(TaskStatus(first, 1)) == [Action.STOP]
        assert await room.inbox() == [first]
        assert await room.beat() == []
        assert await room.inbox() == [first, other]

    async def test_a_cancelled_handover_is_freed_by_the_refused_claim(self, room: Room, first: str) -> None:
        await room.worker()
        await room.tell()
        other = ids.task_id(await admit(room.database), "generate", 0)
        await room.tell()
        await room.scheduler.cancel(ids.job_id_of(first), TENANT)
        assert (await room.scheduler.claim(first, "w1")).reason == "cancelled"
        assert await room.inbox() == [first, other]


class TestDeadlines:
    DEADLINE_MS = 5_000

    @pytest.fixture
    async def urgent(self, room: Room) -> str:
        job_id = await admit(room.database, deadline_at_ms=room.clock() + self.DEADLINE_MS)
        return ids.task_id(job_id, "generate", 0)

    async def test_what_waits_leaves_its_queue(self, room: Room, urgent: str) -> None:
        await room.tell()
        room.clock.now_ms += self.DEADLINE_MS - 1
        await room.reconciler.tick()
        assert await room.queue.depth("default") == (1, 0)
        room.clock.now_ms += 1
        await room.reconciler.tick()
        assert await room.queue.depth("default") == (0, 0)
        await room.tell()
        assert await room.events(ids.job_id_of(urgent)) == ["queued", "failed"]
        ((_, fields),) = await room.redis.xrevrange(keys.events(ids.job_id_of(urgent)), count=1)
        assert json.loads(fields["data"])["code"] == "expired"

    async def test_what_runs_is_stopped(self, room: Room, urgent: str) -> None:
        await room.worker()
        await room.tell()
        assert (await room.scheduler.claim(urgent, "w1")).task
        room.clock.now_ms += self.DEADLINE_MS
        await room.reconciler.tick()
        assert await room.beat(TaskStatus(urgent, 1)) == [Action.STOP]
        following = ids.task_id(await admit(room.database), "generate", 0)
        await room.tell()
        await room.beat()  # it has let go
        assert await room.inbox() == [urgent, following]

    async def test_a_redis_that_is_away_holds_up_no_deadline(
        self, room: Room, urgent: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        later = await admit(room.database, deadline_at_ms=room.clock() + self.DEADLINE_MS)

        async def away(*_: object) -> str:
            raise UnavailableError("Redis is away.")

        monkeypatch.setattr(room.queue, "stop", away)
        room.clock.now_ms += self.DEADLINE_MS
        with pytest.raises(UnavailableError):
            await room.reconciler.tick()
        for task_id in (urgent, ids.task_id(later, "generate", 0)):
            assert (await room.task(task_id)).state == "cancelled"


class TestDrains:
    async def waits(self, room: Room) -> bool:
        await room.beat()
        await room.reconciler.reconcile()
        await room.reconciler.tick()
        return not await room.inbox()

    @pytest.mark.parametrize("worker_id", ["w1", ""], ids=["one", "all"])
    async def test_a_drained_worker_gets_nothing_whatever_redis_forgets(
        self, room: Room, first: str, worker_id: str
    ) -> None:
        await room.manager.set_drain("default", worker_id, True, TENANT)
        await room.manager.set_drain("default", worker_id, True, TENANT)
        await room.reconciler.reconcile()
        await room.worker()
        await room.tell()
        assert await self.waits(room)
        await room.redis.flushall()
        await room.reconciler.reconcile()
        assert await self.waits(room)
        await room.manager.set_drain("default", worker_id, False, TENANT)
        assert not await self.waits(room)
        assert await room.inbox() == [first]

    async def test_the_drain_of_one_worker_is_not_that_of_another(self, room: Room, first: str) -> None:
        await room.manager.set_drain("default", "w2", True, TENANT)
        await room.worker()
        await room.tell()
        assert not await self.waits(room)
        assert await room.reader.drains() == {"default": ["w2"]}


class TestPreemption:
    @pytest.fixture
    async def running(self, room: Room) -> TaskStatus:
        """A batch task that has run for long enough, half done, on the only slot."""
        task_id = ids.task_id(await admit(room.database, class_name="batch"), "generate", 0)
        await room.worker()
        await room.tell()
        assert (await room.scheduler.claim(task_id, "w1")).task
        room.clock.now_ms += room.dispatcher.timing.preemption.min_run_ms
        half = TaskStatus(task_id, 1, Progress(15, NUM_STEPS, "step", "generating"), used_s=5.0)
        assert await room.beat(half) == [Action.RUN]
        return half

    @pytest.fixture
    async def urgent(self, room: Room, running: TaskStatus) -> str:
        """A realtime task that has waited long enough."""
        task_id = ids.task_id(await admit(room.database, class_name="realtime"), "generate", 0)
        await room.tell()
        room.clock.now_ms += room.dispatcher.timing.preemption.wait_ms
        return task_id

    async def test_heartbeats_repeat_the_wish_and_the_report_hands_the_slot_on(
        self, room: Room, running: TaskStatus, urgent: str
    ) -> None:
        await room.reconciler.tick()
        entries = await room.redis.xrange(keys.inbox("default", "w1"))
        assert json.loads(entries[-1][1]["data"]) == {"command": "yield", "task_id": running.task_id, "attempt": 1}
        assert [await room.beat(running) for _ in range(2)] == [[Action.YIELD]] * 2
        yielded = Report(running.task_id, 1, Outcome.YIELDED, used_s=5.0, checkpoint=checkpoint(15))
        assert (await room.scheduler.report(yielded)).state == "ready"
        assert await room.inbox() == [running.task_id, urgent]
        await room.tell()  # the outbox says it again
        assert await room.queue.depth("default") == (1, 1)
        (lease,) = (await room.queue.view("default", room.clock())).leases
        assert (lease.task_id, lease.state) == (urgent, "handed_over")

    async def test_a_death_after_the_commit_hands_the_slot_on_all_the_same(
        self, room: Room, running: TaskStatus, urgent: str
    ) -> None:
        await room.reconciler.tick()
        yielded = Report(running.task_id, 1, Outcome.YIELDED, used_s=5.0, checkpoint=checkpoint(15))
        await room.manager.report(yielded)  # and nobody tells Redis but the outbox
        await room.tell()
        assert await room.inbox() == [running.task_id, urgent]

    async def test_a_wish_that_a_wipe_forgot_is_taken_back(self, room: Room, running: TaskStatus, urgent: str) -> None:
        await room.reconciler.tick()
        await room.redis.flushall()
        assert await room.beat(running) == [Action.RUN]

    async def test_a_redis_that_is_away_says_run(
        self, room: Room, running: TaskStatus, urgent: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await room.reconciler.tick()

        async def away(*_: object) -> str:
            raise UnavailableError("Redis is away")

        monkeypatch.setattr(room.queue, "lease", away)
        assert await room.beat(running) == [Action.RUN]


async def test_a_zombie_is_refused_at_every_effect(room: Room, first: str) -> None:
    job_id = ids.job_id_of(first)
    await room.worker()
    await room.tell()
    claim = await room.scheduler.claim(first, "w1")
    assert claim.row is not None
    await room.beat(TaskStatus(first, 1, used_s=2.0, checkpoint=checkpoint(10)))
    assert (await room.manager.lose(claim.row, room.clock())).is_accepted  # its lease ran out while it slept
    assert (await room.scheduler.claim(first, "w2")).task
    await room.tell()

    def progress(attempt: int) -> Event:
        return Event(job_id, EventType.PROGRESS, {"step": 11}, task=first, attempt=attempt)

    await room.queue.append_event(progress(2))
    before = await room.task(first), await room.events(job_id)
    assert await room.beat(TaskStatus(first, 1, used_s=9.0, checkpoint=checkpoint(20))) == [Action.STALE]
    await room.queue.append_event(progress(1))
    for outcome in Outcome:
        report = Report(first, 1, outcome, (artifact("mezzanine"),), used_s=9.0, checkpoint=checkpoint(20))
        assert not (await room.scheduler.report(report)).is_accepted
    await room.tell()
    assert (await room.task(first), await room.events(job_id)) == before
    async with room.database.read() as connection:
        ledger = (await connection.execute(sa.select(tables.ledger.c.outcome, tables.ledger.c.used_s))).all()
    assert [tuple(row) for row in ledger] == [("lost", 2.0)]


async def test_an_autoscaler_sees_the_gpu_seconds_that_wait(room: Room, first: str) -> None:
    await admit(room.database, cost_s=32.5)
    await room.tell()
    await room.reconciler.tick()
    name, labels = "vitascope_scheduler_backlog_gpu_seconds", {"pool": "default"}
    assert REGISTRY.get_sample_value(name, labels) == 42.5
    await room.worker()
    await room.reconciler.tick()
    assert REGISTRY.get_sample_value(name, labels) == 32.5


async def test_of_many_shards_a_queue_holds_four(room: Room) -> None:
    stage = Stage("work", executor="gpu-worker", pool="default", needs=None, yieldable=True, unit="item", num_shards=9)
    job_id = await admit(room.database, kind=Kind("many", (stage,)))
    await room.tell()
    assert await room.queue.depth("default") == (4, 0)
    await room.redis.flushall()
    await room.reconciler.reconcile()
    assert await room.queue.depth("default") == (4, 0)
    await room.worker(slots=3)
    for shard in range(3):
        assert (await room.scheduler.claim(ids.task_id(job_id, "work", shard), "w1")).task
    await room.tell()
    assert await room.queue.depth("default") == (4, 3)


async def test_the_sweep_finds_what_redis_lost_without_a_new_epoch(room: Room, first: str) -> None:
    await room.tell()
    assert await room.queue.settle("default", first, 1, 0.0, room.clock())  # whatever took it away
    await room.redis.delete(keys.queued_task("default", first))
    await room.reconciler.reconcile()
    assert await room.queue.depth("default") == (0, 0)
    await room.reconciler.sweep()
    assert await room.queue.depth("default") == (1, 0)


async def test_much_is_done_a_few_pages_per_round(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest waits for the next round, so that deadlines are met meanwhile."""
    monkeypatch.setattr(reconciler, "PAGE", 2)
    monkeypatch.setattr(reconciler, "PAGES_PER_ROUND", 2)
    for number in range(9):
        await admit(room.database, now_ms=room.clock() + number)
    depths = []
    for _ in range(3):
        await room.reconciler.reconcile()
        depths.append((await room.queue.depth("default"))[0])
    assert depths == [4, 8, 9]
    for key in [key async for key in room.redis.scan_iter(f"{keys.queued_task('default', '')}*")]:
        await room.redis.delete(key)
    unknown = [task async for task in missing(room)]
    assert len(unknown) == 9
    left = []
    for _ in range(3):
        await room.reconciler.sweep()
        left.append(len([task async for task in missing(room)]))
    assert left == [5, 1, 0]


async def missing(room: Room) -> AsyncIterator[str]:
    """Name the ready tasks that Redis knows nothing of."""
    ready = await room.reader.queued("default", (0, ""), 100)
    for task_id in await room.queue.unknown("default", [row.task_id for row in ready]):
        yield task_id


async def test_long_work_of_its_own_makes_the_reaper_distrust_nobody(
    room: Room, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.worker()
    await room.tell()
    assert (await room.scheduler.claim(first, "w1")).task
    for _ in range(11):  # trusted
        room.clock.now_ms += 1_000
        await room.reconciler.tick()
        await room.beat(TaskStatus(first, 1))
    for _ in range(20):
        await admit(room.database, now_ms=room.clock())
    hand_out = room.dispatcher.hand_out

    async def slowly(row: TaskRow, epoch: str) -> None:
        room.clock.now_ms += 1_000
        await hand_out(row, epoch)

    monkeypatch.setattr(room.dispatcher, "hand_out", slowly)
    await room.reconciler.reconcile()
    await room.reconciler.tick()
    assert not (await room.task(first)).is_leased, "nobody has renewed it for 20 s, and that was seen"


async def test_a_lease_that_is_renewed_while_others_are_reaped_is_left(
    room: Room, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.worker()
    await room.tell()
    assert (await room.scheduler.claim(first, "w1")).task
    for _ in range(9):
        room.clock.now_ms += 1_000
        await room.reconciler.tick()
    is_same_epoch = room.reconciler._is_same_epoch

    async def after_a_heartbeat(pool: str) -> bool:
        assert await room.beat(TaskStatus(first, 1)) == [Action.RUN]
        return await is_same_epoch(pool)

    monkeypatch.setattr(room.reconciler, "_is_same_epoch", after_a_heartbeat)
    for _ in range(3):
        room.clock.now_ms += 1_000
        await room.reconciler.tick()
    assert (await room.task(first)).is_leased


async def test_what_is_broken_in_one_pool_holds_up_no_other(room: Room, first: str) -> None:
    other = ids.task_id(await admit(room.database, pool="another"), "generate", 0)
    await room.scheduler.register(Worker("w2", "gpu-worker", "another", "cpu", 1, 1, ()))
    await room.worker()
    await room.tell()
    assert (await room.scheduler.claim(first, "w1")).task
    assert (await room.scheduler.claim(other, "w2")).task
    late = ids.task_id(await admit(room.database), "generate", 0)
    waiting = ids.task_id(await admit(room.database, pool="another"), "generate", 0)
    key = keys.in_flight("another")
    await room.redis.delete(key)
    await room.redis.set(key, "not what a script expects")
    failures = REGISTRY.get_sample_value("vitascope_scheduler_duty_failures_total", {"duty": "reconciler"}) or 0.0
    assert not await room.relay.tell("ready")
    assert (await room.task(late)).epoch
    assert not (await room.task(waiting)).epoch
    for _ in range(3 * TTL_MS // 1_000):
        room.clock.now_ms += 1_000
        await room.reconciler.reconcile()
        await room.reconciler.tick()
    assert (await room.task(first)).num_failures == 1
    assert (
        REGISTRY.get_sample_value("vitascope_scheduler_duty_failures_total", {"duty": "reconciler"}) or 0.0
    ) > failures
    await room.redis.delete(key)
    await room.tell()
    assert (await room.task(waiting)).epoch


async def test_an_event_that_cannot_be_told_holds_up_its_own_job_alone(room: Room, first: str) -> None:
    stuck = ids.job_id_of(first)
    await room.redis.rpush(keys.event_fence(stuck), "no number")
    assert (await room.scheduler.claim(first, "w1")).task
    other = await admit(room.database)
    assert not await room.relay.tell("event")
    assert await room.events(other) == ["queued"]
    await room.redis.delete(keys.event_fence(stuck))
    assert await room.relay.tell("event")
    assert await room.events(stuck) == ["queued", "started"]


async def test_a_pool_that_nobody_needs_is_forgotten(room: Room, first: str) -> None:
    await room.worker()
    await room.scheduler.register(Worker("w2", "gpu-worker", "idle", "cpu", 1, 1, ()))
    room.dispatcher.pools.add("nobody")
    await room.tell()
    await room.reconciler.sweep()
    assert room.dispatcher.pools == {"default", "idle"}
    room.clock.now_ms += TTL_MS + 1  # and its worker is gone
    await room.reconciler.sweep()
    assert room.dispatcher.pools == {"default"}


async def test_what_a_cancelled_attempt_used_until_it_stopped_is_paid(room: Room, first: str) -> None:
    await room.worker()
    await room.tell()
    assert (await room.scheduler.claim(first, "w1", 2)).task
    assert await room.scheduler.cancel(ids.job_id_of(first), TENANT) == "cancelled"
    assert (await room.scheduler.report(Report(first, 1, Outcome.CANCELLED, used_s=4.0))).is_accepted
    assert await room.redis.hget(keys.served("default"), f"served:standard:{TENANT}") == "8000"


async def test_weights_and_caps_of_sql_reach_what_waits(room: Room, first: str) -> None:
    await room.tell()
    await room.reconciler.reconcile()
    async with room.database.transaction() as connection:
        await connection.execute(sa.update(tables.tenants).values(weight=3.0, max_in_flight=2))
    await room.reconciler.reconcile()
    assert await room.redis.hget(keys.flows("default", "standard"), f"weight:{TENANT}") == "3.0"
    assert await room.redis.hget(keys.in_flight("default"), f"cap:{TENANT}") == "2"


async def test_weights_and_caps_are_told_again_to_a_redis_that_lost_its_last_second(room: Room, first: str) -> None:
    await room.tell()
    async with room.database.transaction() as connection:
        await connection.execute(sa.update(tables.tenants).values(weight=3.0, max_in_flight=2))
    await room.reconciler.reconcile()
    flow, cap = keys.flows("default", "standard"), keys.in_flight("default")
    await room.redis.hset(flow, f"weight:{TENANT}", "1.0")  # what a replica knew that took over
    await room.redis.hset(cap, f"cap:{TENANT}", "0")
    await room.redis.delete(keys.epoch("default"))
    await room.reconciler.reconcile()
    assert await room.redis.hget(flow, f"weight:{TENANT}") == "3.0"
    assert await room.redis.hget(cap, f"cap:{TENANT}") == "2"


async def test_a_position_is_told_while_it_waits(room: Room, first: str) -> None:
    second = await admit(room.database)
    await room.tell()
    jobs = [second, ids.job_id_of(first)]
    place, _ = await room.scheduler.queue_positions(jobs)
    assert (place.position, place.eta_s) == (1, -1.0)  # nobody works there
    await room.worker()
    room.clock.now_ms += 2_000
    place, running = await room.scheduler.queue_positions(jobs)
    assert (place.position, running.position) == (0, -1)
    assert place.eta_s == pytest.approx(20.0, abs=2.1)
