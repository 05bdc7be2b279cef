"""Watching a video over gRPC: history, then live, without gap or duplicate, whoever stops, dies or reads too slowly."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest

from vitascope_common import keys
from vitascope_common.events import Event, EventType, StoredEvent, append
from vitascope_gateway import stream as stream_module
from vitascope_gateway.follow import Following
from vitascope_gateway.grpc_api import api as api_module
from vitascope_gateway.grpc_api.api import VideoApi
from vitascope_gateway.grpc_api.server import make_server
from vitascope_gateway.hub import FeedHub, FeedRead
from vitascope_gateway.positions import PositionPoller
from vitascope_gateway.stream import History
from vitascope_gateway.testing import GatewayProcess
from vitascope_proto.v1 import videos_pb2 as pb
from vitascope_proto.v1.videos_pb2_grpc import VideoServiceStub

STEPS = 24
LIFE = [
    (EventType.STARTED, {}),
    (EventType.PROGRESS, {"step": 10, "steps": STEPS, "percent": 41.7, "eta_s": 3.5, "phase": "denoising"}),
    (EventType.CHECKPOINT, {"step": 10}),
    (EventType.PREEMPTED, {"step": 10}),
    (EventType.RESUMED, {"from_step": 10}),
    (EventType.PROGRESS, {"step": 11, "steps": STEPS, "eta_s": None, "preview": {"step": 11, "key": "work/secret"}}),
    (EventType.PARTIAL, {"tokens": ["a", "b"]}),
    (EventType.DECODING, {"step": 24, "steps": STEPS, "percent": 100.0, "phase": "decoding", "eta_s": None}),
    (EventType.POSTPROCESSING, {"stage": "encode"}),
    (EventType.COMPLETED, {}),
]


@contextmanager
def client(gateway: GatewayProcess, **options: int) -> Iterator[VideoServiceStub]:
    given = [(f"grpc.{name}", value) for name, value in options.items()]
    with grpc.insecure_channel(gateway.grpc_address, given) as channel:
        yield VideoServiceStub(channel)


def metadata(outside: Any) -> tuple[tuple[str, str], ...]:
    return (("authorization", outside.headers["Authorization"]),)


def happen(outside: Any, job_id: str, life: Sequence[tuple[EventType, dict[str, Any]]], version: int = 2) -> None:
    """Let a job live: events of state, as the scheduler writes them."""
    for number, (kind, data) in enumerate(life):
        assert append(outside.redis.client, Event(job_id, kind, data, version=version + number))


def watch(outside: Any, stub: VideoServiceStub, job_id: str, after: str = "") -> Any:
    request = pb.WatchRequest(video_id=job_id, last_event_id=after)
    return stub.Watch(request, metadata=metadata(outside), timeout=60)


def queued(outside: Any) -> str:
    job_id = str(outside.create())
    assert append(outside.redis.client, Event(job_id, EventType.QUEUED, {}, version=1))
    return job_id


def test_everything_that_happens_is_told_with_what_it_says(outside: Any) -> None:
    job_id = queued(outside)
    with client(outside.gateway) as stub:
        call = watch(outside, stub, job_id)
        first = next(call)
        assert (first.WhichOneof("what"), first.video_id, bool(first.id)) == ("queued", job_id, True)
        happen(outside, job_id, LIFE)
        events = [event for event in call if event.id]
    assert [event.WhichOneof("what") for event in events] == [kind.value for kind, _ in LIFE]
    progress = events[1].progress
    assert (progress.step, progress.steps, progress.percent, progress.phase) == (10, STEPS, 41.7, "denoising")
    assert (progress.eta_s, progress.HasField("preview_step")) == (3.5, False)
    assert (events[2].checkpoint.step, events[3].preempted.step, events[4].resumed.from_step) == (10, 10, 10)
    assert (events[5].progress.preview_step, events[5].progress.HasField("eta_s")) == (11, False)
    assert events[5].progress.preview_url == f"/v1/videos/{events[5].video_id}/preview"
    assert list(events[6].partial["tokens"]) == ["a", "b"]
    assert (events[7].decoding.steps, events[8].postprocessing.stage) == (STEPS, "encode")
    assert "secret" not in str(events)
    assert call.code() is grpc.StatusCode.OK


def test_a_failure_says_why(outside: Any) -> None:
    job_id = queued(outside)
    happen(outside, job_id, [(EventType.FAILED, {"code": "poison", "message": "It failed three times."})])
    with client(outside.gateway) as stub:
        *_, last = watch(outside, stub, job_id)
    assert (last.failed.code, last.failed.message) == ("poison", "It failed three times.")


def test_from_every_event_it_goes_on_with_the_next(outside: Any) -> None:
    job_id = queued(outside)
    happen(outside, job_id, LIFE)
    with client(outside.gateway) as stub:
        every = [event.id for event in watch(outside, stub, job_id)]
        assert len(every) == len(set(every)) == len(LIFE) + 1
        for number, event_id in enumerate(every):
            assert [event.id for event in watch(outside, stub, job_id, event_id)] == every[number + 1 :]
        for beginning in ("0", "0-0", " "):
            assert [event.id for event in watch(outside, stub, job_id, beginning)] == every


def test_what_is_no_longer_kept_is_one_snapshot(outside: Any) -> None:
    job_id = queued(outside)
    happen(outside, job_id, LIFE[:3])
    with client(outside.gateway) as stub:
        call = watch(outside, stub, job_id, "1-0")
        event = next(call)
        assert (event.WhichOneof("what"), event.snapshot.id, event.snapshot.seconds) == ("snapshot", job_id, "4")
        happen(outside, job_id, LIFE[-1:], version=10)
        assert [one.WhichOneof("what") for one in call if one.id] == ["completed"]


def test_a_finished_video_that_nothing_is_kept_of_is_told_once(outside: Any) -> None:
    job_id = queued(outside)
    outside.redis.client.delete(keys.events(job_id))
    with contextlib.closing(sqlite3.connect(outside.database_path, timeout=30)) as connection:
        connection.execute("UPDATE jobs SET state = 'completed', finished_at_ms = 1 WHERE job_id = ?", (job_id,))
        connection.commit()
    with client(outside.gateway) as stub:
        (snapshot,) = watch(outside, stub, job_id)
        assert snapshot.snapshot.status == pb.VIDEO_STATUS_COMPLETED
        again = watch(outside, stub, job_id, snapshot.id)
        assert list(again) == []
        assert again.code() is grpc.StatusCode.OK


def test_while_it_waits_its_place_is_told(outside: Any) -> None:
    job_id = queued(outside)
    outside.neighbours.place = 7
    try:
        with client(outside.gateway) as stub:
            call = watch(outside, stub, job_id)
            assert not next(call).queued.HasField("position")
            place = next(call)
            assert (place.id, place.queued.position, place.queued.eta_s) == ("", 7, 30.0)
            happen(outside, job_id, LIFE[-1:])
            list(call)
    finally:
        outside.neighbours.place = -1


def test_a_watcher_that_goes_leaves_nothing_behind(outside: Any, wait_for: Callable[..., Any]) -> None:
    job_id = queued(outside)
    with client(outside.gateway) as stub:
        call = watch(outside, stub, job_id)
        next(call)
        assert outside.gateway.metric("vitascope_gateway_followers") == 1
        call.cancel()
        wait_for("no follower", lambda: outside.gateway.metric("vitascope_gateway_followers") == 0)


class Feed:
    """The events of one job: live, and what was."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.events: list[StoredEvent] = []
        self.fed: asyncio.Queue[StoredEvent] = asyncio.Queue()

    def happen(self, kind: EventType, **data: Any) -> None:
        self.events.append(StoredEvent(f"{len(self.events) + 1}-0", self.job_id, kind, data))
        self.fed.put_nowait(self.events[-1])

    def parts(self) -> list[frozenset[str]]:
        return [frozenset(keys.feed(shard) for shard in range(keys.NUM_EVENT_SHARDS))]

    async def positions(self, part: frozenset[str], before: object) -> dict[str, str]:
        return {}

    async def read_feeds(self, positions: dict[str, str]) -> FeedRead:
        return FeedRead([await self.fed.get()])

    async def read(self, job_id: str, after: str) -> History:
        number = int(after.partition("-")[0] or 0)
        at = self.events[number - 1] if number else None
        return History(self.events[number : number + 64], at, has_more=len(self.events) >= number + 64)

    async def event(self, job_id: str, event_id: str) -> StoredEvent | None:
        return next((one for one in self.events if one.id == event_id), None)

    async def newest_id(self, job_id: str) -> str:
        return self.events[-1].id if self.events else ""


