"""Run seeds one after the other, on one Redis and one database."""

import logging
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from unittest.mock import patch
from uuid import UUID

import structlog
from tests.simulation.adapters import inline_sqlite
from tests.simulation.faults import draw
from tests.simulation.loop import START_MS, SimulatedLoop
from tests.simulation.redis_server import Server
from tests.simulation.world import ViolationError, World, format_line, shorten

from vitascope_common import tables
from vitascope_common.database import Database, migrate
from vitascope_common.testing import redis_server
from vitascope_scheduler import relay
from vitascope_scheduler.adapters import redis_queue

POLL_S = 1.0
"""How often the relay looks at an outbox that nobody told it of; the shipped 0.2 s take half of the run time."""


@dataclass(frozen=True)
class Result:
    """What became of one seed."""

    seed: int
    violation: ViolationError | None
    log: list[str]
    num_effects: int
    num_compared: int  # tasks whose payments could be checked to the end
    simulated_s: float
    seen: Counter[str]


class Stage:
    """Where simulations run: servers that are started once and emptied for each seed."""

    def __init__(self, server: Server, database: Database, connection: sqlite3.Connection) -> None:
        self._server, self._database, self._connection = server, database, connection

    def run(
        self,
        seed: int,
        *,
        on_say: Callable[[str], None] | None = None,
        is_calm: bool = False,
        is_traced: bool = False,
        has_log: bool = True,
    ) -> Result:
        """Run one seed from its beginning to its end or to its first violation."""
        loop = SimulatedLoop()
        uuids = random.Random(f"uuids {seed}")

        def uuid4() -> UUID:
            return UUID(int=uuids.getrandbits(128), version=4)

        violation: ViolationError | None = None
        with (
            closing(loop),
            patch.object(redis_queue, "uuid4", uuid4),
            patch.object(relay, "uuid4", uuid4),
            patch.object(relay, "POLL_S", POLL_S),
        ):
            setting = draw(seed, is_calm=is_calm)
            self._empty(setting.tenants)
            world = World(setting, loop, self._server, self._database, self._connection)
            world.on_say, world.is_traced = on_say, is_traced
            structlog.configure(
                processors=[cast(Any, _Listener(world))],
                wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if is_traced else logging.WARNING),
            )
            try:
                loop.run_until_complete(world.live())
            except ViolationError as error:
                violation = error
            loop.run_until_complete(self._database.close())  # the next seed has connections of its own
            log = [format_line(line) for line in world.log] if has_log or violation else []
            return Result(seed, violation, log, world.num_effects, world.num_compared, loop.time(), world.sql.seen)

    def _empty(self, tenants: tuple[tuple[str, float, int], ...]) -> None:
        for table in reversed(tables.METADATA.sorted_tables):
            self._connection.execute(f"DELETE FROM {table.name}")
        self._connection.execute("DELETE FROM sqlite_sequence")
        for tenant_id, weight, cap in tenants:
            insert = (
                "INSERT INTO tenants (tenant_id, name, weight, max_in_flight, created_at_ms) VALUES (?, ?, ?, ?, ?)"
            )
            self._connection.execute(insert, (tenant_id, tenant_id, weight, cap, START_MS))


class _Listener:
    """Hears what the shipped code logs: into the event log, and a logged crash is a violation."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, _logger: Any, method: str, event: dict[str, Any]) -> Any:
        name = str(event.pop("event"))
        details = " ".join(f"{key}={value}" for key, value in event.items() if key != "exc_info")
        self._world.say("log", name, details)
        if method in ("exception", "error", "critical"):
            self._world.violate("no unexpected error", f"{name} {shorten(details)}")
        raise structlog.DropEvent


@contextmanager
def stage() -> Iterator[Stage]:
    """Start a Redis and a database for any number of seeds."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="vitascope-sim-", dir=memory if memory.is_dir() else None) as name, inline_sqlite():
        folder = Path(name)
        url = f"sqlite+aiosqlite:///{folder / 'vitascope.db'}"
        migrate(url)
        with (
            closing(sqlite3.connect(folder / "vitascope.db", isolation_level=None)) as connection,
            redis_server(folder) as redis_url,
            closing(Server(redis_url)) as server,
        ):
            connection.execute("PRAGMA foreign_keys=OFF")
            yield Stage(server, Database(url), connection)
