"""One job's stream, step by step: what is told when Redis or SQL is away, and when nothing happens."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
from starlette.types import Message
from starlette.websockets import WebSocket

from vitascope_common import keys
from vitascope_common.errors import UnavailableError
from vitascope_common.events import EventType, StoredEvent
from vitascope_common.jobs import TERMINAL_JOB, JobState
from vitascope_gateway import connection as connection_module
from vitascope_gateway import positions as positions_module
from vitascope_gateway import sse, ws
from vitascope_gateway import stream as stream_module
from vitascope_gateway.connection import HAND_OVER, MAX_AT_ONCE_BYTES, SEND_BUFFER_BYTES, MessageOutlet
from vitascope_gateway.hub import MAX_WAITING_EVENTS, FeedHub, FeedRead, Follower, Signal
from vitascope_gateway.objects import Urls
from vitascope_gateway.positions import PositionPoller
from vitascope_gateway.service import JobRecord, QueuePosition
from vitascope_gateway.silences import Silences
from vitascope_gateway.stream import END_ID, History, JobStream
from vitascope_gateway.told import Pause, told

JOB = "video_" + "0" * 32
RECORD = JobRecord(
    JOB,
    "acme",
    JobState.RUNNING,
    "denoising",
    "tiny",
    "a circle",
    {"seconds": "4", "width_px": 64, "height_px": 64, "seed": 1, "fps": 8, "num_frames": 33},
    {},
    1000,
)


def event(number: int, kind: EventType = EventType.PROGRESS) -> StoredEvent:
    return StoredEvent(f"{number}-0", JOB, kind, {"step": number})


class World:
    """Redis and SQL as a test wants them."""

    def __init__(self) -> None:
        self.events: list[StoredEvent] = []
        self.is_redis_away = False
        self.record: JobRecord | None = RECORD
        self.is_sql_away = False
        self.hub = FeedHub(self)
        self.now_s = 0.0
        self.poller = PositionPoller(self, lambda: self.now_s)
        self.place: QueuePosition | None = QueuePosition(3, 40.0)
        self.asked: list[list[str]] = []
        self.fed: asyncio.Queue[StoredEvent | None] = asyncio.Queue()
        self.num_reads = 0
        self.page = 4
        self.is_live = False

    async def read(self, job_id: str, after: str) -> History:
        self.num_reads += 1
        if self.is_redis_away:
            raise UnavailableError
        at = await self.event(job_id, after)
        if after and at is None:
            return History([], None, has_more=False)
        rest = self.events[self.events.index(at) + 1 :] if at else self.events
        return History(rest[: self.page], at, has_more=len(rest) >= self.page)

    async def event(self, job_id: str, event_id: str) -> StoredEvent | None:
        return next((one for one in self.events if one.id == event_id), None)

    async def newest_id(self, job_id: str) -> str:
        return self.events[-1].id if self.events else ""

    def parts(self) -> list[frozenset[str]]:
        return [frozenset(keys.feed(shard) for shard in range(keys.NUM_EVENT_SHARDS))]

    async def positions(self, part: frozenset[str], before: object) -> dict[str, str]:
        if self.is_redis_away:
            raise UnavailableError
        return {}

    async def read_feeds(self, positions: dict[str, str]) -> FeedRead:
        self.is_live = True
        item = await self.fed.get()
        if item is None:
            self.is_redis_away = True
            raise UnavailableError
        return FeedRead([item])

    async def queue_positions(self, job_ids: Sequence[str]) -> Mapping[str, QueuePosition]:
        self.asked.append(list(job_ids))
        if self.place is None:
            raise UnavailableError
        return dict.fromkeys(job_ids, self.place)

    async def is_asked_again(self) -> None:
        """Wait until an answer that was given after this call has been told."""
        enough = len(self.asked) + 2
        await until(lambda: len(self.asked) >= enough)

    async def reload(self) -> JobRecord | None:
        if self.is_sql_away:
            raise UnavailableError
        return self.record

    async def open_jobs(self, job_ids: Iterable[str]) -> frozenset[str]:
        record = await self.reload()
        return frozenset({JOB} if record is not None and record.state not in TERMINAL_JOB else ())

    def stream(self, last_event_id: str = "", record: JobRecord = RECORD) -> AsyncGenerator[bytes, None]:
        return _frames(self.job_stream(last_event_id, record))

    def job_stream(self, last_event_id: str = "", record: JobRecord = RECORD) -> JobStream:
        return JobStream(
            record,
            last_event_id,
            hub=self.hub,
            histories=self,
            positions=self.poller,
            reload=self.reload,
            is_open=Silences(self).is_open,
            urls=Urls("http://x"),
        )


async def _frames(stream: JobStream) -> AsyncGenerator[bytes]:
    """Yield one frame at a time, however many are there at once."""
    yield b"retry: 1000\n\n"
    async with contextlib.aclosing(stream.batches()) as batches:
        async for batch in batches:
            for item in batch:
                yield sse.frame(item)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEARTBEAT_S", "TERMINAL_PATIENCE_S", "AWAY_S"):
        monkeypatch.setattr(stream_module, name, 0.03)
    monkeypatch.setattr(positions_module, "POLL_S", 0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 — a test's condition
            await asyncio.sleep(0.001)


def names(frames: list[bytes]) -> list[str]:
    return [next(line[7:] for line in frame.decode().splitlines() if line.startswith("event: ")) for frame in frames]


async def collect(frames: AsyncGenerator[bytes, None], num: int) -> list[bytes]:
    found: list[bytes] = []
    async with asyncio.timeout(5):
        while len(found) < num:
            frame = await anext(frames)
            if not frame.startswith((b"retry", b":")):
                found.append(frame)
    return found


async def test_silence_is_filled_with_comments() -> None:
    world = World()
    frames = world.stream(record=QUEUED)
    assert await anext(frames) == b"retry: 1000\n\n"
    assert [await anext(frames) for _ in range(3)] == [b": heartbeat\n\n"] * 3
    world.is_sql_away = True
    assert await anext(frames) == b": heartbeat\n\n"
    await frames.aclose()
    assert world.hub.num_followers == 0


async def test_after_a_silence_sql_says_that_the_job_is_over() -> None:
    world = World()
    frames = world.stream(record=QUEUED)
    await anext(frames)
    world.record = replace(RECORD, state=JobState.FAILED, error_code="poison")
    rest = [frame async for frame in frames]
    assert names(rest) == ["snapshot"]
    assert ids(rest) == [END_ID]
    assert b'"code":"poison"' in rest[0]


async def test_an_event_that_is_written_at_once_leaves_no_silence_of_two_heartbeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_module, "HEARTBEAT_S", 0.5)
    told_at_s: list[float] = []

    def take(one: object) -> bool:
        told_at_s.append(time.monotonic())
        return True

    world = World()
    world.events = [event(1, EventType.QUEUED), event(2)]
    async with running(world.hub.run()):
        await until(lambda: world.is_live)
        async with contextlib.aclosing(world.job_stream("2-0").batches(take)) as batches:
            beat = asyncio.ensure_future(anext(batches))
            await until(lambda: world.num_reads > 0)
            world.fed.put_nowait(event(3))
            assert await beat == [Pause.HEARTBEAT]
    assert time.monotonic() - told_at_s[0] < 0.8


async def test_where_a_preview_lies_is_nobodys_business_outside() -> None:
    world = World()
    data = {"step": 9, "preview": {"step": 8, "key": "work/j/generate/0/1/preview-000008.webp"}}
    world.events = [event(1, EventType.QUEUED), StoredEvent("2-0", JOB, EventType.PROGRESS, data)]
    world.events.append(event(3, EventType.COMPLETED))
    told = b"".join([frame async for frame in world.stream()])
    assert b'"step":9,"preview":{"step":8,"url":"/v1/videos/' + JOB.encode() + b'/preview"}' in told
    assert b"work/" not in told


async def test_a_job_that_was_deleted_ends_its_streams() -> None:
    world = World()
    frames = world.stream(record=QUEUED)
    await anext(frames)
    world.record = None
    assert [frame async for frame in frames] == []


async def test_what_the_feed_and_the_history_both_tell_is_told_once() -> None:
    world = World()
    world.events = [event(1, EventType.QUEUED), event(2)]
    frames = world.stream()
    assert len(await collect(frames, 2)) == 2
    reader = asyncio.create_task(world.hub.run())
    for number in (2, 3, 1):
        world.fed.put_nowait(event(number))
    world.events.append(event(3))
    world.fed.put_nowait(event(4, EventType.COMPLETED))
    rest = [frame async for frame in frames if not frame.startswith(b":")]
    assert [frame.split(b"\n")[0] for frame in rest] == [b"id: 3-0", b"id: 4-0"]
    reader.cancel()


async def test_with_redis_away_sql_speaks_and_with_both_away_the_stream_stays() -> None:
    world = World()
    world.events = [event(1, EventType.QUEUED)]
    frames = world.stream()
    await collect(frames, 1)
    reader = asyncio.create_task(world.hub.run())
    await until(lambda: world.num_reads >= 1)
    world.fed.put_nowait(None)
    await until(lambda: world.is_redis_away)
    assert names(await collect(frames, 2)) == ["snapshot", "snapshot"]
    world.is_sql_away = True
    async with asyncio.timeout(5):
        while await anext(frames) != b": waiting\n\n":
            pass
    world.is_sql_away, world.is_redis_away = False, False
    world.events.append(event(2))
    world.events.append(event(3, EventType.COMPLETED))
    rest = [frame async for frame in frames if frame.startswith(b"id: ")]
    assert [frame.split(b"\n")[0] for frame in rest] == [b"id: 2-0", b"id: 3-0"]
    reader.cancel()


async def test_a_lost_history_is_replaced_by_a_snapshot_that_can_be_resumed_from() -> None:
    world = World()
    world.events = [event(7)]
    frames = world.stream("5-0")
    (snapshot,) = await collect(frames, 1)
    assert snapshot.startswith(b"id: 7-0\nevent: snapshot\n")
    await frames.aclose()


async def test_an_id_from_the_future_does_not_hide_what_happens_when_there_is_no_history() -> None:
    world = World()
    reader = asyncio.create_task(world.hub.run())
    await until(lambda: world.is_live)
    frames = world.stream("99-0")
    assert names(await collect(frames, 1)) == ["snapshot"]
    world.fed.put_nowait(event(1))
    assert (await collect(frames, 1))[0].startswith(b"id: 1-0\nevent: progress\n")
    await frames.aclose()
    reader.cancel()


async def test_a_running_job_without_any_history_begins_with_a_snapshot_and_lives_on() -> None:
    world = World()
    async with running(world.hub.run()):
        await until(lambda: world.is_live)
        frames = world.stream()
        (snapshot,) = await collect(frames, 1)
        assert snapshot.startswith(b"event: snapshot\n")
        world.fed.put_nowait(event(1))
        assert ids(await collect(frames, 1)) == ["1-0"]
        await frames.aclose()


async def test_a_history_without_its_beginning_starts_with_a_snapshot_that_covers_it() -> None:
    world = World()
    world.events = [event(7), event(8)]
    reader = asyncio.create_task(world.hub.run())
    await until(lambda: world.is_live)
    frames = world.stream()
    (snapshot,) = await collect(frames, 1)
    assert snapshot.startswith(b"id: 8-0\nevent: snapshot\n")
    for number in (8, 9):
        world.fed.put_nowait(event(number))
    assert (await collect(frames, 1))[0].startswith(b"id: 9-0\n")
    await frames.aclose()
    reader.cancel()


async def test_a_history_that_begins_where_the_job_was_queued_once_more_has_lost_its_beginning() -> None:
    world = World()
    world.events = [replace(event(7, EventType.QUEUED), data={"reason": "worker_lost"}), event(8)]
    frames = world.stream()
    (snapshot,) = await collect(frames, 1)
    assert snapshot.startswith(b"id: 8-0\nevent: snapshot\n")
    await frames.aclose()


async def test_a_gap_is_told_once_sql_can_tell_it_and_nothing_overtakes_that() -> None:
    world = World()
    world.events = [event(7)]
    world.is_sql_away = True
    frames = world.stream("5-0")
    assert [await anext(frames) for _ in range(3)] == [b"retry: 1000\n\n", b": waiting\n\n", b": waiting\n\n"]
    world.is_sql_away = False
    assert (await collect(frames, 1))[0].startswith(b"id: 7-0\nevent: snapshot\n")
    await frames.aclose()


def ids(frames: list[bytes]) -> list[str]:
    return [frame.decode().splitlines()[0].removeprefix("id: ") for frame in frames]


@pytest.mark.parametrize("num", [1, 3, 4, 5, 8, 9, 12])
@pytest.mark.parametrize("seen", [0, 1, 3, 4, 5, 8])
async def test_pages_are_the_history_wherever_one_begins_and_it_ends(num: int, seen: int) -> None:
    world = World()
    world.events = [event(1, EventType.QUEUED), *(event(number) for number in range(2, num + 1))]
    world.events.append(event(num + 1, EventType.COMPLETED))
    frames = world.stream(f"{seen}-0" if 0 < seen <= num else "")
    rest = [frame async for frame in frames if frame.startswith(b"id: ")]
    assert ids(rest) == [one.id for one in world.events[seen if seen <= num else 0 :]]
    assert world.hub.num_followers == 0


@pytest.mark.parametrize("num", [3, 4, 5, 8])
async def test_after_the_last_page_comes_what_is_live(num: int) -> None:
    world = World()
    world.events = [event(1, EventType.QUEUED), *(event(number) for number in range(2, num + 1))]
    async with running(world.hub.run()):
        await until(lambda: world.is_live)
        frames = world.stream()
        await collect(frames, num)
        assert await anext(frames) == b": heartbeat\n\n"
        for number in (num, num + 1):
            world.fed.put_nowait(event(number))
        assert ids(await collect(frames, 1)) == [f"{num + 1}-0"]
        await frames.aclose()


async def test_what_happens_while_pages_are_read_is_told_once_and_in_order() -> None:
    world = World()
    world.events = [event(1, EventType.QUEUED), *(event(number) for number in range(2, 11))]
    async with running(world.hub.run()):
        await until(lambda: world.is_live)
        frames = world.stream()
        found = await collect(frames, 2)
        while len(found) < 20:  # two more come for one that is told: pages and feed tell the same ones
            number = len(world.events) + 1
            if number <= 20:
                world.events.append(event(number))
                world.fed.put_nowait(world.events[-1])
                await until(world.fed.empty)
            found += await collect(frames, 1)
        world.fed.put_nowait(event(21, EventType.COMPLETED))
        found += [frame async for frame in frames if frame.startswith(b"id: ")]
    assert ids(found) == [f"{number}-0" for number in range(1, 22)]


async def test_a_history_that_is_trimmed_while_it_is_read_goes_on_with_a_snapshot() -> None:
    world = World()
    world.events = [event(1, EventType.QUEUED), *(event(number) for number in range(2, 11))]
    frames = world.stream()
    await collect(frames, 4)
    del world.events[:7]
    (snapshot,) = await collect(frames, 1)
    assert snapshot.startswith(b"id: 10-0\nevent: snapshot\n")
    assert await anext(frames) == b": heartbeat\n\n"
    await frames.aclose()


async def test_redis_going_between_two_pages_is_bridged_by_sql_and_then_read_on() -> None:
    world = World()
    world.events = [event(1, EventType.QUEUED), *(event(number) for number in range(2, 7))]
    frames = world.stream()
    await collect(frames, 4)
    world.is_redis_away = True
    assert names(await collect(frames, 2)) == ["snapshot", "snapshot"]
    world.is_redis_away = False
    async with asyncio.timeout(5):
        while (frame := await anext(frames)).startswith(b"event: snapshot"):
            pass
    assert ids([frame, *await collect(frames, 1)]) == ["5-0", "6-0"]
    await frames.aclose()


@pytest.mark.parametrize("last_event_id", ["", "1-0"])
async def test_a_page_of_what_nobody_here_knows_is_a_gap(last_event_id: str) -> None:
    world = World()
    world.events = [event(1, EventType.QUEUED), event(9)]

    async def read(job_id: str, after: str) -> History:
        return History([], world.events[0] if after else None, has_more=True)

    world.read = read  # type: ignore[method-assign]
    frames = world.stream(last_event_id)
    (snapshot,) = await collect(frames, 1)
    assert snapshot.startswith(b"id: 9-0\nevent: snapshot\n")
    assert await anext(frames) == b": heartbeat\n\n"
    await frames.aclose()


async def test_a_full_follower_is_closed_and_its_neighbour_is_not() -> None:
    follower, other = Follower(JOB), Follower(JOB)
    for number in range(MAX_WAITING_EVENTS + 1):
        follower.put(told(event(number)))
    one = told(event(1))
    other.put(one)
    assert await follower.next(1) == (Signal.CLOSE,)
    assert await other.next(1) == [one]
    assert await other.next(0.01) == []


async def test_a_closing_hub_ends_every_stream_present_and_future() -> None:
    world = World()
    frames = world.stream(record=QUEUED)
    await anext(frames)
    world.hub.close()
    assert [frame async for frame in frames] == []
    assert [frame async for frame in world.stream(record=QUEUED)] == [b"retry: 1000\n\n"]


QUEUED = replace(RECORD, state=JobState.QUEUED, phase="queued")
PLACE = b'event: queued\ndata: {"position":3,"eta_s":40.0,"id":"%s","type":"queued"}\n\n' % JOB.encode()


@contextlib.asynccontextmanager
async def running(*duties: Coroutine[None, None, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(duty) for duty in duties]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_follower_hears_where_a_waiting_job_stands_whenever_that_changes() -> None:
    world = World()
    world.events, world.record = [event(1, EventType.QUEUED)], QUEUED
    frames = world.stream(record=QUEUED)
    async with running(world.poller.run()):
        assert (await collect(frames, 2))[1] == PLACE  # without an id: Last-Event-ID stays what it was
        num_asked = len(world.asked)
        assert await anext(frames) == b": heartbeat\n\n"  # asked again and again, told once
        assert len(world.asked) > num_asked
        world.place = QueuePosition(2, None)
        (moved,) = await collect(frames, 1)
        assert b'"position":2,"eta_s":null' in moved
    await frames.aclose()


async def test_an_end_that_comes_nearer_as_promised_is_told_once_and_one_that_moves_again() -> None:
    world, follower = World(), Follower(JOB)
    world.place = QueuePosition(3, 200.0)
    world.poller.watch(follower)
    async with running(world.poller.run()):
        assert await follower.next(5) == [world.place]
        for now_s, eta_s in ((100.0, 100.0), (110.0, 100.0), (198.0, 2.0), (204.9, 0.0)):  # at most a tenth or 5 s late
            world.place, world.now_s = QueuePosition(3, eta_s), now_s
            await world.is_asked_again()
        for now_s, eta_s in ((205.0, 1.0), (205.0, None), (205.0, 1.0)):  # 6 s late; nobody works; somebody does
            world.place, world.now_s = QueuePosition(3, eta_s), now_s
            assert await follower.next(5) == [world.place]


async def test_all_waiting_jobs_are_one_question_and_those_that_wait_no_more_are_not_in_it() -> None:
    world = World()
    async with running(world.poller.run()):
        jobs = [f"video_{number:032x}" for number in range(3)]
        followers = [Follower(job) for job in (*jobs, jobs[0])]
        for follower in followers:
            world.poller.watch(follower)
        assert [await follower.next(5) for follower in followers] == [[world.place]] * 4
        assert world.asked[0] == jobs
        for follower in followers:
            world.poller.unwatch(follower)
            world.poller.unwatch(follower)
        world.asked.clear()
        late = Follower(JOB)
        world.poller.watch(late)
        assert await late.next(5) == [world.place]
        assert world.asked[0] == [JOB]


async def test_a_place_is_never_told_after_the_job_has_started() -> None:
    world = World()
    world.events, world.record = [event(1, EventType.QUEUED)], QUEUED
    frames = world.stream(record=QUEUED)
    async with running(world.hub.run(), world.poller.run()):
        assert names(await collect(frames, 2)) == ["queued", "queued"]
        for number, kind in enumerate((EventType.STARTED, EventType.PROGRESS, EventType.PREEMPTED), 2):
            world.place = QueuePosition(number, 1.0)  # the scheduler still thinks so
            world.events.append(event(number, kind))
            world.fed.put_nowait(world.events[-1])
            told = names(await collect(frames, 1))
            assert told == [kind.value] or (kind is EventType.STARTED and told == ["queued"])
            if told == ["queued"]:
                assert names(await collect(frames, 1)) == ["started"]
        assert names(await collect(frames, 1)) == ["queued"]  # it waits again
    await frames.aclose()


async def test_a_stream_that_resumes_after_the_start_asks_for_no_place() -> None:
    world = World()
    world.events = [event(1, EventType.QUEUED), event(2, EventType.STARTED)]
    frames = world.stream("2-0", QUEUED)  # SQL was read before the claim, Redis after it
    async with running(world.poller.run()):
        assert await anext(frames) == b"retry: 1000\n\n"
        assert await anext(frames) == b": heartbeat\n\n"
        assert world.asked == []
    await frames.aclose()


async def test_a_scheduler_that_is_away_or_does_not_know_tells_no_place() -> None:
    world = World()
    world.events, world.record, world.place = [event(1, EventType.QUEUED)], QUEUED, None
    frames = world.stream(record=QUEUED)
    async with running(world.poller.run()):
        await collect(frames, 1)
        assert await anext(frames) == b": heartbeat\n\n"
        world.place = QueuePosition(None, None)
        assert await anext(frames) == b": heartbeat\n\n"
        world.place = QueuePosition(3, 40.0)
        assert await collect(frames, 1) == [PLACE]
    await frames.aclose()


async def test_more_jobs_than_one_question_may_name_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions_module, "MAX_JOBS_PER_CALL", 2)
    world = World()
    followers = [Follower(f"video_{number:032x}") for number in range(5)]
    for follower in followers:
        world.poller.watch(follower)
    async with running(world.poller.run()):
        assert [await follower.next(5) for follower in followers] == [[world.place]] * 5
        assert [len(one) for one in world.asked[:3]] == [2, 2, 1]


async def test_one_question_covers_all_that_are_silent_and_a_failure_reaches_each() -> None:
    asked: list[list[str]] = []

    class Jobs:
        async def open_jobs(self, job_ids: Iterable[str]) -> frozenset[str]:
            asked.append(sorted(job_ids))
            if "away" in asked[-1]:
                raise UnavailableError
            return frozenset(asked[-1]) - {"over"}

    silences = Silences(Jobs())
    questions = [silences.is_open(job_id) for job_id in ("a", "over", "a", *map(str, range(600)))]
    assert await asyncio.gather(*questions) == [True, False, True] + [True] * 600
    assert [len(one) for one in asked] == [500, 102]
    failed = await asyncio.gather(silences.is_open("away"), silences.is_open("b"), return_exceptions=True)
    assert [type(one) for one in failed] == [UnavailableError] * 2
    assert await silences.is_open("b")


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[MessageOutlet, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Give the outlet of a WebSocket, and its client's side."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[MessageOutlet] = loop.create_future()

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            accepted.set_result(MessageOutlet(transport, set()))

    async with asyncio.timeout(5), await loop.create_server(Server, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        outlet = await accepted
        yield outlet, reader, writer
        writer.close()
        await until(lambda: outlet.is_lost)


async def test_the_kernel_keeps_little_of_a_stream() -> None:
    async with connected() as (outlet, _, _):
        kept_bytes = outlet._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert kept_bytes <= 2 * SEND_BUFFER_BYTES  # by itself it would be megabytes on loopback


async def test_a_websocket_is_pinged_and_lives_as_long_as_something_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "SEND_TIMEOUT_S", 0.05)
    world = World()
    world.events = [event(1, EventType.QUEUED), event(2)]
    ping, pong = b"\x89\x00", b"\x8a\x80mask"
    async with connected() as (outlet, reader, writer):
        outlet.start(ws.tell(world.job_stream("2-0"), outlet))
        for _ in range(3):
            assert await reader.readexactly(2) == ping
            writer.write(pong)
        with contextlib.suppress(ConnectionError):
            assert set((await reader.read()).split(ping)) == {b""}  # and then it ends


async def test_a_websocket_that_says_too_much_at_once_is_not_heard() -> None:
    async with connected() as (outlet, reader, _):
        outlet.data_received(b"\x89\x80mask" * (MAX_AT_ONCE_BYTES // 6 + 1))
        assert not outlet.is_ready
        assert (await reader.read())[:4] == b"\x88\x02" + (1009).to_bytes(2)


async def test_a_websocket_that_does_not_read_the_answers_is_not_asked_for_more() -> None:
    async with connected() as (outlet, _, _):
        outlet.pause_writing()
        outlet.data_received(b"\x89\x80mask")
        assert not outlet._transport.is_reading()
        outlet.resume_writing()
        assert outlet._transport.is_reading()


async def test_a_fault_of_ours_closes_a_websocket_and_is_not_swallowed() -> None:
    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        pass

    async def fail() -> JobStream:
        raise ZeroDivisionError

    async with connected() as (outlet, reader, _):
        accepted = WebSocket({"type": "websocket", "extensions": {HAND_OVER: lambda: outlet}}, receive, send)
        with pytest.raises(ZeroDivisionError):
            await ws.mirror(accepted, fail)
        assert await reader.readexactly(4) == b"\x88\x02" + (1011).to_bytes(2)