async def read_all(call: Any, found: list[str]) -> grpc.StatusCode:
    """Note the ids of what comes; return how it ended."""
    try:
        while (event := await call.read()) is not grpc.aio.EOF:
            found.append(event.id)
    except grpc.aio.AioRpcError as error:
        return error.code()
    code: grpc.StatusCode = await call.code()
    return code


@dataclass
class Watched:
    """VideoService over a feed that the test writes, and two channels to it: one takes little at a time."""

    feed: Feed
    hub: FeedHub
    slow: grpc.aio.Channel
    quick: grpc.aio.Channel
    key: str

    def follow(self, channel: grpc.aio.Channel, after: str = "") -> Any:
        request = pb.WatchRequest(video_id=self.feed.job_id, last_event_id=after)
        headers = (("authorization", f"Bearer {self.key}"),)
        return VideoServiceStub(channel).Watch(request, metadata=headers, timeout=60)

    async def happens_until(self, reader: Any, num_followers: int) -> None:
        """Let the job go on until fewer follow it; the reader gets every step at once."""
        async with asyncio.timeout(50):
            while self.hub.num_followers > num_followers:
                await self.step(reader)

    async def step(self, reader: Any) -> None:
        self.feed.happen(EventType.PROGRESS, step=len(self.feed.events), phase="x" * 2000)
        assert (await reader.read()).progress.step == len(self.feed.events) - 1


