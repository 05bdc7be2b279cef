"""Our Python SDK against a running gateway that is killed under it."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from vitascope_client import (
    AsyncVitascope,
    InvalidRequestError,
    ModerationBlockedError,
    NotFoundError,
    Progress,
    Vitascope,
)
from vitascope_common.events import Event, EventType, append
from vitascope_gateway.testing import GatewayProcess, Surroundings, surroundings

NUM_FOLLOWERS = 50


@dataclass(frozen=True)
class Around:
    """What a gateway needs, and what its workers do."""

    platform: Surroundings

    @property
    def client(self) -> dict[str, str]:
        return {"base_url": self.platform.base_url, "api_key": self.platform.key}

    def gateway(self) -> AbstractContextManager[GatewayProcess]:
        return self.platform.gateway()

    def append(self, event: Event) -> str:
        event_id = append(self.platform.redis.client, event)
        assert event_id
        return event_id

    def go_on(self, video_id: str, step: int) -> str:
        progress = {"step": step, "steps": 3, "percent": 100 * step / 3, "phase": "denoising", "eta_s": None}
        return self.append(Event(video_id, EventType.PROGRESS, progress, task="t", attempt=1))

    def complete(self, video_id: str) -> str:
        self.platform.sql("UPDATE jobs SET state = 'completed', finished_at_ms = 1")
        return self.append(Event(video_id, EventType.COMPLETED, {}, version=2))


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Around]:
    with surroundings(tmp_path) as platform:
        yield Around(platform)


def test_events_survive_a_gateway_that_is_killed_and_comes_back(around: Around) -> None:
    with Vitascope(**around.client) as client, contextlib.ExitStack() as first:
        gateway = first.enter_context(around.gateway())
        video = client.videos.create(prompt="a red circle", seed=3, metadata={"a": "b"})
        assert (video.seed, video.metadata, video.status) == (3, {"a": "b"}, "queued")
        assert client.videos.retrieve(video.id).queue_position == 2
        assert [one.id for one in client.videos.list()] == [video.id]
        assert [model.id for model in client.models()] == ["vita-mini-6"]
        estimate = client.videos.estimate(prompt="a red circle", seconds=2)
        assert (estimate.model, estimate.seconds, estimate.service_class) == ("vita-mini-6", "2", "standard")
        assert estimate.usd == 2 * (client.models()[0].usd_per_second or 0)
        for made_from in (
            lambda: client.videos.remix(video.id, prompt="a blue circle", strength=0.5),
            lambda: client.videos.edit(video=video.id, prompt="a blue circle"),
            lambda: client.videos.extend(video=video.id, prompt="a blue circle", seconds=2),
        ):
            with pytest.raises(NotFoundError) as unfinished:
                made_from()
            assert unfinished.value.code == "video_not_ready"
        with pytest.raises(InvalidRequestError) as file:
            client.videos.edit(video=b"film", prompt="a blue circle", seed=1, metadata={"a": "b"})
        assert (file.value.param, file.value.code) == ("video", "invalid_media")
        with pytest.raises(ModerationBlockedError):
            client.videos.create(prompt="forbidden")
        with pytest.raises(InvalidRequestError) as wrong:
            client.videos.create(prompt="x", seconds=7)
        assert wrong.value.param == "seconds"
        assert wrong.value.request_id
        with pytest.raises(NotFoundError) as early:
            client.videos.download(video.id)
        assert early.value.code == "video_not_ready"

        appended = [around.append(Event(video.id, EventType.QUEUED, {}, version=1))]
        events = client.videos.stream(video.id)
        seen = [next(events)]
        appended.append(around.go_on(video.id, 1))
        seen.append(next(events))
        os.kill(gateway.process.pid, signal.SIGKILL)
        gateway.process.wait()
        appended.append(around.go_on(video.id, 2))
        with around.gateway():
            seen.append(next(events))
            appended += [around.go_on(video.id, 3), around.complete(video.id)]
            seen += list(events)
            told: list[Progress] = []
            assert client.videos.wait(video.id, on_progress=told.append).status == "completed"
            assert [now.phase for now in told] == ["completed"]
            client.videos.delete(video.id)
            assert around.platform.neighbours.deleted == [("acme", video.id)]
    assert [event.id for event in seen] == appended


@contextlib.asynccontextmanager
async def in_a_thread(context: AbstractContextManager[GatewayProcess]) -> AsyncIterator[GatewayProcess]:
    """Enter and leave it in a thread: the client goes on meanwhile."""
    entered = await asyncio.to_thread(context.__enter__)
    try:
        yield entered
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


async def test_many_followers_of_one_client_survive_it_too_and_so_does_who_waits(around: Around) -> None:
    seen: list[list[str]] = [[] for _ in range(NUM_FOLLOWERS)]
    told: list[Progress] = []
    reached = asyncio.Condition()

    async def follow(video_id: str, ids: list[str]) -> None:
        async for event in client.videos.stream(video_id):
            if event.id:
                async with reached:
                    ids.append(event.id)
                    reached.notify_all()

    async def until_all_have(num_events: int) -> None:
        async with asyncio.timeout(60), reached:
            await reached.wait_for(lambda: all(len(ids) >= num_events for ids in seen))

    async with AsyncVitascope(**around.client) as client, in_a_thread(around.gateway()) as gateway:
        video = await client.videos.create(prompt="a red circle")
        assert [one.id async for one in client.videos.list()] == [video.id]
        appended = [around.append(Event(video.id, EventType.QUEUED, {}, version=1))]
        async with asyncio.TaskGroup() as group:
            for ids in seen:
                group.create_task(follow(video.id, ids))
            waiting = group.create_task(client.videos.wait(video.id, on_progress=told.append))
            appended.append(around.go_on(video.id, 1))
            await until_all_have(2)
            os.kill(gateway.process.pid, signal.SIGKILL)
            await asyncio.to_thread(gateway.process.wait)
            appended.append(around.go_on(video.id, 2))
            async with in_a_thread(around.gateway()):
                await until_all_have(3)
                appended.append(around.complete(video.id))
                finished = await waiting
    assert finished.status == "completed"
    assert (told[-1].phase, told[-1].percent) == ("completed", 100)
    assert seen == [appended] * NUM_FOLLOWERS
