"""Clients that follow: what an idle one costs, and how fast an event reaches all followers of a job.

The gateway is one process with SQLite and a Redis beside it; clients are sockets in processes of their own, fewer than
20,000 each, that count what arrives. Idle: 10,000 followers of 1,000 jobs; memory is the growth of the gateway's
resident set, cores what it computes while nothing happens, heartbeats and their look into SQL included, and beside it
what it computes when each job has an event every two seconds. Memory is measured of as many WebSockets too, each of
which has sent something, as those do that are pinged. Fan-out: all followers of one job get an event, and the next one
once every one of them has it, so that nothing can be put together; the reference is a loop over as many asyncio
transports in a process of its own that writes the same bytes, in alternation. Beside stands a burst of events at once,
which the gateway writes in fewer pieces.
"""

import asyncio
import contextlib
import json
import multiprocessing
import resource
import selectors
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from tests.bench.figures import Figure

from vitascope_common.events import Event, EventType, append
from vitascope_gateway.testing import GatewayProcess, surroundings

NUM_IDLE, NUM_JOBS, NUM_PROCESSES = 10_000, 1_000, 2
MAX_BYTES, MEMORY_GOAL = 16 * 1024, 1.0
IDLE_S = 20.0  # longer than a heartbeat
NUM_FANOUT, NUM_EVENTS, NUM_ROUNDS = 1_000, 40, 7
FANOUT_GOAL = 0.5
MARK = b"~"  # in each event once
DATA = {"step": 1, "steps": 24, "percent": 4, "eta_s": 1.5, "phase": "denoising", "mark": MARK.decode()}
NUM_BUSY_ROUNDS, EVENT_EVERY_S = 8, 2.0
FOLLOWERS = "vitascope_gateway_followers"
WEBSOCKET_KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
PING, PONG = b"\x89\x00", b"\x8a\x80mask"
TIMEOUT_S = 300.0
_SPAWN = multiprocessing.get_context("spawn")