@asynccontextmanager
async def watched(inside: Any, job_id: str) -> AsyncIterator[Watched]:
    feed = Feed(job_id)
    hub = FeedHub(feed)
    reading = asyncio.create_task(hub.run())
    positions = PositionPoller(None)  # type: ignore[arg-type]  # nobody asks
    following = Following(inside.gateway, inside.store, hub, feed, positions)
    api = VideoApi(inside.gateway, inside.creation, inside.store, following)
    server = make_server("127.0.0.1", 0, api, inside.gateway, has_reflection=False)
    await server.start()
    narrow = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", narrow) as slow,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as quick,
    ):
        feed.happen(EventType.QUEUED)
        yield Watched(feed, hub, slow, quick, inside.keys["acme"])
    await server.drain(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


def test_a_watcher_that_does_not_read_is_let_go_and_can_resume(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs a window of HTTP/2 and one message, holds nobody up, and finds the rest where it left."""
    monkeypatch.setattr(api_module, "SEND_TIMEOUT_S", 0.3)
    job_id = inside.request("POST", "/v1/videos", json={"prompt": "x"}).json()["id"]

    async def run() -> None:
        async with watched(inside, job_id) as job:
            sleeper, reader = job.follow(job.slow), job.follow(job.quick)
            for call in (sleeper, reader):
                assert (await call.read()).WhichOneof("what") == "queued"
            await job.happens_until(reader, 1)
            found = ["1-0"]
            assert await read_all(sleeper, found) is grpc.StatusCode.UNAVAILABLE
            again = job.follow(job.slow, found[-1])
            job.feed.happen(EventType.COMPLETED)
            assert await read_all(again, found) is grpc.StatusCode.OK
            assert found == [event.id for event in job.feed.events]
            assert await read_all(reader, []) is grpc.StatusCode.OK
            assert job.hub.num_followers == 0

    inside.runner.run(run())


def test_a_watcher_that_dies_in_the_middle_is_no_fault_of_ours(inside: Any, caplog: pytest.LogCaptureFixture) -> None:
    job_id = inside.request("POST", "/v1/videos", json={"prompt": "x"}).json()["id"]

    async def run() -> None:
        async with watched(inside, job_id) as job:
            sleeper, reader = job.follow(job.slow), job.follow(job.quick)
            for call in (sleeper, reader):
                await call.read()
            for _ in range(200):  # 400 KB: more than it takes
                await job.step(reader)
            await job.slow.close(None)
            await job.happens_until(reader, 1)

    with caplog.at_level("WARNING"):
        inside.runner.run(run())
    assert caplog.records == []


def test_a_watcher_of_a_video_that_is_deleted_is_told(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "HEARTBEAT_S", 0.05)
    job_id = inside.request("POST", "/v1/videos", json={"prompt": "x"}).json()["id"]

    async def run() -> None:
        async with watched(inside, job_id) as job:
            call = job.follow(job.quick)
            await call.read()
            inside.sql("UPDATE jobs SET deleted_at_ms = 1")
            assert await read_all(call, []) is grpc.StatusCode.NOT_FOUND

    inside.runner.run(run())


def test_sigterm_tells_watchers_to_come_back_and_they_miss_nothing(outside: Any) -> None:
    """The last test of this file: it ends the process that the others use."""
    job_id = queued(outside)
    happen(outside, job_id, LIFE[:3])
    ended: list[grpc.RpcError] = []
    told: list[str] = []
    is_reading = threading.Event()

    def read() -> None:
        with client(outside.gateway) as stub:
            try:
                for event in watch(outside, stub, job_id):
                    told.append(event.WhichOneof("what"))
                    if len(told) == 4:
                        is_reading.set()
            except grpc.RpcError as error:
                ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert is_reading.wait(20)
    assert outside.gateway.terminate() < 5
    reader.join(10)
    assert outside.gateway.process.returncode == 0
    assert told == ["queued", *(kind.value for kind, _ in LIFE[:3])]
    (error,) = ended
    assert (error.code(), "again" in error.details()) == (grpc.StatusCode.UNAVAILABLE, True)
