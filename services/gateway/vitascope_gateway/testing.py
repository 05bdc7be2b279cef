"""For tests: the gateway as a process, and what it needs: SQLite, Redis and two neighbours that do as they are told.

The neighbours are real gRPC servers in the test's process.
"""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import grpc
import httpx
import sqlalchemy as sa
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from vitascope_common import ids, tokens
from vitascope_common.database import Database
from vitascope_common.tables import api_keys, tenants
from vitascope_common.testing import RedisServer, free_port, sqlite_database
from vitascope_proto.v1 import prompt_pb2, prompt_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc

T = TypeVar("T")
START_TIMEOUT_S = 30.0
MODELS_DIR = Path(__file__).parents[3] / "models"
SIGNING_KEY = "0123456789abcdef0123456789abcdef"


@dataclass
class Neighbours:
    """A prompt service and a scheduler on one port. They normalise spaces, refuse "forbidden" and remember calls."""

    address: str = ""
    checked: list[Any] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    cancelled: list[tuple[str, str]] = field(default_factory=list)
    deleted: list[tuple[str, str]] = field(default_factory=list)
    positions: list[str] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    """The jobs of each question for many positions."""
    foreseen: list[Any] = field(default_factory=list)
    place: int = -1
    """Where each of those jobs stands; -1: nowhere."""
    pools: list[Any] = field(default_factory=list)
    """What operators see: messages."""
    drains: list[Any] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    """Set by every question for a queue position, which is what a poll is."""
    failure: grpc.StatusCode | None = None
    """What every call is answered with instead."""
    well: health.HealthServicer = field(default_factory=health.HealthServicer)

    def Check(self, request: Any, context: Any) -> Any:
        self._fail(context)
        self.checked.append(request)
        refused = [name for name in ("prompt", "negative_prompt") if "forbidden" in getattr(request, name)]
        return prompt_pb2.CheckResponse(
            allowed=not refused,
            param=refused[0] if refused else "",
            prompt=" ".join(request.prompt.split()),
            negative_prompt=" ".join(request.negative_prompt.split()),
            category="test" if refused else "",
            policy_version="test-1",
            message="The prompt asks for something forbidden.",
        )

    def Encode(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "the gateway never encodes")

    def Submit(self, request: Any, context: Any) -> Any:
        self._fail(context)
        self.submitted.append(request.job_id)
        return scheduler_pb2.SubmitResponse()

    def Cancel(self, request: Any, context: Any) -> Any:
        self._fail(context)
        self.cancelled.append((request.tenant_id, request.job_id))
        return scheduler_pb2.CancelResponse(state="cancelled")

    def Delete(self, request: Any, context: Any) -> Any:
        self._fail(context)
        self.deleted.append((request.tenant_id, request.job_id))
        return scheduler_pb2.DeleteResponse()

    def GetQueuePosition(self, request: Any, context: Any) -> Any:
        self._fail(context)
        self.positions.append(request.job_id)
        self.asked.set()
        return scheduler_pb2.GetQueuePositionResponse(position=2, eta_s=30.04)

    def GetQueuePositions(self, request: Any, context: Any) -> Any:
        self._fail(context)
        self.batches.append(list(request.job_ids))
        places = [scheduler_pb2.JobPosition(job_id=one, position=self.place, eta_s=30.04) for one in request.job_ids]
        return scheduler_pb2.GetQueuePositionsResponse(positions=places)

    def Forecast(self, request: Any, context: Any) -> Any:
        self._fail(context)
        self.foreseen.append(request)
        return scheduler_pb2.ForecastResponse(position=2, eta_s=30.04)

    def GetQueue(self, request: Any, context: Any) -> Any:
        self._fail(context)
        shown = [one for one in self.pools if request.pool in ("", one.pool)]
        return scheduler_pb2.GetQueueResponse(pools=shown)

    def SetDrain(self, request: Any, context: Any) -> Any:
        self._fail(context)
        self.drains.append(request)
        return scheduler_pb2.SetDrainResponse(num_workers=1)

    def __getattr__(self, name: str) -> Any:
        if name in ("Register", "Claim", "Heartbeat", "Report"):
            return lambda request, context: context.abort(grpc.StatusCode.UNIMPLEMENTED, "for executors only")
        raise AttributeError(name)

    def serve(self, is_serving: bool) -> None:
        """Say of both whether they do their work."""
        answers = health_pb2.HealthCheckResponse
        self.well.set("", answers.SERVING if is_serving else answers.NOT_SERVING)

    def _fail(self, context: Any) -> None:
        if self.failure is not None:
            context.abort(self.failure, "told to fail")


@contextmanager
def neighbours() -> Iterator[Neighbours]:
    """Serve both neighbours on one free port of loopback."""
    both = Neighbours()
    server = grpc.server(ThreadPoolExecutor(4))
    prompt_pb2_grpc.add_PromptServiceServicer_to_server(both, server)
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(both, server)
    both.serve(True)
    health_pb2_grpc.add_HealthServicer_to_server(both.well, server)
    both.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield both
    finally:
        server.stop(None).wait()


