"""The database: SQLite on a laptop, PostgreSQL on a cluster, the same statements on both.

Writers on SQLite take the write lock at BEGIN (IMMEDIATE), so a transaction never fails half-way for a lock; the file
is in WAL mode with synchronous=FULL, because an accepted job must survive a power cut.
"""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import sqlalchemy as sa
import structlog
from aiosqlite.context import contextmanager as as_cursor
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from vitascope_common.errors import UnavailableError

BUSY_TIMEOUT_MS = 10_000
CONNECT_TIMEOUT_S = 5.0  # PostgreSQL; its driver would wait for a minute
COMMAND_TIMEOUT_S = 15.0  # PostgreSQL; its driver would wait for ever
_READ_ONLY = "vitascope_read_only"
_OURS = (IntegrityError, ProgrammingError, DataError, NotSupportedError)

log = structlog.stdlib.get_logger("vitascope.database")


class Database:
    """Transactions over one engine. A database that is away is an UnavailableError; our own mistakes stay."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self.engine = _make_engine(url, pool_size)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Open a writing transaction: committed at the end of the block, rolled back when it raises."""
        with _translated():
            async with self.engine.connect() as connection, connection.begin():
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that only reads: on SQLite it takes no write lock."""
        with _translated():
            async with self.engine.connect() as connection:
                await connection.execution_options(**{_READ_ONLY: True})
                async with connection.begin():
                    yield connection

    async def check(self) -> None:
        """Raise UnavailableError unless the database answers."""
        async with self.read() as connection:
            await connection.execute(sa.select(1))

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


@contextmanager
def _translated() -> Iterator[None]:
    """Say only that the database is away, since clients read it; the log has the reason."""
    try:
        yield
    except _OURS:
        raise
    except (DBAPIError, PoolTimeoutError, asyncpg.PostgresError, OSError) as error:
        log.warning("database.away", error=str(error))
        raise UnavailableError("The database is not available at the moment; the request can be repeated.") from error


def _make_engine(url: str, pool_size: int) -> AsyncEngine:
    if not url.startswith("sqlite"):
        timeouts = {"timeout": CONNECT_TIMEOUT_S, "command_timeout": COMMAND_TIMEOUT_S}
        return create_async_engine(
            url, pool_size=pool_size, pool_pre_ping=True, hide_parameters=True, connect_args=timeouts
        )
    given = {"timeout": BUSY_TIMEOUT_MS / 1000, "async_creator_fn": _connect_sqlite}
    engine = create_async_engine(url, pool_size=pool_size, hide_parameters=True, connect_args=given)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def _on_connect(dbapi_connection: Any, _record: object) -> None:
        dbapi_connection.isolation_level = None  # BEGIN is ours, below
        cursor = dbapi_connection.cursor()
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        read_only = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


class _Cursor(aiosqlite.Cursor):
    async def close(self) -> None:
        self._cursor.close()


class _Connection(aiosqlite.Connection):
    """Makes and closes cursors at once: what does not touch the file is not worth a trip to the connection's thread."""

    @as_cursor
    async def cursor(self) -> aiosqlite.Cursor:
        return _Cursor(self, self._conn.cursor())


def _connect_sqlite(path: str, **given: Any) -> aiosqlite.Connection:
    connection = _Connection(lambda: sqlite3.connect(path, **given), iter_chunk_size=64)
    connection._thread.daemon = True  # as SQLAlchemy does for those it makes
    return connection


def upsert_into(connection: AsyncConnection, table: sa.Table) -> "postgresql.Insert | sqlite.Insert":
    """Begin an INSERT that says what happens `on_conflict`; both databases know it, under names of their own."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return insert(table)


def migrate(url: str) -> None:
    """Bring the schema to the newest revision. One step, before services start; running it again changes nothing.

    Not from inside an event loop.
    """
    from alembic import command  # here: services never need it, and it is an eighth of their start
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["url"] = url
    command.upgrade(config, "head")