def run() -> list[Figure]:
    """Measure."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with TemporaryDirectory() as folder, _Stack.running(Path(folder)) as stack:
            num_idle, bytes_each, cores, busy_cores = _idle(stack)
            ours, raw, beside = _fan_out(stack)
        with TemporaryDirectory() as folder, _Stack.running(Path(folder)) as stack:  # new: memory that is left is not
            websocket_bytes = _websockets(stack)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return [
        Figure(
            "idle followers of a core",
            num_idle / max(1.0, cores),
            "followers",
            NUM_IDLE,
            1.0,
            "higher",
            {"cores": cores, "cores with events": busy_cores},
        ),
        Figure("memory of a follower", bytes_each, "bytes", MAX_BYTES, MEMORY_GOAL),
        Figure("memory of a follower by WebSocket", websocket_bytes, "bytes", MAX_BYTES, MEMORY_GOAL),
        Figure(
            f"an event to {NUM_FANOUT} followers / raw writes", ours, "messages/s", raw, FANOUT_GOAL, "higher", beside
        ),
    ]


@dataclass
class _Stack:
    gateway: GatewayProcess
    key: str
    redis: Any

    @classmethod
    @contextlib.contextmanager
    def running(cls, folder: Path) -> Iterator["_Stack"]:
        with surroundings(folder) as around, around.gateway() as gateway:
            yield cls(gateway, around.key, around.redis.client)

    @property
    def port(self) -> int:
        return urlsplit(self.gateway.base_url).port or 0

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.gateway.process.pid)

    def create(self, num: int) -> list[tuple[str, bytes]]:
        """Make videos that have begun; returns the id of each and the request that follows it."""
        made = []
        with httpx.Client(headers={"Authorization": f"Bearer {self.key}"}, timeout=30) as client:
            for _ in range(num):
                video = client.post(f"{self.gateway.base_url}/v1/videos", json={"prompt": "x"}).json()
                append(self.redis, Event(video["id"], EventType.QUEUED, {"mark": MARK.decode()}, version=1))
                append(self.redis, Event(video["id"], EventType.STARTED, {}, version=2))
                parts = urlsplit(video["events_url"])
                made.append((video["id"], f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
        return made


class _Clients:
    """Sockets in a process of their own."""

    def __init__(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_be_clients, args=(theirs,), daemon=True)
        self._process.start()

    def ask(self, *command: Any) -> None:
        self._pipe.send(command)

    def answer(self) -> Any:
        """Wait for what the last command gave."""
        if not self._pipe.poll(TIMEOUT_S):
            raise RuntimeError(f"the clients did not get everything within {TIMEOUT_S:.0f} s")
        return self._pipe.recv()

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _be_clients(pipe: Connection) -> None:
    """Obey: ("open", port, requests) opens a socket for each; ("read", n) reads until n marks have come, says when."""
    selector, sockets, buffer = selectors.DefaultSelector(), [], bytearray(1 << 20)

    def read(num_marks: int) -> float:
        while num_marks > 0:
            for key, _ in selector.select(TIMEOUT_S):
                num_bytes = key.fileobj.recv_into(buffer)  # type: ignore[union-attr]
                if not num_bytes:
                    raise RuntimeError("a stream has ended")
                num_marks -= buffer.count(MARK, 0, num_bytes)
                if buffer.find(PING, 0, num_bytes) >= 0:
                    key.fileobj.sendall(PONG)  # type: ignore[union-attr]
        return time.monotonic()

    while True:
        command, *arguments = pipe.recv()
        if command == "open":
            port, requests = arguments
            for request in requests:
                one = socket.create_connection(("127.0.0.1", port))
                sockets.append(one)
                one.sendall(request)
                selector.register(one, selectors.EVENT_READ)
                read(1)  # each gets the mark of its first event before the next one comes
                if WEBSOCKET_KEY in request:
                    one.sendall(PONG)
            pipe.send(len(sockets))
        else:
            pipe.send(read(*arguments))


def _idle(stack: _Stack) -> tuple[int, float, float, float]:
    """Return how many clients followed, the resident bytes of each, and the cores that they took, idle and not."""
    jobs = stack.create(NUM_JOBS)
    process, each = stack.process, NUM_IDLE // NUM_JOBS // NUM_PROCESSES
    before_bytes = process.memory_info().rss
    with _followed(stack, [request for _, request in jobs] * each, NUM_PROCESSES) as num_followers:
        bytes_each = (process.memory_info().rss - before_bytes) / num_followers
        with _cores(process) as idle_cores:
            time.sleep(IDLE_S)
        with _cores(process) as busy_cores:
            begun_s = time.monotonic()
            for number in range(NUM_JOBS * NUM_BUSY_ROUNDS):
                append(stack.redis, Event(jobs[number % NUM_JOBS][0], EventType.PROGRESS, DATA))
                time.sleep(max(0.0, begun_s + number * EVENT_EVERY_S / NUM_JOBS - time.monotonic()))
        num_left = int(stack.gateway.metric(FOLLOWERS))
    return num_left, bytes_each, idle_cores[0], busy_cores[0]


def _websockets(stack: _Stack) -> float:
    """Return the resident bytes of each of as many WebSockets, all of one job."""
    ((_, request),) = stack.create(1)
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    request = request.replace(b"/events?", b"/ws?")[:-2] + upgrade + b"Sec-WebSocket-Key: %b\r\n\r\n" % WEBSOCKET_KEY
    before_bytes = stack.process.memory_info().rss
    with _followed(stack, [request] * (NUM_IDLE // NUM_PROCESSES), NUM_PROCESSES) as num_followers:
        return (stack.process.memory_info().rss - before_bytes) / num_followers


@contextlib.contextmanager
def _followed(stack: _Stack, requests: Sequence[bytes], num_processes: int) -> Iterator[int]:
    """Send these requests from each of so many processes; gives how many followers there are inside the block."""
    clients = [_Clients() for _ in range(num_processes)]
    try:
        for one in clients:
            one.ask("open", stack.port, requests)
        for one in clients:
            one.answer()
        yield int(stack.gateway.metric(FOLLOWERS))
    finally:
        for one in clients:
            one.close()
    while stack.gateway.metric(FOLLOWERS):
        time.sleep(0.1)


@contextlib.contextmanager
def _cores(process: psutil.Process) -> Iterator[list[float]]:
    """Measure how many cores a process takes inside the block; the list has it afterwards."""
    found: list[float] = []
    begun_s, begun_cpu_s = time.monotonic(), sum(process.cpu_times()[:2])
    yield found
    found.append((sum(process.cpu_times()[:2]) - begun_cpu_s) / (time.monotonic() - begun_s))


def _fan_out(stack: _Stack) -> tuple[float, float, dict[str, float]]:
    """Return messages per second of ours and of raw writes, one event after the other, and those of bursts."""
    ((job_id, request),) = stack.create(1)
    ours, raw = _Clients(), _Clients()
    raw_pipe, theirs = _SPAWN.Pipe()
    raw_process = _SPAWN.Process(target=_be_raw, args=(theirs,), daemon=True)
    raw_process.start()

    def append_one() -> None:
        append(stack.redis, Event(job_id, EventType.PROGRESS, DATA))

    try:
        ours.ask("open", stack.port, [request] * NUM_FANOUT)
        ours.answer()
        raw.ask("open", raw_pipe.recv(), [b"x"] * NUM_FANOUT)
        raw.answer()
        samples = list[tuple[float, ...]]()
        sides = (
            (ours, append_one, stack.process),
            (raw, lambda: raw_pipe.send(_frame(job_id)), psutil.Process(raw_process.pid)),
        )
        for _ in range(1 + NUM_ROUNDS):
            row = []
            for num_bursts, burst in ((NUM_EVENTS, 1), (1, NUM_EVENTS)):
                for clients, tell, process in sides:
                    with _cores(process) as cores:
                        begun_s = time.monotonic()
                        for _ in range(num_bursts):
                            clients.ask("read", NUM_FANOUT * burst)
                            for _ in range(burst):
                                tell()
                            ended_s = clients.answer()
                    taken_s = ended_s - begun_s
                    row += [NUM_FANOUT * NUM_EVENTS / taken_s, 1e6 * cores[0] * taken_s / (NUM_FANOUT * NUM_EVENTS)]
            samples.append(tuple(row))
    finally:
        raw_process.kill()
        for one in (ours, raw):
            one.close()
    rate, us, raw_rate, raw_us, *bursts = (statistics.median(column) for column in zip(*samples[1:], strict=True))
    names = ("CPU us of a message", "raw", "in bursts", "CPU us", "raw in bursts", "raw CPU us")
    return rate, raw_rate, dict(zip(names, (us, raw_us, *bursts), strict=True))


def _frame(job_id: str) -> bytes:
    """Return what the gateway writes for an event, with the framing of a chunk."""

    text = json.dumps({**DATA, "id": job_id, "type": "progress"}, separators=(",", ":"))
    body = f"id: 1795257116123-0\nevent: progress\ndata: {text}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


def _be_raw(pipe: Connection) -> None:
    """Write what comes through the pipe to all who have connected, once each: no queue, no task, no framing."""

    async def serve() -> None:
        transports: list[asyncio.WriteTransport] = []

        class Greeter(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                transports.append(transport)  # type: ignore[arg-type]
                transport.write(MARK)  # type: ignore[attr-defined]

        def tell() -> None:
            data = pipe.recv()
            for transport in transports:
                transport.write(data)

        loop = asyncio.get_running_loop()
        server = await loop.create_server(Greeter, "127.0.0.1", 0, backlog=2048)
        loop.add_reader(pipe.fileno(), tell)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(serve())