async def add_tenant(database: Database, tenant_id: str, *, classes: str = "standard,batch", scopes: str = "") -> str:
    """Write a tenant and a key for it; returns the key."""
    key, now = tokens.new_api_key(), ids.now_ms()
    async with database.transaction() as connection:
        await connection.execute(
            sa.insert(tenants).values(tenant_id=tenant_id, name=tenant_id, classes=classes, created_at_ms=now)
        )
        await connection.execute(
            sa.insert(api_keys).values(
                key_sha256=tokens.api_key_hash(key), tenant_id=tenant_id, name="test", scopes=scopes, created_at_ms=now
            )
        )
    return key


class GatewayProcess:
    """`python -m vitascope_gateway` on a port of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, metrics_port: int, grpc_port: int) -> None:
        self.process = process
        self.grpc_address = f"127.0.0.1:{grpc_port}"
        self.base_url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"

    def metric(self, name: str) -> float:
        """Read a metric that has no labels."""
        lines = httpx.get(self.metrics_url, timeout=5.0).text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    def terminate(self) -> float:
        """Send SIGTERM; returns the seconds until the process has ended."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - started


@contextmanager
def gateway_process(
    *,
    database_url: str,
    redis_url: str,
    object_store_url: str,
    neighbour_address: str,
    models_dir: Path,
    delivery_url: str,
    port: int = 0,
    command: Sequence[str] = (sys.executable, "-m", "vitascope_gateway"),
    url_allowed_networks: str = "",
    grpc_port: int = 0,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[GatewayProcess]:
    """Run the gateway, with further `variables`; it answers before the block begins and is gone after it."""
    port, metrics_port, grpc_port = port or free_port(), free_port(), grpc_port or free_port()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VITASCOPE_")}
    environ |= {
        "VITASCOPE_DATABASE_URL": database_url,
        "VITASCOPE_REDIS_URL": redis_url,
        "VITASCOPE_OBJECT_STORE_URL": object_store_url,
        "VITASCOPE_MODELS_DIR": str(models_dir),
        "VITASCOPE_PROMPT_ADDRESS": neighbour_address,
        "VITASCOPE_SCHEDULER_ADDRESS": neighbour_address,
        "VITASCOPE_DELIVERY_URL": delivery_url,
        "VITASCOPE_SIGNING_KEY": SIGNING_KEY,
        "VITASCOPE_URL_ALLOWED_NETWORKS": url_allowed_networks,
        "VITASCOPE_GATEWAY_PORT": str(port),
        "VITASCOPE_GATEWAY_METRICS_PORT": str(metrics_port),
        "VITASCOPE_GATEWAY_GRPC_PORT": str(grpc_port),
        "VITASCOPE_GATEWAY_GRPC_REFLECTION": "true",
        "VITASCOPE_LOG_FORMAT": "json",
        **variables,
    }
    with subprocess.Popen(command, env=environ) as process:
        running = GatewayProcess(process, port, metrics_port, grpc_port)
        try:
            _wait(running)
            yield running
        finally:
            process.kill()


@dataclass
class Surroundings:
    """What a gateway needs. One after another listens on the same ports."""

    folder: Path
    redis: RedisServer
    neighbours: Neighbours
    options: Mapping[str, Any]
    key: str = ""
    """Of the tenant acme."""

    @property
    def database_url(self) -> str:
        return str(self.options["database_url"])

    @property
    def database_path(self) -> Path:
        return self.folder / "vitascope.db"

    @property
    def base_url(self) -> str:
        """Where its gateways answer."""
        return f"http://127.0.0.1:{self.options['port']}"

    def gateway(self, **changes: Any) -> AbstractContextManager[GatewayProcess]:
        """Run a gateway here; `changes` are of `gateway_process`."""
        return gateway_process(**{**self.options, **changes})

    def add_tenant(self, tenant_id: str, **fields: str) -> str:
        """Write a tenant and a key for it; returns the key."""
        return self.in_database(lambda database: add_tenant(database, tenant_id, **fields))

    def in_database(self, use: Callable[[Database], Awaitable[T]]) -> T:
        """Do something in the database that takes its Database."""

        async def run() -> T:
            database = Database(self.database_url)
            try:
                return await use(database)
            finally:
                await database.close()

        return asyncio.run(run())

    def sql(self, statement: str, *values: Any) -> list[Any]:
        """Do what the rest of the platform would have done."""
        with closing(sqlite3.connect(self.database_path, timeout=30)) as connection:
            rows = connection.execute(statement, values).fetchall()
            connection.commit()
        return rows


@contextmanager
def surroundings(folder: Path, **changes: Any) -> Iterator[Surroundings]:
    """Serve what a gateway needs, in this folder; `changes` are of `gateway_process`."""
    redis = RedisServer(folder / "redis")
    try:
        redis.start()
        with neighbours() as both:
            options = {
                "database_url": sqlite_database(folder / "vitascope.db"),
                "redis_url": redis.url,
                "object_store_url": (folder / "objects").as_uri(),
                "neighbour_address": both.address,
                "models_dir": MODELS_DIR,
                "delivery_url": "http://delivery.test",
                "port": free_port(),
                "grpc_port": free_port(),
                **changes,
            }
            one = Surroundings(folder, redis, both, options)
            one.key = one.add_tenant("acme")
            yield one
    finally:
        redis.kill()


def _wait(running: GatewayProcess) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{running.base_url}/healthz", timeout=1.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        try:
            running.process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        raise RuntimeError(f"the gateway ended with status {running.process.returncode}")
    raise RuntimeError(f"the gateway did not answer within {START_TIMEOUT_S:.0f} s")
