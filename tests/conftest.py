"""One whole stack for every test that needs one: `vitascope up` on free ports, with an OTLP collector beside it."""

import asyncio
import contextlib
import gc
import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from xdist.scheduler import LoadScopeScheduling

from vitascope_client import Vitascope
from vitascope_common.settings import SERVICES

pytest.register_assert_rewrite("tests.chaos.invariants")
T = TypeVar("T")
PROMPT = "a red circle moving right on a black background"
SHORT_LEASES = {
    "VITASCOPE_SCHEDULER_LEASE_TTL_MS": "3000",
    "VITASCOPE_SCHEDULER_HEARTBEAT_MS": "600",
    "VITASCOPE_SCHEDULER_TICK_MS": "300",
}
__all__ = ["PROMPT", "SERVICES", "SHORT_LEASES", "Collector", "Stack", "wait_for"]


SHARED = ("stack", "chaos")
"""Fixtures: a stack for many tests."""
ONE_PIECE = ("tests/e2e/", "tests/chaos/")
"""Folders whose tests share a stack."""
ONE_PIECE_EACH = ("services/gateway/tests/", "tests/integration/test_openai_")
"""Files whose tests share processes begin so."""


class Pieces(LoadScopeScheduling):
    """Deals out tests one by one to the processes of xdist, but those that share something in one piece, largest first.

    Its own groups are lost on pytest 9.2: ids are no longer what it appends them to.
    """

    def _split_scope(self, nodeid: str) -> str:
        for folder in ONE_PIECE:
            if nodeid.startswith(folder):
                return folder
        return nodeid.partition("::")[0] if nodeid.startswith(ONE_PIECE_EACH) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Pieces:
    return Pieces(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what shares a stack come in one go. Of tests with one id xdist would run one."""
    twice = [nodeid for nodeid, number in Counter(item.nodeid for item in items).items() if number > 1]
    if twice:
        raise pytest.UsageError(f"several tests have the id {twice[0]}")
    items.sort(key=lambda item: SHARED.index(name) if (name := _shared_by(item)) else len(SHARED))


def pytest_collection_finish() -> None:
    """Keep collections of garbage from looking at what thousands of tests consist of: each took a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop a stack after the last test that shares it: an idle one takes time from all that come after it."""
    name = _shared_by(item)
    if name and (nextitem is None or _shared_by(nextitem) != name):
        one = getattr(item, "funcargs", {}).get(name)
        if one is not None:
            one.close()


def _shared_by(item: pytest.Item) -> str | None:
    """Name the fixture; other folders have fixtures of the same name."""
    if not item.path.is_relative_to(Path(__file__).parent):
        return None
    return next((name for name in SHARED if name in getattr(item, "fixturenames", ())), None)


def wait_for(what: str, condition: Callable[[], T | None], timeout_s: float = 60.0) -> T:
    """Return the first truthy answer of `condition`; fail with `what` when none comes in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.02)
    pytest.fail(f"waited {timeout_s:.0f} s for {what}")


class Collector:
    """An OTLP collector in this process: keeps every span it is sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[dict[str, str]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:
        with self._lock:
            for resource in request.resource_spans:
                attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        self._spans.append(
                            {
                                "service": attributes.get("service.name", ""),
                                "name": span.name,
                                "trace_id": span.trace_id.hex(),
                                "span_id": span.span_id.hex(),
                                "parent": span.parent_span_id.hex(),
                            }
                        )
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> list[dict[str, str]]:
        with self._lock:
            return [span for span in self._spans if span["trace_id"] == trace_id]

    def close(self) -> None:
        self._server.stop(None)


class Stack:
    """A running `vitascope up`; `settings` are added to its environment."""

    def __init__(
        self, data_dir: Path, collector: Collector | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self.settings = dict(settings or {})
        environ = {name: value for name, value in os.environ.items() if not name.startswith("VITASCOPE_")}
        environ |= self.settings
        if collector:
            environ["VITASCOPE_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.port}"
        self.log = data_dir.parent / f"{data_dir.name}.up.log"
        command = [sys.executable, "-m", "vitascope_cli", "up", "--data-dir", str(data_dir), "--port", "0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environ)
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(30)
            pytest.fail(f"vitascope up ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
        self.up: dict[str, Any] = json.loads(line)
        self.data_dir = Path(self.up["data_dir"])
        self.base_url: str = self.up["base_url"]
        self.api_key: str = self.up["api_key"]
        self.client = Vitascope(base_url=self.base_url, api_key=self.api_key)
        self.beside = contextlib.ExitStack()
        """What ends before it does."""

    def pid(self, service: str) -> int:
        """The pid that does the work now; it changes when the service is restarted."""
        return int(self.state["pids"][service])

    @property
    def state(self) -> dict[str, Any]:
        """What `up` says of itself now."""
        return dict(json.loads((self.data_dir / "stack.json").read_text()))

    def metrics(self, service: str) -> str:
        """Return what a service says on `/metrics`."""
        return httpx.get(f"http://127.0.0.1:{self.port(f'{service}-metrics')}/metrics", timeout=10).text

    def port(self, name: str) -> int:
        """Return a port as `up` keeps it: `scheduler`, `scheduler-metrics`."""
        return int(json.loads((self.data_dir / "instance.json").read_text())["ports"][name])

    def service_log(self, service: str) -> str:
        return (self.data_dir / "logs" / f"{service}.log").read_text(errors="replace")

    def kill(self, service: str) -> int:
        """Kill -9 the process that does the work; returns its pid."""
        pid = self.pid(service)
        os.kill(pid, signal.SIGKILL)
        return pid

    def sql(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        """Read from the database beside the stack."""
        url = self.settings.get("VITASCOPE_DATABASE_URL", "")
        if url.startswith("postgresql"):
            return asyncio.run(_read_postgres(url.replace("+asyncpg", ""), statement, parameters))
        (path,) = self.data_dir.glob("*.db")
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(statement, parameters)]

    def task(self, job_id: str, stage: str) -> dict[str, Any]:
        (row,) = self.sql("SELECT * FROM tasks WHERE job_id = ? AND stage = ?", job_id, stage)
        return row

    def output(self, job_id: str, stage: str, role: str) -> dict[str, Any]:
        """The artifact of this role that the finished task named."""
        outputs = json.loads(self.task(job_id, stage)["outputs"])
        return next(artifact for artifact in outputs if artifact["role"] == role)

    def get(self, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.api_key}", **options.pop("headers", {})}
        return httpx.get(f"{self.base_url}{path}", headers=headers, timeout=30, **options)

    def terminate(self) -> float:
        """SIGTERM; returns how many seconds it took to end."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - started

    def close(self) -> None:
        self.beside.close()
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


async def _read_postgres(url: str, statement: str, parameters: Sequence[Any]) -> list[dict[str, Any]]:
    numbers = itertools.count(1)
    connection = await asyncpg.connect(url)
    try:
        numbered = re.sub(r"\?", lambda _: f"${next(numbers)}", statement)
        return [dict(row) for row in await connection.fetch(numbered, *parameters)]
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Stack]:
    receivers_here = {"VITASCOPE_URL_ALLOWED_NETWORKS": "127.0.0.1/32"}
    one = Stack(tmp_path_factory.mktemp("stack") / "data", collector, receivers_here)
    yield one
    one.close()


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Callable[[], Stack]]:
    """Start stacks on one data dir, one after the other."""
    started: list[Stack] = []

    def start() -> Stack:
        started.append(Stack(tmp_path / "data", settings=SHORT_LEASES))
        return started[-1]

    yield start
    for one in started:
        one.close()
