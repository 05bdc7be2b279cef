"""What only the asynchronous client can do: much at once, and to stop in the middle. The server is a real one."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from vitascope_client import AsyncVitascope, Event, Progress, _runtime

PATIENCE_S = 20.0
VIDEO = {"id": "video_1", "status": "in_progress", "phase": "denoising"}


class Gateway:
    """Streams that go on when the test says so; it knows which connections are open."""

    def __init__(self) -> None:
        self.num_open = 0
        self.num_streams = 0
        self.steps: asyncio.Queue[None] = asyncio.Queue()
        self._changed = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._count(1, 0)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split()[1].decode()
                if path.endswith("/events"):
                    await self._stream(path.split("/")[3], reader, writer)
                elif "/content" in path:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfilm")
                else:
                    body = json.dumps(VIDEO).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            await self._count(-1, 0)

    async def _stream(self, video_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\nretry: 1\n\n")
        await self._count(0, 1)
        gone = asyncio.create_task(reader.read())
        try:
            for number in range(3):
                step = asyncio.create_task(self.steps.get())
                await asyncio.wait({gone, step}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    step.cancel()
                    raise ConnectionError
                name = ("queued", "progress", "completed")[number]
                writer.write(f'id: {number + 1}-0\nevent: {name}\ndata: {{"id": "{video_id}"}}\n\n'.encode())
        finally:
            gone.cancel()
        raise ConnectionError

    async def _count(self, num_open: int, num_streams: int) -> None:
        async with self._changed:
            self.num_open += num_open
            self.num_streams += num_streams
            self._changed.notify_all()

    async def until(self, **counts: int) -> None:
        """Wait until so many connections, or streams so far, are there."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: all(getattr(self, name) == number for name, number in counts.items()))

    def go_on(self, num_events: int) -> None:
        for _ in range(num_events):
            self.steps.put_nowait(None)


@pytest.fixture
async def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncVitascope]:
    server = await asyncio.start_server(gateway.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with AsyncVitascope(base_url=f"http://127.0.0.1:{port}", api_key="k", max_retries=0) as client:
        yield client
    await gateway.until(num_open=0)
    server.close()
    await server.wait_closed()


async def test_many_streams_run_at_once_and_do_not_keep_other_calls_waiting(
    gateway: Gateway, client: AsyncVitascope
) -> None:
    num_streams = 150  # more than httpx's own limit
    seen: dict[str, list[str]] = {}

    async def follow(video_id: str) -> None:
        seen[video_id] = [f"{event.id} {event.data['id']}" async for event in client.videos.stream(video_id)]

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for number in range(num_streams):
            group.create_task(follow(f"video_{number}"))
        await gateway.until(num_streams=num_streams)  # all of them, before one has said anything
        assert (await client.videos.retrieve("video_1")).id == "video_1"
        gateway.go_on(3 * num_streams)
    assert seen == {
        video_id: [f"{number}-0 {video_id}" for number in (1, 2, 3)]
        for video_id in (f"video_{number}" for number in range(num_streams))
    }


@pytest.mark.parametrize("where", ["waiting for an event", "between two events", "without a block"])
async def test_a_task_that_is_cancelled_closes_its_stream(gateway: Gateway, client: AsyncVitascope, where: str) -> None:
    first = asyncio.Event()

    async def follow() -> None:
        events = client.videos.stream("video_1")
        async with contextlib.nullcontext() if where == "without a block" else events:
            async for _ in events:
                first.set()
                if where == "between two events":
                    await asyncio.Event().wait()

    task = asyncio.create_task(follow())
    gateway.go_on(1)
    async with asyncio.timeout(PATIENCE_S):
        await first.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gateway.until(num_open=0)


async def test_who_leaves_early_closes_the_stream(gateway: Gateway, client: AsyncVitascope) -> None:
    gateway.go_on(1)
    async with client.videos.stream("video_1") as events:
        async for event in events:
            assert event == Event("1-0", "queued", {"id": "video_1"})
            break
    await gateway.until(num_open=0)
    stream = client.videos.stream("video_1")
    gateway.go_on(1)
    assert (await anext(stream)).type == "queued"
    await stream.aclose()
    await gateway.until(num_open=0)
    assert [event async for event in stream] == []


async def test_a_wait_that_is_cancelled_closes_its_stream(gateway: Gateway, client: AsyncVitascope) -> None:
    told: list[Progress] = []
    heard = asyncio.Event()

    def tell(progress: Progress) -> None:
        told.append(progress)
        heard.set()

    task = asyncio.create_task(client.videos.wait("video_1", on_progress=tell))
    gateway.go_on(1)
    async with asyncio.timeout(PATIENCE_S):
        await heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gateway.until(num_open=1)  # the connection of the poll, kept for the next call
    assert told == [Progress("queued")]


async def test_a_download_that_is_cancelled_leaves_no_file(
    gateway: Gateway, client: AsyncVitascope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = asyncio.Event()

    async def run(work: Any, *args: Any) -> None:
        work(*args)
        written.set()

    monkeypatch.setattr(_runtime, "async_run", run)
    task = asyncio.create_task(client.videos.download("video_1", tmp_path / "video.mp4"))
    async with asyncio.timeout(PATIENCE_S):
        await written.wait()
    assert [name.endswith(".part") for name in os.listdir(tmp_path)] == [True]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.listdir(tmp_path) == []
    await gateway.until(num_open=0)


async def test_a_client_that_is_closed_closes_what_is_still_open(gateway: Gateway, client: AsyncVitascope) -> None:
    stream: Any = client.videos.stream("video_1")
    gateway.go_on(1)
    await anext(stream)
    await gateway.until(num_open=1)
    await client.aclose()
    await gateway.until(num_open=0)
    await stream.aclose()
