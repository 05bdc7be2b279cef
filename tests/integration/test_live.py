"""Many clients that follow one gateway: over its death, beside a thousand that do not read, and on a long history."""

import asyncio
import contextlib
import os
import signal
import socket
import statistics
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from redis import Redis

from vitascope_common import keys
from vitascope_common.events import Event, EventType, append
from vitascope_gateway.testing import GatewayProcess, Surroundings, surroundings

DEADLINE_S = 60.0
MIB = 1 << 20


@dataclass
class Around:
    """What a gateway needs, and what its clients and its workers do."""

    platform: Surroundings

    @property
    def port(self) -> int:
        return int(self.platform.options["port"])

    @property
    def redis(self) -> Redis:
        return self.platform.redis.client

    def gateway(self) -> contextlib.AbstractContextManager[GatewayProcess]:
        return self.platform.gateway()

    def create(self) -> str:
        """Make a video; returns the path and query of its events_url, which is all that a follower knows."""
        return self.create_both()[0]

    def create_both(self) -> tuple[str, str]:
        """Make a video; returns the paths and queries of its events_url and its websocket_url."""
        headers = {"Authorization": f"Bearer {self.platform.key}"}
        video = httpx.post(f"{self.platform.base_url}/v1/videos", json={"prompt": "x"}, headers=headers).json()
        events_url, websocket_url = (urlsplit(video[name]) for name in ("events_url", "websocket_url"))
        return f"{events_url.path}?{events_url.query}", f"{websocket_url.path}?{websocket_url.query}"

    def append(self, target: str, kind: EventType, version: int | None = None, **data: Any) -> str | None:
        return append(self.redis, Event(job_of(target), kind, data, version=version))

    def history(self, target: str) -> list[str]:
        return [entry_id for entry_id, _ in self.redis.xrange(keys.events(job_of(target)))]


def job_of(target: str) -> str:
    return target.split("/")[3]


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Around]:
    with surroundings(tmp_path) as platform:
        yield Around(platform)


def request(target: str, last_event_id: str = "") -> bytes:
    """Return a request to follow. HTTP/1.0, so that what comes is not chunked."""
    last = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
    return f"GET {target} HTTP/1.0\r\nHost: x\r\n{last}\r\n".encode()


