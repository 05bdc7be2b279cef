"""What the public API costs beside the least that it could do, in one server, in alternation.

Create is everything that `POST /v1/videos` does up to its 202: key, fields, verdict of the prompt service (another
process), one durable transaction; its reference is a handler of the same server that reads the body, asks the same
question and commits one row. GET is the status of a finished video, beside it that of one that waits, which asks the
scheduler for its place; the reference reads the same row. Eight connections are kept open by this process; the database
is SQLite with synchronous=FULL, so that a commit waits for the disk.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import sqlalchemy as sa
from tests.bench.figures import Figure

from vitascope_common.database import Database
from vitascope_common.tables import jobs
from vitascope_gateway.testing import surroundings

MODEL = "vita-mini-6"
NUM_CONNECTIONS = 8
NUM_REQUESTS, NUM_ROUNDS = 200, 15
CREATE_GOAL, READ_GOAL = 0.60, 0.80
SERVER = (sys.executable, "-m", "tests.bench.api_server")


def run() -> list[Figure]:
    """Measure."""
    with (
        TemporaryDirectory() as folder,
        surroundings(Path(folder)) as around,
        around.gateway(command=SERVER),
    ):
        rates = asyncio.run(_measure(around.base_url, around.key, around.database_url))
    create = {"hello, requests/s": rates["hello"], "create / hello": rates["create"] / rates["hello"]}
    read = {"of one that waits, requests/s": rates["waiting"], "its ratio": rates["waiting"] / rates["read"]}
    return [
        Figure("POST create / its I/O", rates["create"], "requests/s", rates["least"], CREATE_GOAL, "higher", create),
        Figure("GET status / one SQL read", rates["done"], "requests/s", rates["read"], READ_GOAL, "higher", read),
    ]


async def _measure(base_url: str, api_key: str, database_url: str) -> dict[str, float]:
    """Return the median requests per second of each."""
    address = urlsplit(base_url)
    connections = [await asyncio.open_connection(address.hostname, address.port) for _ in range(NUM_CONNECTIONS)]
    body = json.dumps({"prompt": "a red circle moving right", "model": MODEL, "seed": 7}).encode()
    created = json.loads(await _ask(connections[0], _request("POST", "/v1/videos", api_key, body)))["id"]
    waiting = json.loads(await _ask(connections[0], _request("POST", "/v1/videos", api_key, body)))["id"]
    await _finish(database_url, created)
    requests = {
        "create": _request("POST", "/v1/videos", api_key, body),
        "least": _request("POST", "/bench/create", api_key, body),
        "hello": _request("GET", "/bench/hello", api_key),
        "done": _request("GET", f"/v1/videos/{created}", api_key),
        "read": _request("GET", f"/bench/read/{created}", api_key),
        "waiting": _request("GET", f"/v1/videos/{waiting}", api_key),
    }
    samples: Mapping[str, list[float]] = {name: [] for name in requests}
    for _ in range(1 + NUM_ROUNDS):
        for name, request in requests.items():
            samples[name].append(await _rate(connections, request))
    for _, writer in connections:
        writer.close()
    return {name: statistics.median(rates[1:]) for name, rates in samples.items()}


async def _finish(database_url: str, job_id: str) -> None:
    database = Database(database_url)
    async with database.transaction() as connection:
        await connection.execute(sa.update(jobs).where(jobs.c.job_id == job_id).values(state="completed"))
    await database.close()


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _rate(connections: list[Connection], request: bytes) -> float:
    async def some(connection: Connection) -> None:
        for _ in range(NUM_REQUESTS // NUM_CONNECTIONS):
            await _ask(connection, request)

    begun_s = time.perf_counter()
    await asyncio.gather(*map(some, connections))
    return NUM_REQUESTS / (time.perf_counter() - begun_s)


async def _ask(connection: Connection, request: bytes) -> bytes:
    """Send a request and return the body of its answer; as cheaply as can be, since both share two cores."""
    reader, writer = connection
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    if lines[0].split()[1] not in (b"200", b"202"):
        raise RuntimeError(f"the server answered {head.decode(errors='replace')}")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    return await reader.readexactly(length)


def _request(method: str, path: str, api_key: str, body: bytes = b"") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {api_key}\r\nContent-Length: {len(body)}\r\n"
    )
    length = f"Content-Length: {len(body)}\r\n"
    return f"{head}{length}Content-Type: application/json\r\n\r\n".encode() + body