def upgrade(target: str) -> bytes:
    """Return a request for a WebSocket."""
    key = b64encode(b"0123456789abcdef").decode()
    lines = ("Host: x", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    return "\r\n".join((f"GET {target} HTTP/1.1", *lines, f"Sec-WebSocket-Key: {key}", "", "")).encode()


async def events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, str]]:
    """Yield the whole events of one connection until it ends."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    while True:
        block = (await reader.readuntil(b"\n\n")).decode()
        found = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "event" in found:
            yield found


@dataclass
class Client:
    """One EventSource: remembers the last id, and comes back until it has heard the end."""

    port: int
    target: str
    seen: list[str] = field(default_factory=list)
    num_connections: int = 0

    async def follow(self) -> None:
        is_over = False
        while not is_over:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=MIB)
            except OSError:
                await asyncio.sleep(0.2)  # there is no gateway at the moment
                continue
            self.num_connections += 1
            writer.write(request(self.target, self.seen[-1] if self.seen else ""))
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                async for event in events(reader):
                    self.seen.append(event["id"])
                    is_over = event["event"] == "completed"
            writer.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 — a test's condition
            await asyncio.sleep(0.01)


@pytest.mark.slow
def test_five_hundred_followers_miss_nothing_when_the_gateway_is_killed(around: Around) -> None:
    num_jobs, num_followers, num_steps = 10, 500, 60
    with around.gateway() as first:
        targets = [around.create() for _ in range(num_jobs)]
        for target in targets:
            around.append(target, EventType.QUEUED, 1)
        clients = [Client(around.port, targets[number % num_jobs]) for number in range(num_followers)]

        def work(steps: range) -> None:
            for step in steps:
                for target in targets:
                    around.append(target, EventType.PROGRESS, step=step)

        async def live() -> None:
            async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
                following = [tasks.create_task(client.follow()) for client in clients]
                await until(lambda: all(client.seen for client in clients))
                await until(lambda: around.redis.info("clients")["blocked_clients"] == 1)  # one read for all of them
                working = tasks.create_task(asyncio.to_thread(work, range(num_steps)))
                await until(lambda: sum(len(client.seen) > 10 for client in clients) > num_followers // 2)
                os.kill(first.process.pid, signal.SIGKILL)
                with contextlib.ExitStack() as later:
                    await asyncio.to_thread(later.enter_context, around.gateway())
                    await working
                    await asyncio.to_thread(work, range(num_steps, num_steps + 10))
                    for target in targets:
                        around.append(target, EventType.COMPLETED, 2)
                    await until(lambda: all(task.done() for task in following))

        asyncio.run(live())
    histories = {target: around.history(target) for target in targets}
    assert [len(one) for one in histories.values()] == [num_steps + 12] * num_jobs
    assert all(client.seen == histories[client.target] for client in clients)
    assert all(client.num_connections > 1 for client in clients)  # each has been cut off


@pytest.mark.slow
def test_a_thousand_clients_that_do_not_read_delay_nobody_and_fill_no_memory(around: Around) -> None:
    num_slow, num_events, text = 1000, 800, "x" * 8192
    with around.gateway() as gateway, contextlib.ExitStack() as open_sockets:
        target, port = around.create(), around.port
        around.append(target, EventType.QUEUED, 1)
        process = psutil.Process(gateway.process.pid)
        slow = [open_sockets.enter_context(socket.socket()) for _ in range(num_slow)]
        for one in slow:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", port))
            one.sendall(request(target))
        waits_s: list[float] = []

        async def live() -> None:
            async with asyncio.timeout(DEADLINE_S):
                await until(lambda: gateway.metric("vitascope_gateway_followers") == num_slow)
                quick = []
                for _ in range(3):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MIB)
                    writer.write(request(target))
                    quick.append((events(reader), writer))
                for one, _ in quick:
                    assert (await anext(one))["event"] == "queued"
                for number in range(num_events):
                    begun_s = time.perf_counter()
                    event_id = await asyncio.to_thread(around.append, target, EventType.PARTIAL, text=text, n=number)
                    for one, _ in quick:
                        assert (await anext(one))["id"] == event_id
                    waits_s.append(time.perf_counter() - begun_s)
                for _, writer in quick:
                    writer.close()

        before_bytes = process.memory_info().rss
        asyncio.run(live())
        grown_bytes = process.memory_info().rss - before_bytes
        assert statistics.median(waits_s) < 0.5
        assert max(waits_s) < 10
        assert grown_bytes < 160 * MIB  # unbounded, it would be what each of them has not read: 6 GiB
        assert gateway.metric("vitascope_gateway_followers_dropped_total") == num_slow
        around.append(target, EventType.COMPLETED, 2)
        client = Client(port, target, seen=ids_left_in(slow[0]))
        assert 0 < len(client.seen) < num_events
        asyncio.run(asyncio.wait_for(client.follow(), DEADLINE_S))
        assert client.seen == around.history(target)


@pytest.mark.slow
def test_a_long_history_is_held_neither_for_those_that_do_not_read_nor_by_the_kernel(around: Around) -> None:
    num_slow, num_events, text = 200, 2000, "x" * 400
    with around.gateway() as gateway, contextlib.ExitStack() as open_sockets:
        events_target, websocket_target = around.create_both()
        around.append(events_target, EventType.QUEUED, 1)
        for number in range(1, num_events):
            around.append(events_target, EventType.PROGRESS, step=number, steps=num_events, phase=text)
        process = psutil.Process(gateway.process.pid)
        port = around.port

        async def follow_to_its_end() -> list[str]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MIB)
            writer.write(request(events_target))
            stream = events(reader)
            seen = [(await anext(stream))["id"] for _ in range(num_events)]
            writer.close()
            return seen

        async def live() -> None:
            async with asyncio.timeout(DEADLINE_S):
                assert await follow_to_its_end() == around.history(events_target)  # once, so that all is warm
                before_bytes = most_bytes = process.memory_info().rss
                slow = []
                for number in range(num_slow):
                    one = open_sockets.enter_context(socket.socket())
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    one.connect(("127.0.0.1", port))
                    one.sendall(upgrade(websocket_target) if number % 2 else request(events_target))
                    slow.append(one)
                spent_s = -1.0
                while not all(map(has_some, slow)) or sum(process.cpu_times()) - spent_s > 0.01:  # until it can no more
                    spent_s = sum(process.cpu_times())
                    await asyncio.sleep(0.2)
                    most_bytes = max(most_bytes, process.memory_info().rss)
                begun_s = time.perf_counter()
                assert await follow_to_its_end() == around.history(events_target)
                assert time.perf_counter() - begun_s < 10
                most_bytes = max(most_bytes, process.memory_info().rss)
                assert most_bytes - before_bytes < 100 * MIB  # with whole histories it would be 2 MB each
                gateway.process.kill()  # what the kernel has is still sent, what the process has is not
                for one in slow[:2]:
                    left = left_in(one)
                    assert b"progress" in left
                    assert len(left) < 256 * 1024  # of 1 MiB

        asyncio.run(live())


def has_some(connection: socket.socket) -> bool:
    """Whether something has come that was not read."""
    with contextlib.suppress(BlockingIOError):
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return False


def left_in(connection: socket.socket) -> bytes:
    """Read what a client that did not read has been sent."""
    connection.settimeout(DEADLINE_S)
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            data += chunk
    return data


def ids_left_in(connection: socket.socket) -> list[str]:
    """Read what a client that did not read has been sent; return the ids of the events that are whole."""
    blocks = left_in(connection).decode().split("\n\n")[:-1]
    return [line[4:] for block in blocks for line in block.splitlines() if line.startswith("id: ")]
